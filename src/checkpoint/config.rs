//! `config.json` (and JSON files like it) as text: values are read by path and changed in place, so that everything
//! that a merge does not demand keeps its bytes: order, spelling of numbers, white space.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::files::read_text_if_there;

/// Sections in which composite models keep the settings of their text model.
pub const TEXT_SECTIONS: [&str; 5] = ["text_config", "llm_config", "language_config", "thinker_config", "decoder"];

/// A JSON object with the text that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigText {
    path: PathBuf,
    text: String,
}

impl ConfigText {
    /// Reads the file at `path`; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        read_text_if_there(path)?.map(|text| Self::parse(path, text)).transpose()
    }

    /// Takes `text` as the content of `path`.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        members(&text).map_err(|e| {
            Error::malformed(path, format!("is not a JSON object: {e}"), "restore the file from its source")
        })?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// The file's text, with the changes made so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value at `keys`, outermost first.
    pub fn get(&self, keys: &[&str]) -> Option<Value> {
        let mut slice = self.text.as_str();
        for key in keys {
            slice = members(slice).ok()?.remove(*key)?.get();
        }
        serde_json::from_str(slice).ok()
    }

    /// The string at `keys`.
    pub fn string(&self, keys: &[&str]) -> Option<String> {
        self.get(keys)?.as_str().map(str::to_owned)
    }

    /// Sets the value at `keys`, whose parents must exist, touching nothing else. Says whether that changed the text.
    pub fn set(&mut self, keys: &[&str], value: &Value) -> bool {
        if self.get(keys).as_ref() == Some(value) {
            return false;
        }
        let Some((last, parents)) = keys.split_last() else { return false };
        let mut object = 0..self.text.len();
        for key in parents {
            match self.span(object.clone(), key) {
                Some(span) => object = span,
                None => return false,
            }
        }
        if members(&self.text[object.clone()]).is_err() {
            return false;
        }
        if let Some(span) = self.span(object.clone(), last) {
            self.text.replace_range(span, &value.to_string());
        } else {
            self.insert(object, last, value);
        }
        true
    }

    /// Takes the member `key` out of the top object, with the comma that it brought. Says whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let Some(value) = self.span(0..self.text.len(), key) else { return false };
        let quoted = Value::from(key).to_string();
        let Some(start) = self.text[..value.start].rfind(&quoted) else { return false };
        let before = self.text[..start].trim_end();
        let after = &self.text[value.end..];
        let rest = after.trim_start();
        let range = match before.strip_suffix(',') {
            Some(before) => before.len()..value.end,
            None if rest.starts_with(',') => {
                let next = rest[1..].trim_start();
                start..self.text.len() - next.len()
            }
            None => start..value.end,
        };
        self.text.replace_range(range, "");
        true
    }

    /// Place of the value of `key` in the object at `object`.
    fn span(&self, object: std::ops::Range<usize>, key: &str) -> Option<std::ops::Range<usize>> {
        let slice = &self.text[object];
        let value = members(slice).ok()?.remove(key)?.get();
        // The raw value borrows from the text, so the distance of their addresses is its place.
        let start = value.as_ptr() as usize - self.text.as_ptr() as usize;
        Some(start..start + value.len())
    }

    /// Adds a member after the last one of the object at `object`, indented as that one is.
    fn insert(&mut self, object: std::ops::Range<usize>, key: &str, value: &Value) {
        let slice = &self.text[object.clone()];
        let Some(close) = slice.rfind('}') else { return };
        let body = slice[..close].trim_end();
        let empty = body.trim_start().len() <= 1;
        let indent: String = match slice.find('"').map(|quote| &slice[..quote]) {
            Some(before) if !empty => before.chars().skip_while(|c| *c != '{').skip(1).collect(),
            _ => String::new(),
        };
        let member = format!("{}{indent}{}: {value}", if empty { "" } else { "," }, Value::from(key));
        self.text.insert_str(object.start + body.len(), &member);
    }
}

/// The members of the object that `text` is, as slices of it.
fn members(text: &str) -> Result<BTreeMap<String, &RawValue>, serde_json::Error> {
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(text: &str) -> ConfigText {
        ConfigText::parse(Path::new("config.json"), text.to_owned()).unwrap()
    }

    const TEXT: &str = "{\n  \"eps\": 1e-06,\n  \"tie_word_embeddings\": true,\n  \"text_config\": {\"vocab_size\":7, \"x\":[1 ,2]}\n}\n";

    #[test]
    fn changes_one_value_and_no_other_byte() {
        let mut c = config(TEXT);
        assert!(c.set(&["tie_word_embeddings"], &Value::Bool(false)));
        assert!(c.set(&["text_config", "vocab_size"], &Value::from(9)));
        assert_eq!(c.text(), TEXT.replace("true", "false").replace(":7", ":9"));
        assert!(!c.set(&["text_config", "vocab_size"], &Value::from(9)), "nothing left to change");
        assert!(!c.set(&["vision_config", "vocab_size"], &Value::from(9)), "no such parent");
        for odd in [r#"{"a":7}"#, r#"{"a":"}"}"#, r#"{"a":[{"x":1}]}"#, r#"{"a":null}"#] {
            let mut c = config(odd);
            assert!(!c.set(&["a", "b"], &Value::from(1)) && c.text() == odd, "{odd}: the parent is not an object");
        }
    }

    #[test]
    fn adds_a_member_in_the_style_of_the_file() {
        let mut c = config(TEXT);
        c.set(&["dtype"], &Value::from("bfloat16"));
        assert!(c.text().ends_with("},\n  \"dtype\": \"bfloat16\"\n}\n"), "{}", c.text());
        c.set(&["text_config", "tie"], &Value::Bool(true));
        assert_eq!(c.get(&["text_config", "tie"]), Some(Value::Bool(true)));
        let mut empty = config("{ }");
        empty.set(&["a\"b"], &Value::from(1));
        assert_eq!(empty.get(&["a\"b"]), Some(Value::from(1)));
    }

    #[test]
    fn takes_a_member_out() {
        for (text, left) in [
            (r#"{"a": 1, "b": {"a": 2}, "c": 3}"#, r#"{"a": 1, "c": 3}"#),
            ("{\n  \"b\": [1],\n  \"c\": 3\n}", "{\n  \"c\": 3\n}"),
            ("{\n  \"a\": 1,\n  \"b\": null\n}", "{\n  \"a\": 1\n}"),
            (r#"{"b": 1}"#, "{}"),
        ] {
            let mut c = config(text);
            assert!(c.remove("b") && !c.remove("b"));
            assert_eq!(c.text(), left);
        }
    }

    #[test]
    fn refuses_what_is_no_object() {
        for text in ["", "[]", "{", "{} {}", "nul"] {
            assert!(ConfigText::parse(Path::new("c"), text.to_owned()).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn set_then_get(keys in proptest::collection::btree_map("\\PC{0,4}", 0i64..9, 0..5), key in "\\PC{0,4}", value: i64, pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&keys) } else { serde_json::to_string(&keys) }.unwrap();
            let mut c = config(&text);
            c.set(&[&key], &Value::from(value));
            let mut expected = keys;
            expected.insert(key, value);
            prop_assert_eq!(serde_json::from_str::<std::collections::BTreeMap<String, i64>>(c.text()).unwrap(), expected);
        }
    }
}
