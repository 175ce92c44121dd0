//! `qft-manifest.json` and `SHA256SUMS`: what a release is made of and how to check it. Neither has a time, a host or
//! a path, so that the same export gives the same bytes anywhere. `export` writes them, `verify` and `audit` read what
//! others may have written, member by member (`claims`). The format is described in docs/formats.md.

pub(crate) mod claims;
mod figures;
mod named;

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

pub use figures::{EncodedFile, EncodedForm, Figures, QualitySums, Summary, WorstTensor};
pub use named::Named;

use crate::checkpoint::TokenizerChoice;
use crate::digest::Hex;
use crate::merge::{Float, NormAxis, Overflow};

/// File name of the manifest.
pub const MANIFEST: &str = "qft-manifest.json";
/// File name of the checksums.
pub const CHECKSUMS: &str = "SHA256SUMS";
/// The manifest's `format`.
pub const FORMAT: &str = "qft-manifest/1";

/// All that a manifest says.
///
/// ```
/// let text = r#"{"format": "qft-manifest/1", "qft": "0.1.0",
///     "options": {"max_shard": 2000000000, "dtype": "bf16", "overflow": "refuse", "tokenizer": "auto"},
///     "base": {"repo": "org/base", "revision": null, "tensors": 1, "bytes": 8, "model_blake3": "ab",
///              "config_sha256": null, "tensor_blake3": {"norm": "cd"}},
///     "adapters": [], "config_changes": [], "files": {"model.safetensors": {"size": 96, "sha256": "ef"}},
///     "tensors": {"norm": {"file": "model.safetensors", "dtype": "BF16", "shape": [4], "source": {"base": "norm"}}}}"#;
/// let manifest: qft::manifest::Manifest = serde_json::from_str(text)?;
/// assert_eq!(manifest.options.max_shard, Some(2_000_000_000));
/// assert!(manifest.tensors["norm"].changes.is_empty());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// Version of the program that wrote it.
    pub qft: String,
    /// What the user chose, as far as it decides bytes.
    pub options: Options,
    /// What was merged into.
    pub base: Base,
    /// In the order in which they were applied.
    pub adapters: Vec<Adapter>,
    /// A line for each change of config.json and `generation_config.json`, for users.
    pub config_changes: Vec<String>,
    /// By name, every file but the manifest and the checksums.
    pub files: BTreeMap<String, File>,
    /// By name, every tensor of the merged model.
    pub tensors: BTreeMap<String, Tensor>,
    /// By name, every GGUF file in the order of writing; `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gguf: Option<Named<EncodedFile>>,
    /// Sums over the tensors of each GGUF model; `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gguf_quality: Option<Vec<QualitySums>>,
}

/// What the user chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Most tensor bytes of a safetensors file; `None` where none are written.
    pub max_shard: Option<u64>,
    /// Type that float tensors were cast to; `None` for their own.
    pub dtype: Option<Float>,
    /// What happened to a finite value beyond the output type.
    pub overflow: Overflow,
    /// Whose tokenizer the release has.
    pub tokenizer: TokenizerChoice,
}

/// The model that was merged into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its Hub id, if it was found by one.
    pub repo: Option<String>,
    /// Its commit, if it lay in the Hub's cache.
    pub revision: Option<String>,
    /// How many tensors it has.
    pub tensors: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// BLAKE3 over all tensors, whatever files they lie in.
    pub model_blake3: Hex,
    /// SHA-256 of its config.json, if it has one.
    pub config_sha256: Option<Hex>,
    /// BLAKE3 of each tensor's bytes, by name.
    pub tensor_blake3: BTreeMap<String, Hex>,
}

/// An adapter that was merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// Factor on its deltas.
    pub weight: f64,
    /// How many tensors it has.
    pub tensors: usize,
    /// Its config and its weights, by name.
    pub files: BTreeMap<String, Digest>,
}

/// The digest of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// SHA-256 of all its bytes.
    pub sha256: Hex,
}

/// A file of the release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// In bytes.
    pub size: u64,
    /// SHA-256 of all its bytes.
    pub sha256: Hex,
}

/// A tensor of the merged model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// The safetensors file that holds it; `None` where none are written.
    pub file: Option<String>,
    /// Its type there.
    pub dtype: Dtype,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// What it begins as.
    pub source: Source,
    /// What is done to it, in order; empty for a copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// Where the values of a tensor come from, before any change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// A value that an adapter brings whole.
    Adapter {
        /// Its place in `adapters`, from 0.
        adapter: usize,
        /// The tensor's name there.
        tensor: String,
    },
    /// A tensor of the base.
    Base {
        /// Its name there.
        base: String,
    },
}

/// A change of a tensor. An adapter is its place in `adapters`, from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are explained with their variants")]
pub enum Change {
    /// All values are the adapter's. A manifest says this as [`Source::Adapter`]; a plan lists it.
    Replaced { adapter: usize },
    /// `scale` times the product of two factors of that rank is added.
    LowRank { adapter: usize, rank: usize, scale: f64 },
    /// DoRA: every stored row or column is scaled to a trained norm.
    Dora { adapter: usize, norm: NormAxis },
    /// These rows are the adapter's.
    Rows { adapter: usize, rows: Vec<usize> },
    /// Values are rounded from this type to the tensor's.
    Cast { from: Dtype },
}

/// The text of `SHA256SUMS`, clean under `sha256sum -c`: of files by name, with their size and SHA-256.
pub(crate) fn checksums(files: &BTreeMap<String, (u64, Hex)>) -> String {
    files.iter().map(|(name, (_, digest))| format!("{digest}  {name}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn changes_and_sources_are_written_as_they_are_read() {
        let changes = json!([
            {"kind": "replaced", "adapter": 1},
            {"kind": "low-rank", "adapter": 0, "rank": 8, "scale": 0.5},
            {"kind": "dora", "adapter": 0, "norm": "column"},
            {"kind": "rows", "adapter": 2, "rows": [3, 5]},
            {"kind": "cast", "from": "F8_E4M3"},
        ]);
        let read: Vec<Change> = from_value(changes.clone()).unwrap();
        assert_eq!(read[4], Change::Cast { from: Dtype::F8_E4M3 });
        assert_eq!(json!(read).to_string(), changes.to_string());
        let sources = json!([{"base": "a"}, {"adapter": 0, "tensor": "b"}]);
        let read: Vec<Source> = from_value(sources.clone()).unwrap();
        assert_eq!(read[1], Source::Adapter { adapter: 0, tensor: "b".to_owned() });
        assert_eq!(json!(read).to_string(), sources.to_string());
    }

    #[test]
    fn names_keep_their_order_and_sums_may_have_no_figures() {
        let text = r#"{"z":{"type":"Q8_0","tensors":{"b":{"type":"F32"},"a":{"type":"Q8_0"}}},"y":{"type":"F32","tensors":{}}}"#;
        let read: Named<EncodedFile> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert_eq!(read.get("z").and_then(|file| file.tensors.get("a")).map(|t| t.kind.as_str()), Some("Q8_0"));
        let sum = json!({"name": "all", "tensors": 1, "exact": 1, "weights": 4, "bytes": 16, "bits_per_weight": 32.0});
        let read: Summary = from_value(sum.clone()).unwrap();
        assert_eq!((read.figures, json!(read)), (None, sum));
    }
}
