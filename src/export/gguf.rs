//! Planning GGUF files: from a merged Hugging Face model or from another GGUF file to every byte's place, one output a
//! mixture. Pure; `encoded` makes the bytes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use safetensors::Dtype;

use super::coverage::{Coverage, Weighed};
use super::encoded::{EncodedTensor, GgufPart, Values, float_kind, no_floats};
use super::shard::OutputTensor;
use crate::arch::{HfTensor, Rows};
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result, escaped};
use crate::ggml::TensorType;
use crate::gguf::imatrix::{Imatrix, ImatrixInfo};
use crate::gguf::mixture::{Candidate, Choice, Choices, Facts, FileType, check_codecs, choose, finish_metadata, order};
use crate::gguf::vocab::{self, Vocab, VocabOptions};
use crate::gguf::{GgufModel, Metadata, TensorForm, check_plan, lay_out, split, trimmed, without_paths};
use crate::gguf::{Lineage, convert};
use crate::merge::Float;
use crate::parallel::both;
use crate::rules::turn_end_among;
use crate::size::ByteSize;

/// What the user chose for the GGUF files of a run.
#[derive(Debug, Clone)]
pub struct GgufOptions {
    /// One output each.
    pub choices: Vec<Choices>,
    /// Weights of the columns, and the name that the file goes by.
    pub imatrix: Option<Arc<(String, Imatrix)>>,
    /// Most tensor bytes of a part; one file if `None`.
    pub split: Option<ByteSize>,
    /// Name of the pre-tokenizer, where it can't be found.
    pub pre: Option<String>,
    /// `general.name`, where the directory's name won't do.
    pub name: Option<String>,
    /// Whether the errors of the encoding are measured. A release's manifest has them, so that they always are where a
    /// directory is written.
    pub measure: bool,
}

impl GgufOptions {
    /// One file for each of `mixtures`, each as it is.
    pub fn of(mixtures: &[FileType]) -> Self {
        let choices = mixtures.iter().map(|mixture| Choices::of(*mixture)).collect();
        Self { choices, imatrix: None, split: None, pre: None, name: None, measure: true }
    }
}

/// One output: a model in one file or several parts.
#[derive(Debug)]
pub struct GgufOutput {
    /// What was chosen for it.
    pub choices: Choices,
    /// One file, or its parts in order.
    pub parts: Vec<GgufPart>,
}

impl GgufOutput {
    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len).sum()
    }

    /// The bits that a weight takes on average.
    pub fn bits_per_weight(&self) -> f64 {
        let tensors = || self.parts.iter().flat_map(|part| &part.tensors);
        let weights: f64 = tensors().map(|t| t.shape.iter().product::<usize>() as f64).sum();
        tensors().map(|t| t.len as f64).sum::<f64>() * 8.0 / weights.max(1.0)
    }
}

/// A tensor before its type and place are known.
struct Unplaced {
    name: String,
    shape: Vec<usize>,
    /// Its type in the file that llama-quantize would read.
    source: TensorType,
    always_f32: bool,
    values: Values,
}

/// Plans the outputs of `options` for the model that `files` and `merged` are, whose tensors are in the order in which
/// the converter would meet them. `lineage` takes its time; `stem` names a file by its mixture. Returns warnings too.
pub(super) fn of_model(
    files: &ModelFiles,
    merged: &[&OutputTensor],
    lineage: impl FnOnce() -> Vec<Lineage> + Send,
    options: &GgufOptions,
    stem: &dyn Fn(&Choices) -> String,
) -> Result<(Vec<GgufOutput>, Vec<String>)> {
    let tensors = hf_tensors(merged);
    let by_name: BTreeMap<&str, &OutputTensor> = merged.iter().map(|t| (t.name.as_str(), *t)).collect();
    let vocabulary = || vocabulary(files, options.pre.as_deref());
    let (lineage, vocabulary) = both(lineage, vocabulary);
    let convert = |choices: &Choices| {
        let (file_type, name) = (choices.mixture.file_type_id(), options.name.clone());
        convert::convert(files, &tensors, &convert::Options { file_type, name, lineage: lineage.clone() })
    };
    let conversions = options.choices.iter().map(convert).collect::<Result<Vec<_>>>()?;
    let Vocab { keys, mut warnings, .. } = vocabulary?;
    // The last output takes the keys: they are hundreds of thousands of texts.
    let mut keys = std::iter::repeat_n(keys, options.choices.len());
    let mut outputs = Vec::new();
    for (choices, conversion) in options.choices.iter().zip(conversions) {
        let keys = keys.next().unwrap_or_default();
        let sections = [conversion.before_vocab, keys, conversion.after_vocab];
        let metadata: Metadata = sections.into_iter().flatten().collect();
        warnings.extend(conversion.warnings);
        if outputs.is_empty() {
            // Beside its type, every output has the same keys and tensors.
            let forms = conversion.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()));
            warnings.extend(check_plan(&metadata, forms)?);
        }
        let unplaced = conversion.tensors.into_iter().map(|tensor| {
            let (source, values) = values_of(tensor.rows, &by_name)?;
            Ok(Unplaced { name: tensor.name, shape: tensor.shape, source, always_f32: tensor.always_f32, values })
        });
        let unplaced = unplaced.collect::<Result<Vec<_>>>()?;
        // llama-quantize sorts; the converter, which makes the other types, does not.
        let quantized = choices.mixture.base_type().is_quantized();
        let (output, told) = place(unplaced, metadata, quantized, choices, options, &stem(choices))?;
        outputs.push(output);
        warnings.extend(told);
    }
    warnings.sort();
    warnings.dedup();
    Ok((outputs, warnings))
}

