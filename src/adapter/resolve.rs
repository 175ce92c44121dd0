//! From adapter tensors to changes of base tensors, by PEFT's rules. Every adapter tensor is used exactly once, or the
//! whole is refused with the names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::change::{FactorPlan, LowRankPlan, TensorSource, float_of};
use super::keys::{self, Part};
use super::tied::Pair;
use super::{Adapter, complete, experts, rename, tied};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result, escaped, shown};
use crate::merge::{Float, Merge, NormAxis, Overflow, Vector};
use safetensors::Dtype;

/// Problems that a refusal lists; the rest is counted.
const LISTED: usize = 12;

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

/// Resolves `adapters`, in this order, on `base`. Reads no values but those of embeddings that might stay tied.
pub fn resolve(base: &Checkpoint, adapters: &[Adapter]) -> Result<Resolution> {
    let mut resolver = Resolver {
        base,
        pair: Pair::find(base),
        tensors: base.tensors.iter().map(|(name, t)| (name.clone(), TensorSource::untouched(t))).collect(),
        claimed: BTreeSet::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    if let Some(method) = base.quantization().filter(|_| !adapters.is_empty()) {
        let problem = format!("the base {} is quantized ({method})", shown(&base.dir));
        return Err(Error::refused(problem, "give the 16-bit model that it was made from as --base"));
    }
    for (index, adapter) in adapters.iter().enumerate() {
        resolver.adapter(index, adapter);
    }
    if !resolver.problems.is_empty() {
        return Err(refusal(base, &resolver.problems));
    }
    let untied = resolver.pair.clone().is_some_and(|pair| pair.settle(base, &mut resolver.tensors));
    let vocabulary = resolver.vocabulary()?;
    Ok(Resolution { tensors: resolver.tensors, untied, vocabulary, warnings: resolver.warnings })
}

/// Something about an adapter that can't be merged.
pub(super) struct Problem {
    text: String,
    /// The name that the base lacks, if that is the problem: its neighbours are listed.
    lacking: Option<String>,
}

fn refusal(base: &Checkpoint, problems: &[Problem]) -> Error {
    let mut text = format!("the adapter can't be merged into {}: {} problems", shown(&base.dir), problems.len());
    for Problem { text: problem, lacking } in problems.iter().take(LISTED) {
        text.push_str("\n  ");
        text.push_str(problem);
        let near = lacking.as_ref().map(|name| rename::nearest(&base.tensors, name)).unwrap_or_default();
        if !near.is_empty() {
            text.push_str("; nearest: ");
            text.push_str(&near.iter().map(|name| escaped(name)).collect::<Vec<_>>().join(", "));
        }
    }
    if problems.len() > LISTED {
        text.push_str(&format!("\n  and {} more", problems.len() - LISTED));
    }
    Error::refused(text, "check that the adapter is whole and was trained on this base (adapter_config.json names it)")
}

/// The tensors of one wrapper of one module.
#[derive(Default)]
pub(super) struct Module<'a> {
    pub(super) parts: BTreeMap<Part, &'a Tensor>,
}

pub(super) struct Resolver<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) pair: Option<Pair>,
    pub(super) tensors: BTreeMap<String, TensorSource>,
    /// Output tensors that the adapter at hand has a delta for.
    claimed: BTreeSet<String>,
    problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// An adapter with its place on the command line.
type Indexed<'a> = (usize, &'a Adapter);

