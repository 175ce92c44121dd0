//! The merged model: every tensor and its config, as base, adapters and a type to cast to give them. The plan of an export
//! and both audits start here, so that none can mean another model.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::classifier;
use super::config_edit::{Edits, edit_config};
use super::shard::OutputTensor;
use crate::adapter::{Adapter, TensorSource, resolve};
use crate::checkpoint::{Checkpoint, is_quantized};
use crate::error::{Error, Result, escaped};
use crate::merge::Float;

/// A merged model, before any of it has a place in a file.
#[derive(Debug)]
pub(super) struct Merged {
    /// Every tensor, by name.
    pub(super) tensors: Vec<OutputTensor>,
    /// The text of config.json; `None` if the base has none.
    pub(super) config: Option<String>,
    /// What was changed in it, for people.
    pub(super) config_changes: Vec<String>,
    /// What deserves a look.
    pub(super) warnings: Vec<String>,
    /// Whether no adapter changed the number of tokens.
    pub(super) keeps_vocabulary: bool,
}

impl Merged {
    /// Merges the headers of `base` and `adapters`. Reads no values but those of embeddings that might stay tied.
    pub(super) fn new(base: &Checkpoint, adapters: &[Adapter], dtype: Option<Float>) -> Result<Self> {
        let resolution = resolve(base, adapters)?;
        let classifier = classifier::find(base, adapters, &resolution.tensors)?;
        let mut warnings = base.warnings.clone();
        warnings.extend(resolution.warnings);
        let tensors = output_tensors(resolution.tensors, dtype);
        if let Some(tensor) = tensors.iter().find(|t| t.len().is_none()) {
            return Err(Error::refused(
                format!("tensor {} is too large", escaped(&tensor.name)),
                "check the base's header",
            ));
        }
        let edits = Edits {
            dtype,
            untied: resolution.untied,
            vocabulary: resolution.vocabulary,
            classifier,
            plain: tensors.iter().all(|tensor| !is_quantized(tensor.dtype)),
        };
        let (config, config_changes) = edit_config(base, &edits);
        if config.is_none() {
            warnings.push("the base has no config.json; loaders will need one".to_owned());
        }
        let keeps_vocabulary = resolution.vocabulary.is_none();
        Ok(Self { tensors, config, config_changes, warnings, keeps_vocabulary })
    }
}

/// The tensors of the output, without a place, cast to `dtype` where one is wanted.
fn output_tensors(tensors: BTreeMap<String, TensorSource>, dtype: Option<Float>) -> Vec<OutputTensor> {
    let cast = |(name, source): (String, TensorSource)| OutputTensor {
        dtype: output_type(source.dtype, dtype),
        shape: source.source.shape().to_vec(),
        name,
        source,
    };
    tensors.into_iter().map(cast).collect()
}

/// Floats are cast, all else (integers, masks, quantized blocks) keeps its type.
fn output_type(stored: Dtype, wanted: Option<Float>) -> Dtype {
    match wanted {
        Some(float) if Float::of(stored).is_some() => float.dtype(),
        _ => stored,
    }
}
