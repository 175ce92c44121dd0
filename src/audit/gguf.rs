//! The audit of a GGUF file: encode every tensor again from base and adapters, in the type that the file gives it, and
//! compare byte for byte. Its keys are held next door, in `keys`, where a manifest says that qft wrote them.

use std::collections::BTreeMap;

use super::Inputs;
use super::keys::{Keys, Source, compare_keys};
use super::manifest::claimed_provenance;
use super::weights::{Block, Difference, blocks, compare_blocks};
use crate::arch::GgufTensor;
use crate::checkpoint::ModelFiles;
use crate::checkpoint::companions;
use crate::error::{Error, Result, escaped, shown};
use crate::export::{EncodedTensor, Encoder, Merged, OutputTensor, Run, hf_tensors, lineage, small_files, values_of};
use crate::ggml::Quality;
use crate::gguf::convert;
use crate::gguf::convert::Conversion;
use crate::gguf::imatrix::{FILE_KEY, Imatrix};
use crate::gguf::mixture::{Candidate, Choices, Facts, FileType, choose, order};
use crate::gguf::{GgufModel, Metadata, ModelTensor, trimmed};
use crate::gpu::Assist;
use crate::stream::BLOCK_LEN;

/// What the audit of a GGUF model found.
#[derive(Debug, Default)]
pub(super) struct GgufFound {
    /// The first way in which it is not what its inputs give.
    pub(super) difference: Option<Difference>,
    /// What could not be checked.
    pub(super) unchecked: Vec<String>,
    /// Whether it names another base than the manifest.
    pub(super) contradicts: bool,
    /// Its mixture; `None` where keys are not compared.
    pub(super) mixture: Option<FileType>,
    /// How good the encoding of each tensor is.
    pub(super) quality: BTreeMap<String, Quality>,
}

/// Compares `model` with what its inputs give; `imatrix` weighed the errors of its columns, if one did.
pub(super) fn audit_gguf(
    model: &GgufModel,
    imatrix: Option<&Imatrix>,
    inputs: &Inputs<'_>,
    how: &Run<'_>,
) -> Result<GgufFound> {
    let first = model.files.first().map(|file| file.path().to_owned()).unwrap_or_default();
    let weighted = model.metadata.get(FILE_KEY).is_some();
    if weighted && imatrix.is_none() {
        return Err(Error::invalid(
            format!("{} was made with an imatrix, which the audit requires, too", shown(&first)),
            "give it with ⟦imatrix⟧, as it was given to export",
        ));
    }
    let Merged { tensors: merged, config, .. } = Merged::new(inputs.base, inputs.adapters, inputs.dtype)?;
    let dirs: Vec<_> = inputs.adapters.iter().map(|adapter| adapter.dir.as_path()).collect();
    let dir = first.parent().and_then(|dir| dir.canonicalize().ok()).unwrap_or_default();
    let files = ModelFiles {
        directory: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        config: config.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
        paths: small_files(
            inputs.base,
            inputs.adapters,
            &companions(&inputs.base.dir, &dirs, inputs.tokenizer)?.files,
        )?,
    };
    let all: Vec<&OutputTensor> = merged.iter().collect();
    let tensors = hf_tensors(&all);
    let conversion = convert::convert(&files, &tensors, &convert::Options::default())?;
    let by_name: BTreeMap<&str, &OutputTensor> = merged.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut result = GgufFound::default();
    if let Some(claims) = inputs.claims {
        let claimed = claimed_provenance(claims);
        let lineages = [&claimed, inputs.provenance].map(|provenance| lineage(provenance, inputs.adapters));
        let source = Source { files: &files, tensors: &tensors, lineages };
        let Keys { problem, unchecked, mixture, contradicts, expected } = compare_keys(model, &source)?;
        let file = first.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let told = unchecked.into_iter().map(|line| format!("{}: {}", escaped(&file), escaped(&line)));
        (result.unchecked, result.mixture, result.contradicts) = (told.collect(), mixture, contradicts);
        if let Some(problem) = problem {
            return Ok(GgufFound { difference: Some(Difference::File { file, problem }), ..result });
        }
        if let Some(mixture) = mixture {
            let others = chosen_otherwise(model, &conversion, &by_name, &expected, mixture, weighted)?;
            result.unchecked.extend(others.map(|line| format!("{}: {line}", escaped(&file))));
        }
    }
    let stored: BTreeMap<&str, &ModelTensor> =
        model.tensors.iter().map(|tensor| (tensor.info().name.as_str(), tensor)).collect();
    if let Some(difference) = compare_forms(&stored, &conversion.tensors) {
        return Ok(GgufFound { difference: Some(difference), ..result });
    }
    let expected = conversion.tensors.into_iter().map(|tensor| {
        let info = stored[tensor.name.as_str()].info();
        let (_, values) = values_of(tensor.rows, &by_name)?;
        let imatrix = imatrix.filter(|_| weighted && info.kind.is_quantized());
        let columns = info.shape.last().copied().unwrap_or(1);
        let matrices = info.shape.iter().rev().skip(2).product();
        let weights = imatrix.map(|imatrix| imatrix.weights_for(&info.name, columns, matrices)).transpose()?.flatten();
        Ok(EncodedTensor {
            name: info.name.clone(),
            shape: info.shape.clone(),
            kind: info.kind,
            instead_of: None,
            values,
            importance: weights.map(<[f32]>::to_vec),
            offset: 0,
            len: info.len as u64,
        })
    });
    let expected = expected.collect::<Result<Vec<_>>>()?;
    let measured = inputs.claims.is_some();
    let encoder = |t| Encoder::new(t, (t.len as usize).div_ceil(BLOCK_LEN), measured, inputs.overflow, how.vector);
    let encoders = expected.iter().map(encoder).collect::<Result<Vec<_>>>()?;
    result.difference = compare_blocks(&blocks(expected.iter().map(|t| t.len)), how, |block, buffer| {
        let (tensor, encoder) = (&expected[block.tensor], &encoders[block.tensor]);
        compare(tensor, encoder, stored[tensor.name.as_str()], block, buffer)
    })?;
    let qualities = expected.iter().zip(&encoders);
    result.quality = qualities.filter_map(|(t, encoder)| Some((t.name.clone(), encoder.quality()?))).collect();
    Ok(result)
}

