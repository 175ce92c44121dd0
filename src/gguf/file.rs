//! One mapped GGUF file with its checked header. Splits are in `model`.

use std::path::Path;
use std::sync::Arc;

use super::read::{Header, TensorInfo};
use super::rules::MAGIC;
use super::value::Metadata;
use crate::error::{Error, Result, escaped};
use crate::files::Mapping;

/// Whether `path` is meant to be a GGUF file: by its name, or by its first bytes.
pub fn is_gguf(path: &Path) -> Result<bool> {
    let meta = std::fs::metadata(path).map_err(Error::io("look at", path))?;
    let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    Ok(!meta.is_dir() && (named || Mapping::open(path)?.bytes().starts_with(&MAGIC)))
}

/// A GGUF file, mapped, and its checked header.
#[derive(Debug)]
pub struct GgufFile {
    mapping: Mapping,
    header: Header,
}

impl GgufFile {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let mapping = Mapping::open(path)?;
        let header = Header::parse(mapping.bytes())
            .map_err(|bad| Error::malformed(path, escaped(&bad.to_string()), bad.remedy()))?;
        Ok(Arc::new(Self { mapping, header }))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.mapping.path()
    }

    /// The file's name without its directory.
    pub fn name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Keys and values, in the file's order.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The tensors, in the order of their bytes.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// Multiple, in bytes, at which tensors begin.
    pub fn alignment(&self) -> usize {
        self.header.alignment
    }

    /// The bytes of `tensor`, one of [`Self::tensors`]: rows of whole blocks, the innermost axis within a row.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.mapping.bytes()[tensor.offset..tensor.offset + tensor.len]
    }

    /// The whole file.
    pub fn all_bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    /// Asks the system to map the bytes `start..start + len` of `tensor` at once.
    pub fn prefetch(&self, tensor: &TensorInfo, start: usize, len: usize) {
        self.mapping.prefetch(tensor.offset + start, len);
    }

    /// See [`Mapping::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.mapping.check_unchanged()
    }
}
