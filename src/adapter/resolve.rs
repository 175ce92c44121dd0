//! From adapter tensors to changes of base tensors, by PEFT's rules. Every adapter tensor is used exactly once, or the
//! whole is refused with the names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::change::{TensorSource, float_of, same_values};
use super::keys::{self, Part};
use super::problem::{Problem, Way, refusal};
use super::rename::{Names, Place};
use super::tied::{MAY_BE_TIED, Pair};
use super::{Adapter, complete, heads, rename, tied};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result, escaped, shown};
use crate::merge::Float;
use crate::quantized::{self, Encoded};

/// What the merged model is made of.
#[derive(Debug)]
pub struct Resolution {
    /// Every output tensor by name.
    pub tensors: BTreeMap<String, TensorSource>,
    /// Embedding and head were tied in the base and are written apart: the config must say so.
    pub untied: bool,
    /// The number of rows of the embedding, if the adapters changed it.
    pub vocabulary: Option<usize>,
    /// What deserves a look.
    pub warnings: Vec<String>,
}

/// Resolves `adapters`, in this order, on `base`. `decode` has all weights decoded that can be, and not only those of a
/// base of which an adapter changes one. Reads no values but those of embeddings that might stay tied.
pub fn resolve(base: &Checkpoint, adapters: &[Adapter], decode: bool) -> Result<Resolution> {
    let shapes = base.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape()));
    if !base.tensors.is_empty() {
        gathered(&base.dir, shapes, |shape| *shape == [0], |empty, all| 2 * empty > all)?;
    }
    let mut resolver = Resolver {
        base,
        names: Names::of(base),
        pair: Pair::find(base),
        tensors: base.tensors.iter().map(|(name, t)| (name.clone(), TensorSource::untouched(t))).collect(),
        claimed: BTreeSet::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let encoded = quantized::decodable(base);
    resolver.decode(&encoded);
    for (index, adapter) in adapters.iter().enumerate() {
        let tensors = &adapter.file.header().tensors;
        let shapes = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
        gathered(adapter.file.path(), shapes.clone(), |shape| *shape == [0], |empty, _| empty > 0)?;
        gathered(adapter.file.path(), shapes, |shape| shape.contains(&0), |empty, all| 2 * empty > all)?;
        resolver.adapter(index, adapter);
    }
    resolver.keep_untouched(&encoded, decode);
    if !resolver.problems.is_empty() {
        return Err(refusal(base, adapters, &resolver.problems));
    }
    // A head that the adapter brings with the embedding's values is left out again.
    let brought = resolver.pair.as_ref().is_some_and(|pair| resolver.tensors.contains_key(&pair.head));
    let mut untied = resolver.pair.clone().is_some_and(|pair| pair.settle(base, &mut resolver.tensors));
    let kind = tied::model_type(base).unwrap_or_default();
    if untied && heads::is_bound(&kind) {
        return Err(Error::unsupported(
            format!(
                "embedding and head of a {} can't be written separately: the model's tie_word_embeddings has other \
                 effects, too",
                escaped(&kind)
            ),
            "serve the adapter beside the base with PEFT, or train without embedding and head",
        ));
    }
    if let Some(pair) = resolver.pair.as_ref().filter(|pair| pair.contradicts_flag) {
        untied = true;
        resolver.warnings.push(format!(
            "config.json ties {} to {}, but the file has separate values for it: they are kept, and \
             tie_word_embeddings becomes false (transformers 4 and vLLM would have ignored them)",
            escaped(&pair.head),
            escaped(&pair.embedding)
        ));
    }
    let vocabulary = resolver.vocabulary(brought)?;
    Ok(Resolution { tensors: resolver.tensors, untied, vocabulary, warnings: resolver.warnings })
}

/// Refuses a file or a model without tensors, or with `too_many` of all its tensors of an empty shape: sharded weights
/// that nobody gathered.
fn gathered<'t>(
    path: &Path,
    shapes: impl Iterator<Item = (&'t str, &'t [usize])>,
    is_empty: impl Fn(&&'t [usize]) -> bool,
    too_many: impl Fn(usize, usize) -> bool,
) -> Result<()> {
    let shapes: Vec<_> = shapes.collect();
    let empty: Vec<_> = shapes.iter().filter(|(_, shape)| is_empty(shape)).collect();
    let what = match empty.first() {
        _ if shapes.is_empty() => "holds no tensor".to_owned(),
        Some((name, shape)) if too_many(empty.len(), shapes.len()) => format!(
            "has {} empty tensors of {}, such as {} of shape {shape:?}",
            empty.len(),
            shapes.len(),
            escaped(name)
        ),
        _ => return Ok(()),
    };
    Err(Error::inconsistent(
        format!("{} {what}: it was saved without gathering the weights (DeepSpeed ZeRO-3, FSDP)", shown(path)),
        "save it again with stage3_gather_16bit_weights_on_model_save in DeepSpeed's config (FSDP: a full state dict), or \
         make its weights from the checkpoint beside it with DeepSpeed's zero_to_fp32.py",
    ))
}

