//! Importance matrices: a weight for each column of a tensor, which encoders spend their bits by. Reads the files of
//! llama-imatrix, the old format and the one in GGUF, and gives weights as llama-quantize does.

mod gguf;
mod legacy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::disk::{file_name, tells_of_disk};
use super::mixture::is_embedding;
use crate::error::{Error, Result, escaped};
use crate::files::Mapping;

/// The key that names the file which a quantized model was weighed by.
pub(crate) const FILE_KEY: &str = "quantize.imatrix.file";

/// What to do about a file that is broken.
const REMEDY: &str = "make the importance matrix again with llama-imatrix";

/// An importance matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Imatrix {
    path: PathBuf,
    /// Mean squares of activations, matrix by matrix and in each column by column, by tensor.
    weights: BTreeMap<String, Vec<f32>>,
    datasets: Vec<String>,
    chunks: u32,
}

/// What a quantized file says of the importance matrix that it was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImatrixInfo {
    /// The path, as the user wrote it.
    pub file: String,
    /// The first of the texts that it was computed from.
    pub dataset: Option<String>,
    /// Tensors that it has weights for.
    pub entries: u32,
    /// Pieces of text that it was computed from; 0 if it doesn't say.
    pub chunks: u32,
}

impl ImatrixInfo {
    /// The same without directories, which are local paths.
    pub(crate) fn without_paths(self) -> Self {
        let name = |path: String| if tells_of_disk(FILE_KEY, &path) { file_name(&path).to_owned() } else { path };
        Self { file: file_name(&self.file).to_owned(), dataset: self.dataset.map(name), ..self }
    }
}

impl Imatrix {
    /// Reads the importance matrix at `path`, of either format.
    pub fn read(path: &Path) -> Result<Self> {
        let map = Mapping::open(path)?;
        if map.bytes().starts_with(b"GGUF") {
            return Self::checked(gguf::read(path)?);
        }
        Self::parse_legacy(path, map.bytes())
    }

    /// Parses the old format; `path` is for messages.
    pub fn parse_legacy(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::checked(legacy::parse(path, bytes)?)
    }

    /// The matrix, unless it has nothing, or values that are no weights.
    fn checked(self) -> Result<Self> {
        if self.weights.is_empty() {
            return Err(Error::malformed(&self.path, "has weights for no tensor", REMEDY));
        }
        if let Some((name, _)) = self.weights.iter().find(|(_, weights)| weights.iter().any(|w| !w.is_finite())) {
            let problem = format!("has a weight for {} that is not finite", escaped(name));
            return Err(Error::malformed(&self.path, problem, REMEDY));
        }
        Ok(self)
    }

    /// Keeps the weights of the tensors whose names `is_wanted` says yes to.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&str) -> bool) {
        self.weights.retain(|name, _| is_wanted(name));
    }

    /// Whether it has weights for no tensor; llama-quantize makes then what it makes without a matrix.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Names of the tensors that it has weights for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// The weights of the tensor called `name`, of `matrices` times some rows of `columns`: `columns` of them for each
    /// matrix (experts have their own). `None` if there are none. An embedding may have weights of another size, which
    /// don't count; any other tensor may not.
    pub fn weights_for(&self, name: &str, columns: usize, matrices: usize) -> Result<Option<&[f32]>> {
        let Some(weights) = self.weights.get(name) else { return Ok(None) };
        if columns.checked_mul(matrices) == Some(weights.len()) {
            return Ok(Some(weights));
        }
        if is_embedding(name) {
            return Ok(None);
        }
        let (name, len) = (escaped(name), weights.len());
        let problem = format!("has {len} weights for {name}, which has {columns} columns in {matrices} matrices");
        Err(Error::malformed(&self.path, problem, "use an importance matrix of this model"))
    }

    /// What a file made with the matrix says of it; `file` is the path as the user wrote it.
    pub fn info(&self, file: &str) -> ImatrixInfo {
        ImatrixInfo {
            file: file.to_owned(),
            dataset: self.datasets.first().cloned(),
            entries: u32::try_from(self.weights.len()).unwrap_or(u32::MAX),
            chunks: self.chunks,
        }
    }
}

#[cfg(test)]
mod tests;
