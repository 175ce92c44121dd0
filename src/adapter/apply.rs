//! What an adapter does to one module: deltas of linear layers, embeddings and experts, biases, magnitudes, rows.
//! Each becomes a change of an output tensor, or a problem with its reason.

use std::collections::BTreeMap;
use std::ops::Range;

use super::change::{FactorPlan, LowRankPlan, float_of};
use super::keys::Part;
use super::problem::Way;
use super::resolve::{Indexed, Module, Resolver, is_fraction};
use super::tied::MAY_BE_TIED;
use super::{Adapter, heads, tied};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::escaped;
use crate::merge::{Float, NormAxis};

/// The two factors of a delta: A and B.
pub(super) type Pair<'a> = (&'a Tensor, &'a Tensor);

/// Why a change of an embedding is refused where the head is known.
const NORMALIZED: &str = "is for an embedding that its class normalizes, so the change does not belong to its weight";

impl Resolver<'_> {
    /// Whether PEFT's changes of the embedding come after a normalization.
    fn is_normalized(&self) -> bool {
        tied::model_type(self.base).is_some_and(|kind| heads::is_normalized(&kind))
    }

    /// Whether `output` is no side of the known pair, and a head that qft does not know may share its values.
    pub(super) fn may_be_tied(&self, output: &str) -> bool {
        let known = self.pair.as_ref().is_some_and(|pair| pair.embedding == output || pair.head == output);
        let kind = tied::model_type(self.base).unwrap_or_default();
        !known && !heads::is_alone(&kind, output) && tied::may_be_tied_unknown(self.base)
    }

    /// All else that an adapter says about a module: deltas, magnitudes, rows.
    pub(super) fn module(&mut self, adapter: Indexed<'_>, path: &str, module: &Module<'_>, experts: &mut Vec<String>) {
        let values = |part: &Part| matches!(part, Part::Value(_) | Part::BaseLayer(_) | Part::Untrained(_));
        for (part, tensor) in &module.parts {
            if let Part::Untrained(parameter) = part
                && !module.parts.contains_key(&Part::Value(parameter.clone()))
            {
                self.problem(tensor.name(), "is the untrained copy of a module whose trained values are missing");
            }
        }
        for (_, tensor) in module.parts.iter().filter(|(part, _)| !values(part)) {
            if let Err(problem) = float_of(tensor) {
                return self.problem_of(Way::Type, tensor.name(), problem);
            }
        }
        let part = |part: Part| module.parts.get(&part).copied();
        let weight = format!("{path}.weight");
        let axis = match (part(Part::A), part(Part::B), part(Part::EmbeddingA), part(Part::EmbeddingB)) {
            (None, None, None, None) => None,
            (Some(a), Some(b), None, None) => match self.output(&weight) {
                Some(output) => self.delta(Self::linear, adapter, path, output, (a, b)),
                None => return self.fused(adapter, path, module, (a, b), experts),
            },
            (None, None, Some(a), Some(b)) => match self.output(&weight) {
                Some(output) => self.delta(Self::embedding, adapter, path, output, (a, b)),
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
            (Some(m), None) if part(Part::A).or(part(Part::EmbeddingA)).is_none() => {
                self.problem(m.name(), "a magnitude without lora_A and lora_B");
            }
            (None, Some(_)) if adapter.1.config.use_dora => {
                self.problem(path, "use_dora is set, but lora_magnitude_vector is missing");
            }
            _ => {}
        }
        if let Some(rows) = part(Part::TokenRows) {
            self.token_rows(adapter, path, rows);
        }
    }

    /// Adds the delta of the pair `(a, b)` to `output` by `kind`, unless this adapter had one for it, under another path.
    fn delta<'a>(
        &mut self,
        kind: fn(&mut Self, Indexed<'_>, &str, &str, Pair<'a>) -> Option<NormAxis>,
        adapter: Indexed<'_>,
        path: &str,
        output: String,
        (a, b): Pair<'a>,
    ) -> Option<(String, NormAxis)> {
        if self.claimed.insert(output.clone()) {
            return kind(self, adapter, path, &output, (a, b)).map(|axis| (output, axis));
        }
        self.problem(a.name(), format!("is the second delta of {}, under another name", escaped(&output)));
        None
    }

    /// `W += s * B @ A`, for linear layers, `Conv1D` (stored transposed) and convolutions. Returns the axis of DoRA's
    /// norms, or `None` after reporting a problem.
    fn linear(
        &mut self,
        (index, adapter): Indexed<'_>,
        path: &str,
        output: &str,
        (a, b): Pair<'_>,
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
            let (hint, way) = if transposed {
                (" (stored transposed: fan_in_fan_out must be true in adapter_config.json)", Way::Own)
            } else {
                ("", Way::Base)
            };
            Err((
                way,
                format!("the delta is {out} x {input:?}, the base's {} is {base_shape:?}{hint}", escaped(output)),
            ))
        };
        match plan {
            Ok((rows, factors, axis)) => {
                self.term(index, output, (rows, None), factors, (rank, scale), a).then_some(axis)
            }
            Err((way, problem)) => {
                self.problem_of(way, a.name(), problem);
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
        (a, b): Pair<'_>,
    ) -> Option<NormAxis> {
        let (rank, scale) = adapter.config.scale(path, adapter.weight);
        let rank = usize::try_from(rank).ok()?;
        let base_shape = self.tensors.get(output)?.source.shape().to_vec();
        if self.may_be_tied(output) {
            self.problem_of(Way::Own, a.name(), MAY_BE_TIED);
            return None;
        }
        if self.is_normalized() {
            self.problem_of(Way::Form, a.name(), NORMALIZED);
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
        self.term(index, output, (0..rows, None), factors, (rank, scale), a).then_some(NormAxis::Column)
    }

    /// Adds a term to rows of an output tensor, whose leading axes are rows where that isn't the usual one; `false`
    /// after reporting a problem.
    pub(super) fn term(
        &mut self,
        adapter: usize,
        output: &str,
        (rows, row_axes): (Range<usize>, Option<usize>),
        (left, right): (Result<FactorPlan, String>, Result<FactorPlan, String>),
        (rank, scale): (usize, f32),
        named: &Tensor,
    ) -> bool {
        match (left, right) {
            (Ok(left), Ok(right)) => {
                self.push(output, LowRankPlan { adapter, rows, rank, scale, left, right }, row_axes, named)
            }
            (Err(problem), _) | (_, Err(problem)) => {
                self.problem(named.name(), problem);
                false
            }
        }
    }

    pub(super) fn push(&mut self, output: &str, term: LowRankPlan, row_axes: Option<usize>, named: &Tensor) -> bool {
        let Some(target) = self.tensors.get_mut(output) else { return false };
        let (way, problem) = if !target.is_float() {
            let (output, dtype) = (escaped(output), target.source.dtype());
            (Way::Type, format!("the base's {output} is of type {dtype:?}; only BF16, F16 and F32 can be merged"))
        } else if !term.scale.is_finite() {
            (Way::Base, "its scale alpha / r is not finite".to_owned())
        } else if let Some((.., other)) = target.rows {
            let way = if other == term.adapter { Way::Form } else { Way::Together };
            (way, "its module has both a LoRA and trainable token rows".to_owned())
        } else if target.magnitude.is_some() {
            let problem = "a DoRA on the same tensor comes first, and DoRA can't be combined with another adapter";
            (Way::Together, problem.to_owned())
        } else {
            target.row_axes = row_axes.unwrap_or(target.row_axes);
            target.low_rank.push(term);
            return true;
        };
        self.problem_of(way, named.name(), problem);
        false
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
        let factors = (FactorPlan::whole(bias, length, 1), Ok(FactorPlan::one()));
        self.term(index, &output, (0..length, Some(1)), factors, (1, scale), bias);
    }

    fn magnitude(&mut self, (index, adapter): Indexed<'_>, output: &str, magnitude: &Tensor, axis: NormAxis) {
        let Some(target) = self.tensors.get_mut(output) else { return };
        let (rows, columns) = target.matrix();
        let length = if axis == NormAxis::Row { rows } else { columns };
        let (way, problem) = if magnitude.elements() != length {
            (Way::Base, format!("has shape {:?}, {length} norms are required", magnitude.shape()))
        } else if target.low_rank.len() != 1 {
            (Way::Together, "DoRA can't be combined with another adapter on the same tensor".to_owned())
        } else if is_fraction(adapter) {
            (Way::Weight, "DoRA sets norms, which can't be weighted".to_owned())
        } else {
            target.magnitude = Some((magnitude.clone(), axis, index));
            return;
        };
        self.problem_of(way, magnitude.name(), problem);
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
        if self.may_be_tied(&output) {
            return self.problem_of(Way::Own, tensor.name(), MAY_BE_TIED);
        }
        if self.is_normalized() && self.pair.as_ref().is_none_or(|pair| pair.head != output) {
            return self.problem_of(Way::Form, tensor.name(), NORMALIZED);
        }
        let indices = self.token_indices(adapter, path, &output);
        let Some(target) = self.tensors.get_mut(&output) else { return };
        let map: BTreeMap<usize, usize> =
            indices.iter().enumerate().filter_map(|(from, to)| Some((usize::try_from(*to).ok()?, from))).collect();
        let (rows, columns) = target.matrix();
        let (way, problem) = if tensor.shape() != [indices.len(), columns] {
            let needed = format!("trainable_token_indices requires [{}, {columns}]", indices.len());
            (Way::Base, format!("has shape {:?}, {needed}", tensor.shape()))
        } else if map.len() != indices.len() || map.keys().any(|row| *row >= rows) {
            let output = escaped(&output);
            (Way::Base, format!("trainable_token_indices has a row twice, or one beyond the {rows} of {output}"))
        } else if Float::of(target.source.dtype()).is_none() {
            (Way::Type, "the base's tensor is not BF16, F16 or F32".to_owned())
        } else if target.is_changed() && (target.rows.is_some() || !target.low_rank.is_empty()) {
            let problem = "another adapter changes the same tensor; rows of values can't be combined with that";
            (Way::Together, problem.to_owned())
        } else if is_fraction(adapter) {
            (Way::Weight, "rows of values can't be weighted".to_owned())
        } else {
            target.rows = Some((tensor.clone(), map, index));
            return;
        };
        self.problem_of(way, tensor.name(), problem);
    }
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