/// The tensors of one wrapper of one module.
#[derive(Default)]
pub(super) struct Module<'a> {
    pub(super) parts: BTreeMap<Part, &'a Tensor>,
}

pub(super) struct Resolver<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) names: Names<'a>,
    pub(super) pair: Option<Pair>,
    pub(super) tensors: BTreeMap<String, TensorSource>,
    /// Output tensors that the adapter at hand has a delta for.
    pub(super) claimed: BTreeSet<String>,
    problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Resolver<'_> {
    /// Has the weights that can be decoded ready for deltas.
    fn decode(&mut self, encoded: &[Encoded]) {
        for Encoded { name, scales } in encoded {
            self.tensors.insert(name.clone(), TensorSource::decoded(&self.base.tensors[name], scales.clone()));
            self.tensors.remove(&quantized::scales_of(name));
        }
    }

    /// Leaves the base as it is stored, if no delta touched what was decoded: one model has one form.
    fn keep_untouched(&mut self, encoded: &[Encoded], decode: bool) {
        let touched = |name: &String| self.tensors.get(name).is_some_and(TensorSource::is_changed);
        if decode && !encoded.is_empty() || encoded.iter().any(|encoded| touched(&encoded.name)) {
            self.warnings.push(format!("{} weights are decoded from FP8 and written in bf16", encoded.len()));
            return;
        }
        for name in encoded.iter().flat_map(|encoded| [encoded.name.clone(), quantized::scales_of(&encoded.name)]) {
            let source = TensorSource::untouched(&self.base.tensors[&name]);
            self.tensors.insert(name, source);
        }
    }
}

/// An adapter with its place on the command line.
pub(super) type Indexed<'a> = (usize, &'a Adapter);

