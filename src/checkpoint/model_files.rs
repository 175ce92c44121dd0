//! The small files of a model, by name: config.json, the tokenizer's files, the model card. They need not lie in one
//! directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{read_small, read_text};

/// The small files of a model, by name, wherever they lie: an export takes some from the base, some from the adapter.
#[derive(Debug, Clone, Default)]
pub struct ModelFiles {
    /// The name of the model's directory, from which converters guess a model's name.
    pub directory: String,
    /// `config.json`, with the changes that a merge demands; members keep their order.
    pub config: Value,
    /// Every other small file, by its name in the directory.
    pub paths: BTreeMap<String, PathBuf>,
}

impl ModelFiles {
    /// The bytes of file `name`; `None` if there is none.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.paths.get(name).map(|path| read_small(path)).transpose()
    }

    /// The text of file `name`; `None` if there is none.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        self.paths.get(name).map(|path| read_text(path)).transpose()
    }

    /// File `name` as JSON; `None` if there is none.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| self.no_json(name, &e))
    }

    /// Says that file `name`, which is there, holds no JSON.
    pub(crate) fn no_json(&self, name: &str, problem: &serde_json::Error) -> Error {
        Error::malformed(&self.paths[name], format!("is not JSON: {problem}"), "restore the file from its source")
    }
}
