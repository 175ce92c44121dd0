//! Looking at a model, an adapter or a single file: what is in it, and statistics of its values.

mod gguf;
mod stats;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::adapter::{ADAPTER_CONFIG, open_weights};
use crate::checkpoint::{Checkpoint, ConfigText, SafetensorsFile, Tensor, compare_names, dtype_name};
use crate::error::{Error, Result};
use crate::gguf::is_gguf;

pub use gguf::{GgufSummary, KeyEntry};
pub use stats::Stats;
use stats::{Reader, all_stats};

/// What a path turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A directory with a model.
    Model,
    /// A directory with a PEFT adapter.
    Adapter,
    /// One safetensors file.
    File,
    /// A model in GGUF: one file, or all its parts.
    Gguf,
}

/// What was found at a path.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The path.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Tensors in the order in which a model runs; those of GGUF in the order of their bytes.
    pub tensors: Vec<TensorEntry>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Elements of all tensors.
    pub parameters: u64,
    /// `config.json` or `adapter_config.json`.
    pub config: Option<Value>,
    /// What only GGUF has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gguf: Option<GgufSummary>,
    /// What is odd.
    pub warnings: Vec<String>,
}

/// One tensor.
#[derive(Debug, Serialize)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its type, as safetensors spells it, or ggml in capitals.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
    /// The file that holds it.
    pub file: String,
    /// Statistics of its values, if they were asked for and its type is one that they are computed of: not of complex
    /// numbers and of those smaller than a byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

/// Looks at `path`; with `stats`, reads every value with `jobs` threads.
pub fn inspect(path: &Path, stats: bool, jobs: usize) -> Result<Inspection> {
    if is_gguf(path)? {
        return gguf::inspect(path, stats, jobs);
    }
    if let Some(model) = gguf::only_model(path)? {
        return gguf::inspect(&model, stats, jobs);
    }
    let (kind, mut tensors, config, warnings) = read(path)?;
    tensors.sort_by(|a, b| compare_names(a.name(), b.name()));
    let values = || tensors.iter().map(|t| (t.bytes(), Reader::of(t.dtype()))).collect::<Vec<_>>();
    let mut found = if stats { all_stats(&values(), jobs) } else { Vec::new() }.into_iter();
    let entry = |tensor: &Tensor| TensorEntry {
        name: tensor.name().to_owned(),
        dtype: dtype_name(tensor.dtype()),
        shape: tensor.shape().to_vec(),
        bytes: tensor.bytes().len() as u64,
        file: tensor.file().name(),
        stats: found.next().flatten(),
    };
    Ok(Inspection {
        path: path.to_owned(),
        kind,
        bytes: tensors.iter().map(|t| t.bytes().len() as u64).sum(),
        parameters: tensors.iter().map(|t| t.elements() as u64).sum(),
        tensors: tensors.iter().map(entry).collect(),
        config: config.and_then(|config| config.get(&[])),
        gguf: None,
        warnings,
    })
}

type Read = (Kind, Vec<Tensor>, Option<ConfigText>, Vec<String>);

fn read(path: &Path) -> Result<Read> {
    let meta = std::fs::metadata(path).map_err(Error::io("look at", path))?;
    if !meta.is_dir() {
        let file = SafetensorsFile::open(path)?;
        return Ok((Kind::File, file.tensors().collect(), None, file.header().lint.clone()));
    }
    if path.join(ADAPTER_CONFIG).exists() {
        let file = open_weights(path)?;
        let config = ConfigText::read(&path.join(ADAPTER_CONFIG))?;
        return Ok((Kind::Adapter, file.tensors().collect(), config, file.header().lint.clone()));
    }
    let model = Checkpoint::open(path)?;
    Ok((Kind::Model, model.tensors.into_values().collect(), model.config, model.warnings))
}