/// Says how many tensors have another type than `mixture` chooses by itself: any of them may have been asked for.
fn chosen_otherwise(
    model: &GgufModel,
    conversion: &Conversion,
    merged: &BTreeMap<&str, &OutputTensor>,
    keys: &Metadata,
    mixture: FileType,
    weighted: bool,
) -> Result<Option<String>> {
    let names: Vec<&str> = conversion.tensors.iter().map(|t| t.name.as_str()).collect();
    let mut candidates = Vec::new();
    for tensor in order(&names).into_iter().map(|i| &conversion.tensors[i]) {
        let (source, _) = values_of(tensor.rows.clone(), merged)?;
        let GgufTensor { name, shape, always_f32, .. } = tensor;
        candidates.push(Candidate { name, shape, source, always_f32: *always_f32 });
    }
    let chosen = choose(&candidates, &Facts::of(keys)?, &Choices::of(mixture), weighted)?;
    let kinds: BTreeMap<&str, _> = model.tensors.iter().map(|t| (t.info().name.as_str(), t.info().kind)).collect();
    let other =
        candidates.iter().zip(&chosen).filter(|(c, choice)| kinds.get(c.name).is_some_and(|k| *k != choice.kind));
    let count = other.count();
    Ok((count > 0).then(|| {
        format!(
            "the types of {count} of its tensors, which {mixture} alone does not choose: flags may have chosen them"
        )
    }))
}

/// Names and shapes.
fn compare_forms(stored: &BTreeMap<&str, &ModelTensor>, expected: &[GgufTensor]) -> Option<Difference> {
    for tensor in expected {
        let Some(found) = stored.get(tensor.name.as_str()) else {
            return Some(Difference::Missing { tensor: tensor.name.clone() });
        };
        let shape = &found.info().shape;
        if trimmed(shape) != trimmed(&tensor.shape) {
            let (expected, found) = (format!("{:?}", tensor.shape), format!("{shape:?}"));
            return Some(Difference::Form { tensor: tensor.name.clone(), expected, found });
        }
    }
    let known = |name: &str| expected.iter().any(|tensor| tensor.name == name);
    let extra = if stored.len() > expected.len() { stored.keys().find(|name| !known(name)) } else { None };
    extra.map(|name| Difference::Unexpected { tensor: escaped(name) })
}

fn compare(
    tensor: &EncodedTensor,
    encoder: &Encoder<'_>,
    stored: &ModelTensor,
    block: &Block,
    buffer: &mut Vec<u8>,
) -> Result<Option<Difference>> {
    buffer.resize(block.bytes.len(), 0);
    encoder.fill(block.bytes.clone(), buffer, &mut Assist::none())?;
    stored.prefetch(block.bytes.start, block.bytes.len());
    let found = &stored.bytes()[block.bytes.clone()];
    let Some(at) = found.iter().zip(buffer.iter()).position(|(a, b)| a != b) else { return Ok(None) };
    let element = ((block.bytes.start + at) / tensor.kind.block_bytes() * tensor.kind.block_len()) as u64;
    let columns = tensor.columns().max(1) as u64;
    let show = |byte: u8| format!("byte 0x{byte:02x} of its {} block", tensor.kind);
    Ok(Some(Difference::Value {
        tensor: tensor.name.clone(),
        row: element / columns,
        column: element % columns,
        expected: show(buffer[at]),
        found: show(found[at]),
    }))
}
