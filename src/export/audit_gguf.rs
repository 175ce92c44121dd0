//! The audit of a GGUF file: encode every tensor anew from base and adapters, in the type that the file gives it, and
//! compare byte for byte; and the keys that say what the model computes and how it cuts texts. Which types a mixture
//! chooses is not audited; neither are names and lineage.

use std::collections::BTreeMap;

use super::Run;
use super::audit::{Audit, Block, Difference, blocks, compare_blocks};
use super::encoded::{EncodedTensor, Encoder};
use super::gguf::{hf_tensors, values_of, vocabulary};
use super::merged::Merged;
use super::plan::small_files;
use super::shard::OutputTensor;
use crate::checkpoint::companions;
use crate::error::{Error, Result, escaped, shown};
use crate::gguf::arch::Conversion;
use crate::gguf::imatrix::{FILE_KEY, Imatrix};
use crate::gguf::{GgufModel, GgufTensor, Metadata, ModelFiles, ModelTensor, Value, arch, trimmed};
use crate::gpu::Assist;
use crate::stream::BLOCK_LEN;

/// Compares `model` with what its inputs give; `imatrix` weighed the errors of its columns, if one did. `None` if every
/// byte agrees.
pub fn audit_gguf(
    model: &GgufModel,
    imatrix: Option<&Imatrix>,
    inputs: &Audit<'_>,
    how: &Run<'_>,
) -> Result<Option<Difference>> {
    let weighted = model.metadata.get(FILE_KEY).is_some();
    if weighted && imatrix.is_none() {
        let path = model.files.first().map(|file| shown(file.path())).unwrap_or_default();
        return Err(Error::refused(
            format!("{path} was made with an imatrix, which the audit needs too"),
            "give it with --imatrix, as it was given to export",
        ));
    }
    let Merged { tensors: merged, config, .. } = Merged::new(inputs.base, inputs.adapters, inputs.dtype)?;
    let dirs: Vec<_> = inputs.adapters.iter().map(|adapter| adapter.dir.as_path()).collect();
    let files = ModelFiles {
        directory: String::new(),
        config: config.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
        paths: small_files(
            inputs.base,
            inputs.adapters,
            &companions(&inputs.base.dir, &dirs, inputs.tokenizer)?.files,
        )?,
    };
    let all: Vec<&OutputTensor> = merged.iter().collect();
    let conversion = arch::convert(&files, &hf_tensors(&all), &arch::Options::default())?;
    if inputs.files
        && let Some(problem) = compare_keys(&model.metadata, &files, &conversion)?
    {
        let path = model.files.first().map(|file| file.path().to_owned()).unwrap_or_default();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Some(Difference::File { file, problem }));
    }
    let stored: BTreeMap<&str, &ModelTensor> =
        model.tensors.iter().map(|tensor| (tensor.info().name.as_str(), tensor)).collect();
    if let Some(difference) = compare_forms(&stored, &conversion.tensors) {
        return Ok(Some(difference));
    }
    let by_name: BTreeMap<&str, &OutputTensor> = merged.iter().map(|t| (t.name.as_str(), t)).collect();
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
    let encoder = |t| Encoder::new(t, (t.len as usize).div_ceil(BLOCK_LEN), false, inputs.overflow, how.vector);
    let encoders = expected.iter().map(encoder).collect::<Result<Vec<_>>>()?;
    compare_blocks(&blocks(expected.iter().map(|t| t.len)), how, |block, buffer| {
        let (tensor, encoder) = (&expected[block.tensor], &encoders[block.tensor]);
        compare(tensor, encoder, stored[tensor.name.as_str()], block, buffer)
    })
}

/// Beginnings of keys that depend on more than base and adapters: names, lineage, the mixture, and parts.
const APART: [&str; 4] = ["general.", "qft.", "quantize.", "split."];

/// What of `found` is not what the inputs give. How texts are cut is named by the user, and so by the file.
fn compare_keys(found: &Metadata, files: &ModelFiles, conversion: &Conversion) -> Result<Option<String>> {
    let pre = found.get("tokenizer.ggml.pre").and_then(Value::as_str);
    let vocabulary = vocabulary(files, pre)?;
    let sections = [conversion.before_vocab.clone(), vocabulary.keys, conversion.after_vocab.clone()];
    let expected: Metadata = sections.into_iter().flatten().collect();
    let compared = |key: &str| !APART.iter().any(|beginning| key.starts_with(beginning));
    let other = expected.iter().find(|(key, value)| compared(key) && found.get(key) != Some(*value));
    if let Some((key, _)) = other {
        return Ok(Some(format!("has another {} than the base and the adapters give", escaped(key))));
    }
    let extra = found.iter().find(|(key, _)| compared(key) && expected.get(key).is_none());
    Ok(extra.map(|(key, _)| format!("has a key that comes from neither the base nor the adapters: {}", escaped(key))))
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
