//! What a conversion reads of a Hugging Face model beside its weights' values: config.json, the tokenizer's files, the
//! model card, and the names, types and shapes of its tensors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::Value;

use crate::checkpoint::{read_small, read_text};
use crate::error::{Error, Result};

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
    pub(super) fn no_json(&self, name: &str, problem: &serde_json::Error) -> Error {
        Error::malformed(&self.paths[name], format!("is no JSON: {problem}"), "restore the file from its source")
    }
}

/// Name, type and shape of a tensor of the Hugging Face model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HfTensor {
    /// Its name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape, outermost axis first.
    pub shape: Vec<usize>,
}

/// One tensor of the GGUF file to be.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its shape, outermost axis first (the file has the axes reversed).
    pub shape: Vec<usize>,
    /// Where its rows come from.
    pub rows: Rows,
    /// Whether it is F32 whatever the types of the others: norms, biases, generated factors.
    pub always_f32: bool,
}

/// Where the rows of a tensor come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// A tensor of the Hugging Face model.
    Tensor {
        /// Its name there.
        name: String,
        /// Rows are reordered for llama.cpp's rotary embedding: as that many heads. `None` keeps them.
        heads: Option<usize>,
    },
    /// Values that the conversion makes.
    Values(Vec<f32>),
}