impl Resolver<'_> {
    fn adapter(&mut self, index: usize, adapter: &Adapter) {
        let tensors: Vec<Tensor> = adapter.file.tensors().collect();
        let mut modules: BTreeMap<(String, usize), Module<'_>> = BTreeMap::new();
        for tensor in &tensors {
            let Some(key) = keys::parse(tensor.name()) else {
                self.problem(tensor.name(), "is no tensor of a LoRA that qft knows");
                continue;
            };
            let module = modules.entry((key.module, key.depth)).or_default();
            if module.parts.insert(key.part, tensor).is_some() {
                self.problem(tensor.name(), "is there twice, under two spellings");
            }
        }
        if tensors.is_empty() {
            let problem = "holds no tensor: it was saved without gathering the weights (DeepSpeed ZeRO-3, FSDP)";
            self.problem(&adapter.file.name(), problem);
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

    pub(super) fn problem(&mut self, tensor: &str, problem: impl AsRef<str>) {
        let text = format!("{}: {}", escaped(tensor), problem.as_ref());
        self.problems.push(Problem { text, lacking: None });
    }

    /// The output tensor that parameter `name` of the model class is; made if it is the head of a tied pair.
    fn output(&mut self, name: &str) -> Option<String> {
        if let Some(found) = rename::find(&self.base.tensors, name) {
            return Some(found);
        }
        let pair = self.pair.as_ref()?;
        let head = rename::spellings(name).into_iter().find(|spelling| pair.is_missing_head(spelling))?;
        let embedding = self.base.tensors.get(&pair.embedding)?;
        self.tensors.entry(head.clone()).or_insert_with(|| TensorSource::untouched(embedding));
        Some(head)
    }

    pub(super) fn no_such_tensor(&mut self, tensor: &str, name: &str) {
        let text = format!("{}: the base has no {}", escaped(tensor), escaped(name));
        self.problems.push(Problem { text, lacking: Some(name.to_owned()) });
    }

    /// `modules_to_save`, biases, and `base_layer` overrides: the adapter's value replaces the base's.
    fn value(&mut self, (index, adapter): Indexed<'_>, name: &str, is_base_layer: bool, tensor: &Tensor) {
        if let Err(problem) = float_of(tensor) {
            return self.problem(tensor.name(), problem);
        }
        let output = match self.output(name) {
            Some(output) => output,
            None if !adapter.config.saves(name) => return self.no_such_tensor(tensor.name(), name),
            // New to the base: a classifier on top of a language model. Another adapter may bring it too.
            None if self.tensors.contains_key(name) => name.to_owned(),
            None => {
                if is_fraction(adapter) {
                    return self.problem(tensor.name(), "is new to the base, and can't be weighted");
                }
                self.warnings.push(format!("{} is new: the base has no such tensor", escaped(name)));
                let added = TensorSource { replaced_by: Some(index), ..TensorSource::untouched(tensor) };
                self.tensors.insert(name.to_owned(), added);
                return;
            }
        };
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
            return self.problem(tensor.name(), problem);
        }
        if is_fraction(adapter) || target.is_changed() {
            // Another adapter's word on the same tensor, or a fraction of a value, makes no sense; a copy of the value
            // that is there already does.
            if !same_values(tensor, &target.source, target.dtype) {
                let problem = "replaces a value, which can't be weighted or combined with another adapter";
                self.problem(tensor.name(), problem);
            }
            return;
        }
        target.source = tensor.clone();
        target.replaced_by = Some(index);
        target.is_base_layer = is_base_layer;
    }

    /// All else that an adapter says about a module: deltas, magnitudes, rows.
    fn module(&mut self, adapter: Indexed<'_>, path: &str, module: &Module<'_>, experts: &mut Vec<String>) {
        let part = |part: Part| module.parts.get(&part).copied();
        let weight = format!("{path}.weight");
        let axis = match (part(Part::A), part(Part::B), part(Part::EmbeddingA), part(Part::EmbeddingB)) {
            (None, None, None, None) => None,
            (Some(a), Some(b), None, None) => match self.output(&weight) {
                Some(output) => {
                    let axis = self.claim(&output, a).then(|| self.linear(adapter, path, &output, (a, b))).flatten();
                    axis.map(|axis| (output, axis))
                }
                None => return self.expert_pair(adapter, path, module, (a, b), experts),
            },
            (None, None, Some(a), Some(b)) => match self.output(&weight) {
                Some(output) => {
                    let axis = self.claim(&output, a).then(|| self.embedding(adapter, path, &output, (a, b))).flatten();
                    axis.map(|axis| (output, axis))
                }
                None => return self.no_such_tensor(a.name(), &weight),
            },
            _ => {
                let names: Vec<_> = module.parts.values().map(|t| escaped(t.name())).collect();
                return self.problem(&names.join(", "), "the other factor of the pair is missing");
            }
        };
        if let Some(bias) = part(Part::BBias) {
            self.bias(adapter, path, bias, axis.is_some());
        }
        match (part(Part::Magnitude), axis) {
            (Some(m), Some((output, axis))) => self.magnitude(adapter, &output, m, axis),
            (Some(m), None) => self.problem(m.name(), "a magnitude without lora_A and lora_B"),
            (None, Some(_)) if adapter.1.config.use_dora => {
                self.problem(path, "use_dora is set, but lora_magnitude_vector is missing");
            }
            (None, _) => {}
        }
        if let Some(rows) = part(Part::TokenRows) {
            self.token_rows(adapter, path, rows);
        }
    }

    /// Notes that this adapter has a delta for `output`; `false` if it had one before, under another path.
    fn claim(&mut self, output: &str, named: &Tensor) -> bool {
        let fresh = self.claimed.insert(output.to_owned());
        if !fresh {
            self.problem(named.name(), format!("is the second delta of {}, under another name", escaped(output)));
        }
        fresh
    }

    /// `W += s * B @ A`, for linear layers, `Conv1D` (stored transposed) and convolutions. Returns the axis of DoRA's
    /// norms, or `None` after reporting a problem.
    fn linear(
        &mut self,
        (index, adapter): Indexed<'_>,
        path: &str,
        output: &str,
        (a, b): (&Tensor, &Tensor),
    ) -> Option<NormAxis> {
        let (rank, scale) = adapter.config.scale(path, adapter.weight);
        let rank = usize::try_from(rank).ok()?;
        let base_shape = self.tensors.get(output)?.source.shape().to_vec();
        let (&[a_rank, ref input @ ..], &[out, b_rank, ref kernel @ ..]) = (a.shape(), b.shape()) else {
            self.problem(
                a.name(),
                format!("has shape {:?}, its lora_B {:?}: they must be matrices", a.shape(), b.shape()),
            );
            return None;
        };
        if (a_rank, b_rank) != (rank, rank) || kernel.iter().any(|k| *k != 1) {
            let problem =
                format!("has shape {:?} and lora_B {:?}, adapter_config.json says rank {rank}", a.shape(), b.shape());
            self.problem(a.name(), problem);
            return None;
        }
        let plain = base_shape.split_first() == Some((&out, input));
        let transposed = matches!((input, &base_shape[..]), (&[i], &[r, c]) if (r, c) == (i, out));
        let columns: usize = input.iter().product();
        // PEFT rewrites the flag for each module, so that the saved one is that of the last.
        let is_conv1d = conv1d(self.base, path).unwrap_or(adapter.config.fan_in_fan_out);
        let plan = if is_conv1d && transposed {
            let factors = (FactorPlan::transposed(a, columns, rank), FactorPlan::transposed(b, rank, out));
            Ok((0..columns, factors, NormAxis::Column))
        } else if plain {
            Ok((0..out, (FactorPlan::whole(b, out, rank), FactorPlan::whole(a, rank, columns)), NormAxis::Row))
        } else {
            let hint = if transposed {
                " (stored transposed: fan_in_fan_out must be true in adapter_config.json)"
            } else {
                ""
            };
            Err(format!("the delta is {out} x {input:?}, the base's {} is {base_shape:?}{hint}", escaped(output)))
        };
        match plan {
            Ok((rows, factors, axis)) => self.term(index, output, rows, factors, (rank, scale), a).then_some(axis),
            Err(problem) => {
                self.problem(a.name(), problem);
                None
            }
        }
    }

    /// `W[v, d] += s * sum over k of B[d, k] * A[k, v]`.
    fn embedding(
        &mut self,
        (index, adapter): Indexed<'_>,
        path: &str,
        output: &str,
        (a, b): (&Tensor, &Tensor),
    ) -> Option<NormAxis> {
        let (rank, scale) = adapter.config.scale(path, adapter.weight);
        let rank = usize::try_from(rank).ok()?;
        let base_shape = self.tensors.get(output)?.source.shape().to_vec();
        if self.pair.as_ref().is_none_or(|pair| pair.embedding != output) && tied::may_be_tied_unknown(self.base) {
            let problem = "is for an embedding that may be tied to a head by a rule that qft does not know";
            self.problem(a.name(), format!("{problem}; set tie_word_embeddings in the base's config.json"));
            return None;
        }
        let fits = matches!(base_shape[..], [v, d] if a.shape() == [rank, v] && b.shape() == [d, rank]);
        if !fits {
            let problem = format!(
                "has shape {:?} and lora_embedding_B {:?}, which do not fit rank {rank} and the base's {} {base_shape:?}",
                a.shape(),
                b.shape(),
                escaped(output)
            );
            self.problem(a.name(), problem);
            return None;
        }
        let (rows, columns) = (base_shape[0], base_shape[1]);
        let factors = (FactorPlan::transposed(a, rows, rank), FactorPlan::transposed(b, rank, columns));
        self.term(index, output, 0..rows, factors, (rank, scale), a).then_some(NormAxis::Column)
    }

    /// Adds a term to an output tensor; `false` after reporting a problem.
    fn term(
        &mut self,
        adapter: usize,
        output: &str,
        rows: Range<usize>,
        (left, right): (Result<FactorPlan, String>, Result<FactorPlan, String>),
        (rank, scale): (usize, f32),
        named: &Tensor,
    ) -> bool {
        match (left, right) {
            (Ok(left), Ok(right)) => {
                self.push(output, LowRankPlan { adapter, rows, rank, scale, left, right }, None, named)
            }
            (Err(problem), _) | (_, Err(problem)) => {
                self.problem(named.name(), problem);
                false
            }
        }
    }

    fn push(&mut self, output: &str, term: LowRankPlan, row_axes: Option<usize>, named: &Tensor) -> bool {
        let Some(target) = self.tensors.get_mut(output) else { return false };
        let problem = if Float::of(target.source.dtype()).is_none() {
            format!(
                "the base's {} is of type {:?}; only BF16, F16 and F32 can be merged",
                escaped(output),
                target.source.dtype()
            )
        } else if !term.scale.is_finite() {
            "its scale alpha / r is not finite".to_owned()
        } else if target.rows.is_some() {
            "its module has both a LoRA and trainable token rows".to_owned()
        } else if target.magnitude.is_some() {
            "a DoRA on the same tensor comes first, and DoRA can't be combined with another adapter".to_owned()
        } else {
            target.row_axes = row_axes.unwrap_or(target.row_axes);
            target.low_rank.push(term);
            return true;
        };
        self.problem(named.name(), problem);
        false
    }

    /// A pair for a module without a weight of its own: experts.
    fn expert_pair(
        &mut self,
        (index, adapter): Indexed<'_>,
        path: &str,
        module: &Module<'_>,
        (a, b): (&Tensor, &Tensor),
        claimed: &mut Vec<String>,
    ) {
        if module.parts.keys().any(|part| matches!(part, Part::BBias | Part::Magnitude | Part::TokenRows)) {
            return self.no_such_tensor(a.name(), &format!("{path}.weight"));
        }
        if let Some((output, rows)) = experts::slice_of_fused(self.base, path) {
            return self.expert_slice((index, adapter), path, &output, rows, (a, b));
        }
        if adapter.config.target_parameters.is_empty() {
            return self.no_such_tensor(a.name(), &format!("{path}.weight"));
        }
        match experts::resolve(self.base, &adapter.config, (index, adapter.weight), path, (a, b), claimed) {
            Ok((parameter, terms)) => {
                claimed.push(parameter);
                for term in terms {
                    if !self.push(&term.tensor, term.term, Some(term.row_axes), a) {
                        return;
                    }
                }
            }
            Err(problem) => self.problem(a.name(), problem),
        }
    }

    /// A pair for one expert, on a base that stores the experts fused.
    fn expert_slice(
        &mut self,
        (index, adapter): Indexed<'_>,
        path: &str,
        output: &str,
        rows: Range<usize>,
        (a, b): (&Tensor, &Tensor),
    ) {
        let (rank, scale) = adapter.config.scale(path, adapter.weight);
        let columns = self.tensors.get(output).and_then(|t| t.source.shape().last().copied()).unwrap_or(0);
        let rank = usize::try_from(rank).unwrap_or(usize::MAX);
        if a.shape() != [rank, columns] || b.shape() != [rows.len(), rank] {
            let problem =
                format!("has shape {:?} and lora_B {:?}, which do not fit {}", a.shape(), b.shape(), escaped(output));
            return self.problem(a.name(), problem);
        }
        match (FactorPlan::whole(b, rows.len(), rank), FactorPlan::whole(a, rank, columns)) {
            (Ok(left), Ok(right)) => {
                self.push(output, LowRankPlan { adapter: index, rows, rank, scale, left, right }, Some(2), a);
            }
            (Err(problem), _) | (_, Err(problem)) => self.problem(a.name(), problem),
        }
    }

    /// `lora_bias`: `b += s * B.bias`.
    fn bias(&mut self, (index, adapter): Indexed<'_>, path: &str, bias: &Tensor, has_delta: bool) {
        let name = format!("{path}.bias");
        let Some(output) = self.output(&name).filter(|_| has_delta) else {
            return self.no_such_tensor(bias.name(), &name);
        };
        let length = self.tensors.get(&output).map_or(0, |t| t.source.elements());
        if bias.shape() != [length] {
            return self.problem(bias.name(), format!("has shape {:?}, the base's bias has [{length}]", bias.shape()));
        }
        let (_, scale) = adapter.config.scale(path, adapter.weight);
        match FactorPlan::whole(bias, length, 1) {
            Ok(left) => {
                let term =
                    LowRankPlan { adapter: index, rows: 0..length, rank: 1, scale, left, right: FactorPlan::one() };
                self.push(&output, term, Some(1), bias);
            }
            Err(problem) => self.problem(bias.name(), problem),
        }
    }

    fn magnitude(&mut self, (index, adapter): Indexed<'_>, output: &str, magnitude: &Tensor, axis: NormAxis) {
        let Some(target) = self.tensors.get_mut(output) else { return };
        let (rows, columns) = target.matrix();
        let length = if axis == NormAxis::Row { rows } else { columns };
        let problem = if magnitude.elements() != length {
            format!("has shape {:?}, {length} norms are needed", magnitude.shape())
        } else if let Err(problem) = float_of(magnitude) {
            problem
        } else if target.low_rank.len() != 1 {
            "DoRA can't be combined with another adapter on the same tensor".to_owned()
        } else if is_fraction(adapter) {
            "DoRA sets norms, which can't be weighted".to_owned()
        } else {
            target.magnitude = Some((magnitude.clone(), axis, index));
            return;
        };
        self.problem(magnitude.name(), problem);
    }

    /// The rows that the config names for a module; for one side of a pair, else those of the other side.
    fn token_indices(&self, adapter: &Adapter, path: &str, output: &str) -> Vec<u64> {
        let other = self.pair.as_ref().and_then(|pair| match output {
            name if name == pair.head => pair.embedding.strip_suffix(".weight"),
            name if name == pair.embedding => pair.head.strip_suffix(".weight"),
            _ => None,
        });
        let rows = [Some(path), other].into_iter().flatten().find_map(|module| adapter.config.token_rows(module));
        rows.unwrap_or_default().to_vec()
    }

    /// `trainable_token_indices`: rows of values, not deltas.
    fn token_rows(&mut self, (index, adapter): Indexed<'_>, path: &str, tensor: &Tensor) {
        let name = format!("{path}.weight");
        let Some(output) = self.output(&name) else { return self.no_such_tensor(tensor.name(), &name) };
        let indices = self.token_indices(adapter, path, &output);
        let Some(target) = self.tensors.get_mut(&output) else { return };
        let map: BTreeMap<usize, usize> =
            indices.iter().enumerate().filter_map(|(from, to)| Some((usize::try_from(*to).ok()?, from))).collect();
        let (rows, columns) = target.matrix();
        let problem = if tensor.shape() != [indices.len(), columns] {
            format!("has shape {:?}, trainable_token_indices needs [{}, {columns}]", tensor.shape(), indices.len())
        } else if map.len() != indices.len() || map.keys().any(|row| *row >= rows) {
            format!("trainable_token_indices has a row twice, or one beyond the {rows} of {}", escaped(&output))
        } else if let Err(problem) = float_of(tensor)
            .and(Float::of(target.source.dtype()).ok_or("the base's tensor is not BF16, F16 or F32".to_owned()))
        {
            problem
        } else if target.is_changed() && (target.rows.is_some() || !target.low_rank.is_empty()) {
            "another adapter changes the same tensor; rows of values can't be combined with that".to_owned()
        } else if is_fraction(adapter) {
            "rows of values can't be weighted".to_owned()
        } else {
            target.rows = Some((tensor.clone(), map, index));
            return;
        };
        self.problem(tensor.name(), problem);
    }

    /// Checks that embedding and head agree, and returns the new number of rows if it changed.
    fn vocabulary(&self) -> Result<Option<usize>> {
        let Some(pair) = &self.pair else { return Ok(None) };
        let rows = |name: &str| self.tensors.get(name).and_then(|t| t.source.shape().first().copied());
        let (embedding, head) = (rows(&pair.embedding), rows(&pair.head));
        let before = self.base.tensors.get(&pair.embedding).and_then(|t| t.shape().first().copied());
        if let (Some(e), Some(h)) = (embedding, head)
            && e != h
            && before == self.base.tensors.get(&pair.head).and_then(|t| t.shape().first().copied()).or(before)
        {
            return Err(Error::refused(
                format!("the merged {} would have {e} rows and {} {h}", escaped(&pair.embedding), escaped(&pair.head)),
                "save the adapter again with both embeddings (save_embedding_layers=True), after resizing",
            ));
        }
        Ok(embedding.filter(|_| embedding != before))
    }
}

