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
use crate::merge::{Float, TO_FLOATS};

/// A merged model, before any of it has a place in a file.
#[derive(Debug)]
pub(crate) struct Merged {
    /// Every tensor, by name.
    pub(crate) tensors: Vec<OutputTensor>,
    /// The text of config.json; `None` if the base has none.
    pub(crate) config: Option<String>,
    /// What was changed in it, for users.
    pub(crate) config_changes: Vec<String>,
    /// What deserves a look.
    pub(crate) warnings: Vec<String>,
    /// Whether no adapter changed the number of tokens.
    pub(crate) keeps_vocabulary: bool,
}

impl Merged {
    /// Merges the headers of `base` and `adapters`. Reads no values but those of embeddings that might stay tied.
    pub(crate) fn new(base: &Checkpoint, adapters: &[Adapter], dtype: Option<Float>) -> Result<Self> {
        let resolution = resolve(base, adapters, dtype.is_some())?;
        let classifier = classifier::find(base, adapters, &resolution.tensors)?;
        let mut warnings = base.warnings.clone();
        warnings.extend(resolution.warnings);
        warnings.extend(dtype.and_then(|dtype| uncast(base, &resolution.tensors, dtype)));
        let tensors = output_tensors(resolution.tensors, dtype);
        if let Some(tensor) = tensors.iter().find(|t| t.len().is_none()) {
            return Err(Error::inconsistent(
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
            warnings.push("the base has no config.json; loaders require one".to_owned());
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

/// Says that weights of a type that is no [`Float`] keep it where `dtype` is asked for; those of a quantized base are
/// meant to.
fn uncast(base: &Checkpoint, tensors: &BTreeMap<String, TensorSource>, dtype: Float) -> Option<String> {
    const FLOATS: [Dtype; 3] = [Dtype::F64, Dtype::F8_E4M3, Dtype::F8_E5M2];
    let mut kept = tensors.iter().filter(|(_, source)| FLOATS.contains(&source.dtype));
    let (name, source) = kept.next().filter(|_| base.quantization().is_none())?;
    Some(format!(
        "tensors that are not cast to {}: {}, the first of them {} of type {:?}; {TO_FLOATS}",
        dtype.name(),
        kept.count() + 1,
        escaped(name),
        source.dtype
    ))
}

/// Floats are cast, all else (integers, masks, quantized blocks) keeps its type.
fn output_type(stored: Dtype, wanted: Option<Float>) -> Dtype {
    match wanted {
        Some(float) if Float::of(stored).is_some() => float.dtype(),
        _ => stored,
    }
}