/// The tokenizer of the model that `files` are, which cuts texts as `pre` names.
pub(crate) fn vocabulary(files: &ModelFiles, pre: Option<&str>) -> Result<Vocab> {
    let (recipe, vocab_size) = convert::vocabulary(&files.config)?;
    let by_name = files.paths.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
    let turn = turn_end_among(&by_name);
    let turn_end = turn.as_ref().map(|turn| (turn.token.as_str(), turn.id));
    vocab::convert(files, &VocabOptions { pre, recipe, vocab_size, turn_end })
}

/// Names, types and shapes, as a conversion wants them.
pub(crate) fn hf_tensors(merged: &[&OutputTensor]) -> Vec<HfTensor> {
    merged.iter().map(|t| HfTensor { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() }).collect()
}

/// Where `rows` come from among the tensors of the merged model, and of which type they are there.
pub(crate) fn values_of(rows: Rows, merged: &BTreeMap<&str, &OutputTensor>) -> Result<(TensorType, Values)> {
    let (name, heads) = match rows {
        Rows::Values(values) => return Ok((TensorType::F32, Values::Made(values))),
        Rows::Tensor { name, heads } => (name, heads),
    };
    let Some(OutputTensor { source, dtype, .. }) = merged.get(name.as_str()) else { return Err(no_tensor(&name)) };
    let kind = kind_of(*dtype).ok_or_else(|| no_floats(&name, *dtype))?;
    Ok((kind, Values::Merged { name, source: Box::new(source.clone()), dtype: *dtype, heads }))
}

/// Plans what llama-quantize makes of `model`. Returns warnings too.
pub(super) fn of_gguf(
    model: &GgufModel,
    options: &GgufOptions,
    stem: &dyn Fn(&Choices) -> String,
) -> Result<(Vec<GgufOutput>, Vec<String>)> {
    let (metadata, mut warnings) = without_paths(model.metadata.clone());
    let forms = model.tensors.iter().map(|tensor| (tensor.info().name.as_str(), tensor.info().shape.as_slice()));
    warnings.extend(check_plan(&metadata, forms)?);
    let output = |choices: &Choices| {
        let unplaced = model.tensors.iter().map(|tensor| {
            let info = tensor.info();
            let (name, shape) = (info.name.clone(), info.shape.clone());
            Unplaced { name, shape, source: info.kind, always_f32: false, values: Values::Stored(tensor.clone()) }
        });
        place(unplaced.collect(), metadata.clone(), true, choices, options, &stem(choices))
    };
    let planned: Vec<(GgufOutput, Vec<String>)> = options.choices.iter().map(output).collect::<Result<_>>()?;
    let (outputs, told): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
    warnings.extend(told.into_iter().flatten());
    Ok((outputs, warnings))
}