impl Resolver<'_> {
    fn adapter(&mut self, index: usize, adapter: &Adapter) {
        let tensors: Vec<Tensor> = adapter.file.tensors().collect();
        let mut modules: BTreeMap<(String, usize), Module<'_>> = BTreeMap::new();
        for tensor in &tensors {
            let Some(key) = keys::parse(tensor.name()) else {
                self.problem(tensor.name(), "is not a tensor of a LoRA that qft knows");
                continue;
            };
            let module = modules.entry((key.module, key.depth)).or_default();
            // PEFT saves a resized embedding by its own name and by that of `modules_to_save`.
            if let Some(other) = module.parts.insert(key.part, tensor)
                && (other.dtype() != tensor.dtype() || !same_values(other, tensor, tensor.dtype()))
            {
                self.problem(tensor.name(), "occurs twice, with two spellings and different values");
            }
        }
        for setting in &adapter.config.unknown {
            self.warnings.push(format!("adapter_config.json has a setting that qft does not know: {setting}"));
        }
        let by_module: Vec<_> = modules.into_iter().collect();
        // Values first: a delta is added to the value that the adapter brings.
        for ((path, _), module) in &by_module {
            for (part, tensor) in &module.parts {
                if let Part::Value(parameter) | Part::BaseLayer(parameter) = part {
                    let is_base_layer = matches!(part, Part::BaseLayer(_));
                    self.value((index, adapter), &format!("{path}.{parameter}"), is_base_layer, tensor);
                }
            }
        }
        self.claimed.clear();
        let mut experts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((path, _), module) in &by_module {
            self.module((index, adapter), path, module, experts.entry(path).or_default());
        }
        complete::check(self, adapter, &by_module);
    }

    /// A problem of an adapter that is not whole, or of another base.
    pub(super) fn problem(&mut self, tensor: &str, problem: impl AsRef<str>) {
        self.problem_of(Way::Base, tensor, problem);
    }

    pub(super) fn problem_of(&mut self, way: Way, tensor: &str, problem: impl AsRef<str>) {
        let text = format!("{}: {}", escaped(tensor), problem.as_ref());
        self.problems.push(Problem { text, lacking: None, way });
    }

    /// The output tensor that parameter `name` of the model class is; made if it is the head of a tied pair.
    pub(super) fn output(&mut self, name: &str) -> Option<String> {
        if let Some(found) = self.names.find(name) {
            return Some(found);
        }
        let pair = self.pair.as_ref()?;
        let spellings = rename::spellings(name).into_iter().chain(self.names.renamed(name));
        let head = spellings.into_iter().find(|spelling| pair.is_missing_head(spelling))?;
        let embedding = self.base.tensors.get(&pair.embedding)?;
        self.tensors.entry(head.clone()).or_insert_with(|| TensorSource::untouched(embedding));
        Some(head)
    }

    pub(super) fn no_such_tensor(&mut self, tensor: &str, name: &str) {
        if let Some(place) = self.names.place(name) {
            let tensors = place.tensors().iter().map(|tensor| escaped(tensor)).collect::<Vec<_>>().join(" and ");
            let name = escaped(name);
            let problem = match place {
                Place::Shared(_) => format!("{name} is the base's {tensors}, which another part of the model shares"),
                Place::Mixed(_) => format!("{name} is rows of the base's {tensors}, in another order"),
                Place::Rows(..) | Place::Joined(_) => {
                    format!("{name} is rows of the base's {tensors}, to which only an ordinary delta can be added")
                }
            };
            return self.problem_of(Way::Form, tensor, problem);
        }
        let text = format!("{}: the base has no {}", escaped(tensor), escaped(name));
        self.problems.push(Problem { text, lacking: Some(name.to_owned()), way: Way::Base });
    }

    /// `modules_to_save`, biases, and `base_layer` overrides: the adapter's value replaces the base's.
    fn value(&mut self, (index, adapter): Indexed<'_>, name: &str, is_base_layer: bool, tensor: &Tensor) {
        if let Err(problem) = float_of(tensor) {
            return self.problem_of(Way::Type, tensor.name(), problem);
        }
        let output = match self.output(name) {
            Some(output) => output,
            None if !adapter.config.saves(name) => return self.no_such_tensor(tensor.name(), name),
            // New to the base: a classifier on top of a language model. Another adapter may bring it too.
            None if self.tensors.contains_key(name) => name.to_owned(),
            None => {
                if is_fraction(adapter) {
                    return self.problem_of(Way::Weight, tensor.name(), "is new to the base, and can't be weighted");
                }
                self.warnings.push(format!("{} is new: the base has no such tensor", escaped(name)));
                let added = TensorSource { replaced_by: Some(index), ..TensorSource::untouched(tensor) };
                self.tensors.insert(name.to_owned(), added);
                return;
            }
        };
        let rows = self.base.config.as_ref().and_then(|config| config.get(&["vocab_size"])?.as_u64());
        let of_tokens = tensor.shape().len() == 2 && rows == tensor.shape().first().map(|rows| *rows as u64);
        if of_tokens && !is_base_layer && self.may_be_tied(&output) {
            return self.problem_of(Way::Own, tensor.name(), MAY_BE_TIED);
        }
        let is_embedding = self.pair.as_ref().is_some_and(|p| p.embedding == output || p.head == output);
        let Some(target) = self.tensors.get_mut(&output) else { return };
        let same_width = tensor.shape().get(1..) == target.source.shape().get(1..);
        if tensor.shape() != target.source.shape() && !(is_embedding && same_width) {
            let problem = format!(
                "has shape {:?}, the base's {} has {:?}",
                tensor.shape(),
                escaped(&output),
                target.source.shape()
            );
            return self.problem(tensor.name(), problem);
        }
        if Float::of(target.dtype).is_none() {
            let problem =
                format!("the base's {} is of type {:?}, which qft does not cast to", escaped(&output), target.dtype);
            return self.problem_of(Way::Type, tensor.name(), problem);
        }
        if is_fraction(adapter) || target.is_changed() {
            // Another adapter's word on the same tensor, or a fraction of a value, makes no sense; a copy of the value
            // that is there already does.
            if !same_values(tensor, &target.source, target.dtype) {
                let problem = "replaces a value, which can't be weighted or combined with another adapter";
                let way = if is_fraction(adapter) { Way::Weight } else { Way::Together };
                self.problem_of(way, tensor.name(), problem);
            }
            return;
        }
        target.source = tensor.clone();
        target.scales = None;
        target.replaced_by = Some(index);
        target.is_base_layer = is_base_layer;
    }

    /// Checks that embedding and head agree, and returns the new number of rows if it changed. `brought` says whether there
    /// were values for the head.
    fn vocabulary(&self, brought: bool) -> Result<Option<usize>> {
        let Some(pair) = &self.pair else { return Ok(None) };
        let rows = |name: &str| self.tensors.get(name).and_then(|t| t.source.shape().first().copied());
        let (embedding, head) = (rows(&pair.embedding), rows(&pair.head));
        let before = self.base.tensors.get(&pair.embedding).and_then(|t| t.shape().first().copied());
        if let (Some(e), Some(h)) = (embedding, head)
            && e != h
            && before == self.base.tensors.get(&pair.head).and_then(|t| t.shape().first().copied()).or(before)
        {
            return Err(Error::inconsistent(
                format!("the merged {} would have {e} rows and {} {h}", escaped(&pair.embedding), escaped(&pair.head)),
                "save the adapter again with both embeddings (save_embedding_layers=True), after resizing",
            ));
        }
        // PEFT ties the modules that it knows as embeddings; of others, the head's new rows are in no file.
        let value = self.tensors.get(&pair.embedding).filter(|t| t.replaced_by.is_some() && !t.is_base_layer);
        let by_name = ["embed_tokens.weight", "shared.weight"].iter().any(|name| pair.embedding.ends_with(name));
        if pair.tied && !by_name && value.is_some() && embedding != before && !brought {
            return Err(Error::inconsistent(
                format!(
                    "{} has a new number of rows, and the head's new rows are in no file",
                    escaped(&pair.embedding)
                ),
                "save the adapter again with the head in modules_to_save, too",
            ));
        }
        Ok(embedding.filter(|_| embedding != before))
    }
}

/// Whether an adapter's deltas are scaled by the user.
pub(super) fn is_fraction(adapter: &Adapter) -> bool {
    (adapter.weight - 1.0).abs() > 0.0
}
