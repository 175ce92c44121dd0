//! `tokenizer.json` as it is read: its two large tables, tokens and merges, are borrowed from the text, and all else is a
//! JSON value. A file whose tables have no such form is a value as a whole.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The content of a `tokenizer.json`.
pub(crate) struct TokenizerJson<'t> {
    /// Its text.
    pub(crate) text: &'t str,
    /// Everything but the tables, or everything if there are none.
    pub(crate) rest: Value,
    /// The tables of a model of BPE.
    pub(crate) tables: Option<Tables<'t>>,
}

/// The tables of a model of BPE.
pub(crate) struct Tables<'t> {
    /// Tokens and their ids, in the file's order.
    pub(crate) vocab: Vec<(Cow<'t, str>, u32)>,
    /// Pairs of tokens, in the order in which they are merged.
    pub(crate) merges: Vec<[Cow<'t, str>; 2]>,
}

impl<'t> TokenizerJson<'t> {
    /// Reads `text`.
    pub(crate) fn parse(text: &'t str) -> serde_json::Result<Self> {
        if let Ok(File { model, mut rest }) = serde_json::from_str::<File<'_>>(text) {
            rest.insert("model".to_owned(), Value::Object(model.rest));
            let tables = Tables { vocab: model.vocab.0, merges: model.merges.0 };
            return Ok(Self { text, rest: Value::Object(rest), tables: Some(tables) });
        }
        Ok(Self { text, rest: serde_json::from_str(text)?, tables: None })
    }
}

#[derive(Deserialize)]
struct File<'t> {
    #[serde(borrow)]
    model: Model<'t>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Model<'t> {
    #[serde(borrow)]
    vocab: Vocab<'t>,
    #[serde(borrow)]
    merges: Merges<'t>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// An object of ids by text.
struct Vocab<'t>(Vec<(Cow<'t, str>, u32)>);

/// A list of lines of two parts, or one of pairs.
struct Merges<'t>(Vec<[Cow<'t, str>; 2]>);

impl<'de: 't, 't> Deserialize<'de> for Vocab<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ids;
        impl<'de> Visitor<'de> for Ids {
            type Value = Vec<(Cow<'de, str>, u32)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ids by token")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut ids = Vec::new();
                while let Some((Text(text), id)) = map.next_entry()? {
                    ids.push((text, id));
                }
                Ok(ids)
            }
        }
        deserializer.deserialize_map(Ids).map(Vocab)
    }
}

impl<'de: 't, 't> Deserialize<'de> for Merges<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<[Cow<'de, str>; 2]>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges of one form")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                let mut first = None;
                while let Some(Merge { parts, is_line }) = list.next_element()? {
                    if *first.get_or_insert(is_line) != is_line {
                        return Err(A::Error::custom("lines and pairs are mixed"));
                    }
                    pairs.push(parts);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_seq(Pairs).map(Merges)
    }
}

/// A text, borrowed unless it holds escapes.
struct Text<'t>(Cow<'t, str>);

/// One merge: two parts, or a line of both.
struct Merge<'t> {
    parts: [Cow<'t, str>; 2],
    is_line: bool,
}

impl<'de: 't, 't> Deserialize<'de> for Text<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Any)
    }
}

impl<'de: 't, 't> Deserialize<'de> for Merge<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Merge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens")
            }

            fn visit_borrowed_str<E: Error>(self, line: &'de str) -> Result<Self::Value, E> {
                Ok(Merge { parts: two(line)?.map(Cow::Borrowed), is_line: true })
            }

            fn visit_str<E: Error>(self, line: &str) -> Result<Self::Value, E> {
                Ok(Merge { parts: two(line)?.map(|part| Cow::Owned(part.to_owned())), is_line: true })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let (Some(Text(left)), Some(Text(right)), None) =
                    (list.next_element()?, list.next_element()?, list.next_element::<Text<'_>>()?)
                else {
                    return Err(A::Error::custom("a merge is not a pair"));
                };
                Ok(Merge { parts: [left, right], is_line: false })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The two parts of a line; readers skip a line that gives a version.
fn two<E: Error>(line: &str) -> Result<[&str; 2], E> {
    let parts = line.split_once(' ').filter(|(_, right)| !right.contains(' ') && !line.starts_with("#version"));
    parts.map(|(left, right)| [left, right]).ok_or_else(|| E::custom("a merge has no two parts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merges(merges: &str) -> Option<Vec<[String; 2]>> {
        let text =
            format!(r#"{{"a": 1, "model": {{"type": "BPE", "vocab": {{"x": 0, "\"": 7}}, "merges": {merges}}}}}"#);
        let read = TokenizerJson::parse(&text).unwrap();
        assert_eq!((&read.rest["a"], &read.rest["model"]["type"]), (&Value::from(1), &Value::from("BPE")));
        assert_eq!(read.rest["model"].get("vocab").is_none(), read.tables.is_some());
        let tables = read.tables?;
        assert_eq!(tables.vocab, [("x".into(), 0), ("\"".into(), 7)]);
        Some(tables.merges.into_iter().map(|pair| pair.map(Cow::into_owned)).collect())
    }

    #[test]
    fn lines_and_pairs_become_pairs() {
        let expected = Some(vec![["a".to_owned(), "\"".to_owned()], ["\u{120}".to_owned(), String::new()]]);
        assert_eq!(merges(r#"["a \"", "Ġ "]"#), expected);
        assert_eq!(merges(r#"[["a", "\""], ["\u0120", ""]]"#), expected);
        assert_eq!(merges("[]"), Some(Vec::new()));
    }

    #[test]
    fn other_forms_are_left_as_they_are() {
        for form in [r#"["a b c"]"#, r#"["a"]"#, r##"["#version: 1"]"##, r#"[["a"]]"#, r#"["a b", ["a", "b"]]"#, "7"] {
            assert_eq!(merges(form), None, "{form}");
        }
        let unigram = r#"{"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}"#;
        assert!(TokenizerJson::parse(unigram).unwrap().tables.is_none());
        assert!(TokenizerJson::parse("{").is_err());
    }
}
