//! What a tokenizer.json says of its tokens: ids and texts, without building a tokenizer.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

/// The tokens of a tokenizer.json.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// The largest id.
    pub(super) largest: u64,
    /// Added tokens by id.
    pub(super) added: BTreeMap<u64, String>,
    /// Texts that two ids have.
    pub(super) twice: Vec<(String, u64, u64)>,
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow)]
    vocab: Vocab<'a>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab<'a> {
    /// Byte pairs, word pieces, whole words.
    Ids(#[serde(borrow)] HashMap<Cow<'a, str>, u64>),
    /// Unigram: a token's id is its place.
    Scores(Vec<(String, f64)>),
}

impl Vocabulary {
    /// Reads the text of a tokenizer.json.
    pub(super) fn parse(text: &str) -> serde_json::Result<Self> {
        let File { added_tokens, model } = serde_json::from_str(text)?;
        let mut twice = Vec::new();
        let ids: HashMap<Cow<'_, str>, u64> = match model.vocab {
            Vocab::Ids(ids) => ids,
            Vocab::Scores(pieces) => {
                let mut ids = HashMap::with_capacity(pieces.len());
                for (id, (piece, _)) in pieces.into_iter().enumerate() {
                    if let Some(other) = ids.insert(Cow::Owned(piece.clone()), id as u64) {
                        twice.push((piece, other, id as u64));
                    }
                }
                ids
            }
        };
        let mut largest = ids.values().copied().max().unwrap_or(0);
        let mut added: BTreeMap<u64, String> = BTreeMap::new();
        let mut seen: HashMap<String, u64> = HashMap::new();
        for Added { id, content } in added_tokens {
            largest = largest.max(id);
            let other = ids.get(content.as_str()).copied().or_else(|| seen.get(&content).copied());
            if let Some(other) = other.filter(|other| *other != id) {
                twice.push((content.clone(), other, id));
            }
            seen.insert(content.clone(), id);
            added.insert(id, content);
        }
        Ok(Self { largest, added, twice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_texts_of_both_kinds_of_models() {
        let map =
            r#"{"model": {"vocab": {"a": 0, "b\n": 5}}, "added_tokens": [{"id": 9, "content": "a", "special": true}]}"#;
        let found = Vocabulary::parse(map).unwrap();
        assert_eq!((found.largest, found.added.len()), (9, 1));
        assert_eq!(found.twice, [("a".to_owned(), 0, 9)]);
        let list = r#"{"model": {"vocab": [["x", 0.0], ["y", -1.5], ["x", -2]]}}"#;
        let found = Vocabulary::parse(list).unwrap();
        assert_eq!((found.largest, found.twice), (2, vec![("x".to_owned(), 0, 2)]), "the later place counts");
        assert!(Vocabulary::parse("{}").is_err() && Vocabulary::parse("[]").is_err());
    }
}
