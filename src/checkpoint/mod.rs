//! Reading a model: its directory, its safetensors files (mapped), their index, config.json and companion files.
//! Knows nothing of LoRA.

mod companion;
mod config;
mod header;
mod instead;
mod locate;
mod model_files;
mod names;
mod order;
mod pickle;
mod shard_index;
mod tensor;
mod torch;
mod wanted;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;

pub use companion::{Companion, CompanionSource, Companions, LeftOut, TokenizerChoice, companions, tokenizer_files};
pub use config::{ConfigText, TEXT_SECTIONS};
pub(crate) use header::dtype_name;
pub use header::{BadHeader, Header, MAX_HEADER_LEN, MAX_TENSORS, TensorInfo};
pub use locate::Locator;
pub use model_files::ModelFiles;
pub use names::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH, INDEX_FILE, SINGLE_FILE};
pub use order::compare as compare_names;
pub use shard_index::{ShardIndex, resolve_member};
pub(crate) use tensor::release;
pub use tensor::{SafetensorsFile, Tensor};
pub use weights::{WeightFiles, stale_shards};

use crate::error::{Error, Result, escaped};

/// A model on disk: every tensor by name, and its config.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model's directory.
    pub dir: PathBuf,
    /// The mapped weight files, in the order of their names.
    pub files: Vec<Arc<SafetensorsFile>>,
    /// All tensors.
    pub tensors: BTreeMap<String, Tensor>,
    /// `config.json`, if there is one.
    pub config: Option<ConfigText>,
    /// What is odd about the directory, but does no harm.
    pub warnings: Vec<String>,
}

impl Checkpoint {
    /// Opens the model in `dir`: `model.safetensors`, or the shards of `model.safetensors.index.json`, as
    /// transformers chooses between them, or numbered shards that lack their index. Reads headers only.
    pub fn open(dir: &Path) -> Result<Self> {
        let WeightFiles { names, index, mut warnings } = WeightFiles::find(dir)?;
        let mut files = Vec::with_capacity(names.len());
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for name in &names {
            if index.is_some() && dir.join(name).symlink_metadata().is_err() {
                let problem = format!("names {}, which is missing", escaped(name));
                let remedy = "download that file from the source of the others";
                return Err(Error::malformed(&dir.join(INDEX_FILE), problem, remedy));
            }
            let file = SafetensorsFile::open(&dir.join(name))?;
            for tensor in file.tensors() {
                if let Some(other) = tensors.insert(tensor.name().to_owned(), tensor.clone()) {
                    let problem =
                        format!("tensor {} is in {} too", escaped(tensor.name()), escaped(&other.file().name()));
                    let remedy = "the shards are from different exports: download or save the model again";
                    return Err(Error::malformed(file.path(), problem, remedy));
                }
            }
            files.push(file);
        }
        for stale in stale_shards(dir, &names)? {
            warnings.push(format!("{stale} belongs to no index and is not read"));
        }
        let config = match member_if_there(dir, "config.json")? {
            Some(path) => ConfigText::read(&path)?,
            None => None,
        };
        if let Some(index) = &index {
            warnings.extend(weights::check_index(&dir.join(INDEX_FILE), index, &tensors, config.as_ref())?);
        }
        Ok(Self { dir: dir.to_owned(), files, tensors, config, warnings })
    }

    /// How the model is quantized, by its config; `None` if it isn't, whatever the config still says.
    pub fn quantization(&self) -> Option<String> {
        if !self.tensors.values().any(|tensor| is_quantized(tensor.dtype())) {
            return None;
        }
        let config = self.config.as_ref()?.get(&["quantization_config"]).filter(|v| !v.is_null())?;
        Some(escaped(config.get("quant_method").and_then(|m| m.as_str()).unwrap_or("unknown method")))
    }

    /// How many values all tensors have.
    pub fn weights(&self) -> u64 {
        self.tensors.values().map(|t| t.shape().iter().map(|length| *length as u64).product::<u64>()).sum()
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes().len() as u64).sum()
    }
}

/// Whether a tensor of this type holds codes of quantized weights: every form of them has at least one such tensor.
pub fn is_quantized(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32 | Dtype::F64 | Dtype::I64 | Dtype::BOOL)
}

/// The path of file `name` of the model in `dir`, if there is one; see [`resolve_member`].
pub fn member_if_there(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    match dir.join(name).symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => resolve_member(dir, name).map(Some),
    }
}