/// Chooses types and gives every tensor its place. Returns warnings too.
fn place(
    mut tensors: Vec<Unplaced>,
    mut metadata: Metadata,
    as_quantize: bool,
    choices: &Choices,
    options: &GgufOptions,
    stem: &str,
) -> Result<(GgufOutput, Vec<String>)> {
    let imatrix = options.imatrix.as_deref().filter(|_| choices.mixture.base_type().is_quantized());
    let kinds = choose_all(&tensors, &metadata, choices, imatrix.is_some())?;
    let (mut importances, mut warnings) = (BTreeMap::new(), Vec::new());
    let mut info = None;
    if let Some((file, imatrix)) = imatrix {
        let weighed = weigh(imatrix, &tensors, &kinds)?;
        let names: HashSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let coverage = Coverage::of(imatrix, &weighed, |name| names.contains(name));
        warnings = coverage.check(file)?;
        importances = needed(weighed, &kinds)?;
        // What the file claims is what was used.
        let entries = coverage.used;
        info = (entries > 0).then(|| ImatrixInfo { entries, ..imatrix.info(file).without_paths() });
    }
    if as_quantize {
        metadata = finish_metadata(metadata, choices.mixture.file_type_id(), info.as_ref());
    }
    if as_quantize {
        let mut by_place: Vec<Option<Unplaced>> = tensors.into_iter().map(Some).collect();
        let names: Vec<String> = by_place.iter().flatten().map(|t| t.name.clone()).collect();
        tensors = order(&names).into_iter().filter_map(|i| by_place[i].take()).collect();
        tensors.iter_mut().for_each(|t| t.shape = trimmed(&t.shape).to_vec());
    }
    let kind = |t: &Unplaced| kinds[&t.name].kind;
    let forms: Vec<TensorForm<'_>> =
        tensors.iter().map(|t| TensorForm { name: &t.name, shape: &t.shape, kind: kind(t) }).collect();
    let mut layouts = Vec::new();
    let parts = options.split.map(|max| split(stem, &metadata, &forms, max.0)).transpose()?;
    match parts {
        Some(parts) if parts.len() > 1 => {
            for part in parts {
                layouts.push((part.name, lay_out(&part.metadata, &forms[part.tensors])?));
            }
        }
        _ => layouts.push((format!("{stem}.gguf"), lay_out(&metadata, &forms)?)),
    }
    let mut tensors = tensors.into_iter();
    let mut parts = Vec::new();
    for (name, layout) in layouts {
        let places = layout.offsets.iter().zip(&layout.lens);
        let placed = places.zip(&mut tensors).map(|((offset, len), tensor)| {
            let importance = importances.remove(&tensor.name);
            let Choice { kind, instead_of, .. } = kinds[&tensor.name];
            let Unplaced { name, shape, values, .. } = tensor;
            Ok(EncodedTensor { name, shape, kind, instead_of, values, importance, offset: *offset, len: *len })
        });
        let tensors = placed.collect::<Result<_>>()?;
        parts.push(GgufPart { name, header: layout.header, tensors, len: layout.total });
    }
    Ok((GgufOutput { choices: choices.clone(), parts }, warnings))
}

/// The type of every tensor, by name.
fn choose_all(
    tensors: &[Unplaced],
    metadata: &Metadata,
    choices: &Choices,
    has_imatrix: bool,
) -> Result<BTreeMap<String, Choice>> {
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    let candidates: Vec<Candidate<'_>> = order(&names)
        .into_iter()
        .map(|i| &tensors[i])
        .map(|t| Candidate { name: &t.name, shape: &t.shape, source: t.source, always_f32: t.always_f32 })
        .collect();
    let chosen = choose(&candidates, &Facts::of(metadata)?, choices, has_imatrix)?;
    check_codecs(&candidates, &chosen)?;
    Ok(candidates.iter().map(|c| c.name.to_owned()).zip(chosen).collect())
}

/// The weights of the columns of each tensor that is encoded in blocks.
fn weigh(imatrix: &Imatrix, tensors: &[Unplaced], kinds: &BTreeMap<String, Choice>) -> Result<Weighed> {
    let is_encoded = |tensor: &&Unplaced| {
        let kind = kinds[&tensor.name].kind;
        kind.is_quantized() && kind != tensor.source
    };
    let weights = |tensor: &Unplaced| {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let matrices = tensor.shape.iter().rev().skip(2).product();
        let weights = imatrix.weights_for(&tensor.name, columns, matrices)?;
        Ok((tensor.name.clone(), weights.map(<[f32]>::to_vec)))
    };
    tensors.iter().filter(is_encoded).map(weights).collect()
}

/// The weights that there are. Refuses a tensor without that needs them.
fn needed(weighed: Weighed, kinds: &BTreeMap<String, Choice>) -> Result<BTreeMap<String, Vec<f32>>> {
    let of = |(name, weights): (String, Option<Vec<f32>>)| {
        let choice = kinds[&name];
        if weights.is_none() && choice.needs_importance {
            let (name, kind) = (escaped(&name), choice.kind);
            return Err(Error::inconsistent(
                format!("tensor {name} as {kind} requires weights, and the imatrix has none for it"),
                "choose another type for it with ⟦tensor_type⟧, or make the imatrix again",
            ));
        }
        Ok(weights.map(|weights| (name, weights)))
    };
    weighed.into_iter().filter_map(|entry| of(entry).transpose()).collect()
}

/// The GGUF type of a float type.
fn kind_of(dtype: Dtype) -> Option<TensorType> {
    Float::of(dtype).map(float_kind)
}

fn no_tensor(name: &str) -> Error {
    Error::bug(
        format!("the conversion requires tensor {}, which is missing", escaped(name)),
        "report this: it is a bug",
    )
}
