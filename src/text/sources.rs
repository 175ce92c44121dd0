//! The JSON files that say most of a tokenizer, each read once: which tokens there are, and what they are for.

use serde_json::{Map, Value};

use super::tables::TokenizerJson;
use crate::checkpoint::ModelFiles;
use crate::error::Result;

/// A model's files, with the two that every part of a conversion asks.
pub(crate) struct Sources<'a> {
    /// All files.
    pub(crate) files: &'a ModelFiles,
    /// `tokenizer.json`; `None` if there is none.
    pub(crate) tokenizer: Option<TokenizerJson<'a>>,
    /// `tokenizer_config.json`; empty if there is none.
    pub(crate) config: Map<String, Value>,
}

impl<'a> Sources<'a> {
    /// Reads both; `text` is that of `tokenizer.json`.
    pub(crate) fn read(files: &'a ModelFiles, text: Option<&'a str>) -> Result<Self> {
        let tokenizer = text.map(TokenizerJson::parse).transpose().map_err(|e| files.no_json("tokenizer.json", &e))?;
        Ok(Self { files, tokenizer, config: members(files, "tokenizer_config.json")? })
    }

    /// The added tokens that `tokenizer.json` lists.
    pub(crate) fn added_tokens(&self) -> &[Value] {
        let tokens = self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.rest.get("added_tokens")?.as_array());
        tokens.map_or(&[], Vec::as_slice)
    }
}

/// The members of a file that holds an object; none if there is no such file, or it holds something else.
pub(crate) fn members(files: &ModelFiles, name: &str) -> Result<Map<String, Value>> {
    Ok(if let Some(Value::Object(members)) = files.json(name)? { members } else { Map::new() })
}

/// The text of a token that is written as a string, or as an object with properties.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