/// Whether an adapter's deltas are scaled by the user.
fn is_fraction(adapter: &Adapter) -> bool {
    (adapter.weight - 1.0).abs() > 0.0
}

/// Whether two tensors of one shape hold the same values once both are of type `stored`.
fn same_values(a: &Tensor, b: &Tensor, stored: Dtype) -> bool {
    if a.shape() != b.shape() {
        return false;
    }
    if a.dtype() == b.dtype() {
        return a.bytes() == b.bytes();
    }
    let rounded = |tensor: &Tensor| -> Option<Vec<u8>> {
        let (from, to) = (Float::of(tensor.dtype())?, Float::of(stored)?);
        let mut out = vec![0; tensor.elements() * to.size()];
        let cast = Merge::cast(tensor.bytes(), from, to, tensor.elements().max(1), Overflow::Clamp, Vector::detect());
        cast.run(0..tensor.elements(), &mut out).ok().map(|()| out)
    };
    rounded(a).is_some_and(|a| rounded(b) == Some(a))
}

/// Families whose linear layers are `Conv1D`, stored `(in, out)`, and the names of these layers.
const CONV1D_TYPES: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
const CONV1D_LAYERS: [&str; 4] = ["c_attn", "q_attn", "c_proj", "c_fc"];

/// Whether a layer is a `Conv1D`, where the family of the base tells.
fn conv1d(base: &Checkpoint, path: &str) -> Option<bool> {
    let family = base.config.as_ref()?.string(&["model_type"])?;
    let layer = path.rsplit('.').next().unwrap_or(path);
    CONV1D_TYPES.contains(&family.as_str()).then(|| CONV1D_LAYERS.contains(&layer))
}
