//! The tokens of a GGUF file, checked, and which of them tokenizer.json lists as added.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::super::keys::{Keys, TOKENIZER_REMEDY as REMEDY};
use crate::error::{Error, Result, escaped};
use crate::gguf::vocab::is_padding;

/// The type of a token, as `llama_token_type` in llama.h numbers them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";

/// The score that llama.cpp's converter gives to tokens that were added to a SentencePiece model.
const ADDED_SCORE: f32 = -1000.0;

/// The tokens.
pub(crate) struct Vocabulary<'a> {
    /// Their texts, by id; without those that pad the vocabulary to the rows of the embeddings.
    pub(crate) tokens: &'a [String],
    /// Tokens before this one are in the model of tokenizer.json; the others follow them as added tokens.
    pub(crate) base: usize,
    types: Option<&'a [i32]>,
    scores: Option<&'a [f32]>,
    /// Merges, best first, as two texts with a space between.
    pub(crate) merges: Option<&'a [String]>,
}

impl<'a> Vocabulary<'a> {
    /// Reads the vocabulary of a model whose embeddings have `rows` rows.
    pub(crate) fn read(keys: Keys<'a>, rows: u64) -> Result<Self> {
        let refuse = |problem: String| Err(Error::inconsistent(problem, REMEDY));
        let Some(tokens) = keys.texts("tokenizer.ggml.tokens")? else {
            return refuse("the model has no vocabulary".to_owned());
        };
        if tokens.len() as u64 > rows {
            return refuse(format!("the vocabulary has {} tokens and the embeddings {rows} rows", tokens.len()));
        }
        let types = keys.whole_numbers(TYPES, tokens.len())?;
        if let Some(odd) = first(types, |kind| !(NORMAL..=BYTE).contains(kind)) {
            return Err(keys.broken(TYPES, &format!("has the type {} for token {}: types are 1 to 6", odd.1, odd.0)));
        }
        let scores = keys.numbers(SCORES, tokens.len())?;
        if let Some(odd) = first(scores, |score| !score.is_finite()) {
            return Err(keys.broken(SCORES, &format!("has the score {} for token {}", odd.1, odd.0)));
        }
        let merges = keys.texts("tokenizer.ggml.merges")?;
        let mut vocabulary = Self { tokens, base: tokens.len(), types, scores, merges };
        vocabulary.trim();
        let ids = vocabulary.ids();
        if ids.len() != vocabulary.tokens.len() {
            let twice = vocabulary.tokens.iter().enumerate().find(|(id, token)| ids.get(token.as_str()) != Some(id));
            return refuse(format!("the vocabulary has the token {} twice", escaped(twice.map_or("", |t| t.1))));
        }
        Ok(vocabulary)
    }

    /// Leaves out the tokens that the converter padded the vocabulary with, and finds the added tokens at its end.
    fn trim(&mut self) {
        let padding = |id: usize, token: &str| self.kind(id) == UNUSED && is_padding(id, token);
        let tokens = self.tokens.iter().enumerate();
        let len = tokens.rev().find(|(id, token)| !padding(*id, token)).map_or(0, |(id, _)| id + 1);
        let added = |id: &usize| self.is_added(*id);
        let base = (0..len).rev().find(|id| !added(id)).map_or(0, |id| id + 1);
        (self.tokens, self.base) = (&self.tokens[..len], base);
    }

    /// The id of each text.
    pub(crate) fn ids(&self) -> HashMap<&'a str, usize> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect()
    }

    /// The text of a token.
    pub(crate) fn text(&self, id: u64) -> Option<&'a str> {
        self.tokens.get(usize::try_from(id).ok()?).map(String::as_str)
    }

    /// The type of a token.
    pub(crate) fn kind(&self, id: usize) -> i32 {
        self.types.map_or(NORMAL, |types| types[id])
    }

    /// The score of a token: the higher, the earlier it is merged.
    pub(crate) fn score(&self, id: usize) -> f32 {
        self.scores.map_or(0.0, |scores| scores[id])
    }

    /// Whether the file has scores.
    pub(crate) fn has_scores(&self) -> bool {
        self.scores.is_some()
    }

    /// Whether a token is looked for in a text before all else. llama.cpp does so for these three types.
    fn is_added(&self, id: usize) -> bool {
        matches!(self.kind(id), UNKNOWN | CONTROL | USER_DEFINED)
    }

    fn added(&self) -> impl Iterator<Item = (usize, &'a str, Value)> {
        let added = self.tokens.iter().enumerate().filter(|(id, _)| self.is_added(*id));
        added.map(|(id, token)| {
            let entry = json!({
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": self.kind(id) != USER_DEFINED,
            });
            (id, token.as_str(), entry)
        })
    }

    /// `added_tokens` of tokenizer.json.
    pub(crate) fn added_tokens(&self) -> Value {
        let with_id = |(id, _, entry): (usize, &str, Value)| {
            let mut all = Map::new();
            all.insert("id".to_owned(), json!(id));
            all.extend(entry.as_object().cloned().unwrap_or_default());
            Value::Object(all)
        };
        self.added().map(with_id).collect()
    }

    /// `added_tokens_decoder` of `tokenizer_config.json`, with the tokens that were added to a SentencePiece model: those
    /// after it, and those whose score says so.
    pub(crate) fn added_tokens_decoder(&self) -> Value {
        let outside =
            self.added().filter(|(id, ..)| *id >= self.base || self.score(*id).to_bits() == ADDED_SCORE.to_bits());
        outside.map(|(id, _, entry)| (id.to_string(), entry)).collect::<Map<_, _>>().into()
    }

    /// `model.vocab` of tokenizer.json.
    pub(crate) fn base_ids(&self) -> Value {
        let base = self.tokens[..self.base].iter().enumerate();
        base.map(|(id, token)| (token.clone(), json!(id))).collect::<Map<_, _>>().into()
    }
}

/// The first of `values` that is odd, with its place.
fn first<T: Copy>(values: Option<&[T]>, odd: impl Fn(&T) -> bool) -> Option<(usize, T)> {
    values?.iter().copied().enumerate().find(|(_, value)| odd(value))
}

/// `model.merges` of tokenizer.json: as texts, which every reader knows, or as pairs, where a part has a space in it.
pub(crate) fn merges_json(merges: &[(&str, &str)]) -> Value {
    if merges.iter().any(|(left, right)| left.contains(' ') || right.contains(' ')) {
        return merges.iter().map(|(left, right)| json!([left, right])).collect();
    }
    merges.iter().map(|(left, right)| json!(format!("{left} {right}"))).collect()
}
