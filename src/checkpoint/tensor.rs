//! A mapped file of tensors, and cheap handles for the tensors in it.

use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use super::header::{BadHeader, Header, TensorInfo};
use super::names::ADAPTER_WEIGHTS_TORCH;
use crate::error::{Error, Result, escaped};
use crate::files::Mapping;

/// One mapped file of tensors with its checked header: safetensors, or a file of torch.save.
#[derive(Debug)]
pub struct SafetensorsFile {
    pub(super) mapping: Mapping,
    pub(super) header: Header,
}

impl SafetensorsFile {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let mapping = Mapping::open(path)?;
        let header = Header::parse(mapping.bytes()).map_err(|e| no_safetensors(path, mapping.bytes(), &e))?;
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

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    /// See [`Mapping::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.mapping.check_unchanged()
    }

    /// Handles for all tensors, in the order of their bytes.
    pub fn tensors(self: &Arc<Self>) -> impl Iterator<Item = Tensor> {
        let file = Arc::clone(self);
        (0..self.header.tensors.len()).map(move |index| Tensor { file: Arc::clone(&file), index })
    }
}

/// Unmaps the pages of files that won't be read again, with at most `jobs` threads.
pub(crate) fn release<'f>(files: impl Iterator<Item = &'f Arc<SafetensorsFile>>, jobs: usize) {
    crate::files::release(&files.map(|file| &file.mapping).collect::<Vec<_>>(), jobs);
}

/// A cheap handle for one tensor of a mapped file.
#[derive(Debug, Clone)]
pub struct Tensor {
    file: Arc<SafetensorsFile>,
    index: usize,
}

impl Tensor {
    fn info(&self) -> &TensorInfo {
        &self.file.header.tensors[self.index]
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.info().name
    }

    /// Type of an element.
    pub fn dtype(&self) -> Dtype {
        self.info().dtype
    }

    /// Lengths of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.info().shape
    }

    /// Number of elements. The header's check proved that the product does not overflow.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The bytes, little endian, in row-major order.
    pub fn bytes(&self) -> &[u8] {
        let TensorInfo { start, end, .. } = *self.info();
        &self.file.mapping.bytes()[start..end]
    }

    /// The file that holds the tensor.
    pub fn file(&self) -> &Arc<SafetensorsFile> {
        &self.file
    }

    /// Asks the system to map the tensor's bytes `start..start + len` at once.
    pub fn prefetch(&self, start: usize, len: usize) {
        self.file.mapping.prefetch(self.info().start + start, len);
    }
}

/// Says what the file at `path` is, whose bytes begin with no safetensors header.
fn no_safetensors(path: &Path, bytes: &[u8], error: &BadHeader) -> Error {
    let is_named = path.extension().is_some_and(|ending| ending == "safetensors");
    let (problem, remedy) = if bytes.starts_with(b"version https://git-lfs") {
        ("is a Git LFS pointer, not the file itself".to_owned(), "fetch it with git lfs pull, or download it again")
    } else if bytes.starts_with(b"PK") || bytes.starts_with(b"\x80\x02") {
        let remedy = "save it again as safetensors; of an adapter, give the directory";
        (format!("is a file of torch.save, no safetensors (qft reads it as {ADAPTER_WEIGHTS_TORCH} only)"), remedy)
    } else if !is_named {
        ("is no safetensors file".to_owned(), "give a .safetensors or .gguf file, or a model's directory")
    } else {
        (escaped(&error.to_string()), "download or save the file again: it is damaged or hostile")
    };
    Error::malformed(path, problem, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_instead_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content, part) in [
            ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            ("adapter_model.bin", "PK\u{3}\u{4}", "of an adapter, give the directory"),
            ("README.md", "# A model card, and no model", "is no safetensors file"),
            ("model.safetensors", "damaged", "download or save the file again"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let text = SafetensorsFile::open(&path).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }
}
