//! `target_parameters`: LoRA on the 3-D parameters of mixture-of-experts layers, in both layouts, on bases that store
//! the experts fused or one by one; and the reverse, adapters of single experts on a fused base.
//! Formulas: PEFT's `ParamWrapper.get_delta_weight` (`peft/tuners/lora/layer.py`).

use std::collections::BTreeSet;
use std::ops::Range;

use super::change::{FactorPlan, LowRankPlan};
use super::config::AdapterConfig;
use super::rename::{Names, Place};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::merge::Layout;

/// Fused parameters, and the names that their parts have where experts are stored one by one: transformers' own,
/// Mixtral's, and others'. The parts lie one after another along the first axis of an expert's matrix.
const FUSED: [(&str, &[[&str; 3]]); 3] = [
    ("gate_up_proj", &[["gate_proj", "w1", "fc1"], ["up_proj", "w3", "fc3"]]),
    ("down_proj", &[["down_proj", "w2", "fc2"]]),
    // Experts without a gate.
    ("up_proj", &[["up_proj", "w1", "fc1"]]),
];

/// Modules that are lists of the experts' linear layers in classes for quantized weights (gpt-oss), and the parameter
/// that holds all of them elsewhere.
const LISTS: [(&str, &str); 2] = [("gate_up_projs", "gate_up_proj"), ("down_projs", "down_proj")];

/// `model_type`s whose expert modules say `is_transposed`: they store `(experts, in, out)`.
const TRANSPOSED: [&str; 4] = ["gpt_oss", "openai_privacy_filter", "aria", "aria_text"];

/// Where one expert's rows of a parameter lie on disk.
struct Piece {
    /// The tensor on disk.
    tensor: String,
    expert: usize,
    /// Which rows of the expert's matrix the piece is.
    part: Range<usize>,
    /// Where these rows begin in the tensor on disk.
    first_row: usize,
}

/// A 3-D parameter as a model class sees it: `experts` matrices of `rows` x `columns`.
struct Parameter {
    experts: usize,
    rows: usize,
    columns: usize,
    pieces: Vec<Piece>,
    /// Leading axes that are rows on disk: two if fused.
    row_axes: usize,
}

/// One term for one tensor on disk.
pub(super) struct ExpertTerm {
    /// The base tensor's name.
    pub(super) tensor: String,
    /// See [`super::TensorSource::row_axes`].
    pub(super) row_axes: usize,
    /// The term.
    pub(super) term: LowRankPlan,
}

/// The terms of the pair `a`, `b` of module `module`, and the parameter that they belong to. `taken` are parameters of
/// the module that other wrappers have claimed.
pub(super) fn resolve(
    (base, names): (&Checkpoint, &Names<'_>),
    config: &AdapterConfig,
    (adapter, weight): (usize, f64),
    module: &str,
    (a, b): (&Tensor, &Tensor),
    taken: &[String],
) -> Result<(String, Vec<ExpertTerm>), String> {
    // PEFT names a parameter twice where `target_modules` and `target_parameters` both meant it; it has one wrapper.
    let parameters: BTreeSet<String> = candidates(config, module).filter(|name| !taken.contains(name)).collect();
    let in_out = config.experts_in_out() || is_transposed(base);
    // The expected layout first; the other only where the shapes leave no choice.
    let fitting = |in_out: bool| {
        let fitting = parameters.iter().filter_map(|name| {
            let parameter = find_parameter((base, names), module, name)?;
            let (rank, scale) = config.scale(&format!("{module}.{name}"), weight);
            let rank = usize::try_from(rank).ok()?;
            parameter.fits(a, b, rank, in_out).then(|| (name.clone(), parameter, rank, scale, in_out))
        });
        fitting.collect::<Vec<_>>()
    };
    let mut fits = fitting(in_out);
    if fits.is_empty() {
        fits = fitting(!in_out);
    }
    let (name, parameter, rank, scale, in_out) = match fits.len() {
        1 => fits.remove(0),
        0 => return Err(format!("the shapes {:?} and {:?} fit none of its target_parameters", a.shape(), b.shape())),
        _ => return Err("its target_parameters have equal shapes, so qft can't distinguish them".to_owned()),
    };
    let terms = parameter.terms(adapter, (a, b), rank, scale, in_out)?;
    Ok((name, terms))
}

/// The names of `module`'s own parameters that `target_parameters` names.
pub(super) fn candidates<'a>(config: &'a AdapterConfig, module: &'a str) -> impl Iterator<Item = String> + 'a {
    config.target_parameters.iter().filter_map(move |target| {
        let (path, name) = target.rsplit_once('.').unwrap_or(("", target));
        let matches = path.is_empty() || module == path || module.ends_with(&format!(".{path}"));
        matches.then(|| name.to_owned())
    })
}

fn is_transposed(base: &Checkpoint) -> bool {
    let model_type = base.config.as_ref().and_then(|c| c.string(&["model_type"]));
    model_type.is_some_and(|model_type| TRANSPOSED.contains(&model_type.as_str()))
}

fn find_parameter((base, names): (&Checkpoint, &Names<'_>), module: &str, name: &str) -> Option<Parameter> {
    if let Some(tensor) = names.find(&format!("{module}.{name}")) {
        let &[experts, rows, columns] = base.tensors[&tensor].shape() else { return None };
        // A shape without bytes may claim any number of experts.
        if base.tensors[&tensor].bytes().is_empty() {
            return None;
        }
        let piece = |expert| Piece { tensor: tensor.clone(), expert, part: 0..rows, first_row: expert * rows };
        return Some(Parameter { experts, rows, columns, pieces: (0..experts).map(piece).collect(), row_axes: 2 });
    }
    if let Some(Place::Joined(tensors)) = names.place(&format!("{module}.{name}")) {
        return stacked(base, &tensors);
    }
    let (_, parts) = FUSED.iter().find(|(fused, _)| *fused == name)?;
    let mut pieces = Vec::new();
    let mut shape = None;
    for expert in 0.. {
        let mut row = 0;
        for spellings in *parts {
            let on_disk = |part: &&str| names.find(&format!("{module}.{expert}.{part}.weight"));
            let Some(tensor) = spellings.iter().find_map(on_disk) else { break };
            let &[rows, columns] = base.tensors[&tensor].shape() else { return None };
            if shape.is_some_and(|(_, c)| c != columns) {
                return None;
            }
            pieces.push(Piece { tensor, expert, part: row..row + rows, first_row: 0 });
            row += rows;
            shape = Some((if expert == 0 { row } else { shape?.0 }, columns));
        }
        if row == 0 {
            break;
        }
        if shape?.0 != row {
            return None;
        }
    }
    let (rows, columns) = shape?;
    Some(Parameter { experts: pieces.len() / parts.len(), rows, columns, pieces, row_axes: 1 })
}

/// A parameter whose parts are tensors of all experts each.
fn stacked(base: &Checkpoint, tensors: &[String]) -> Option<Parameter> {
    let mut all: Option<Parameter> = None;
    for name in tensors {
        let tensor = &base.tensors[name];
        let &[experts, rows, columns] = tensor.shape() else { return None };
        // A shape without bytes may claim any number of experts.
        if tensor.bytes().is_empty() {
            return None;
        }
        let first = Parameter { experts, rows: 0, columns, pieces: Vec::new(), row_axes: 2 };
        let all = all.get_or_insert(first);
        if (all.experts, all.columns) != (experts, columns) {
            return None;
        }
        let part = all.rows..all.rows + rows;
        let piece = |expert| Piece { tensor: name.clone(), expert, part: part.clone(), first_row: expert * rows };
        all.pieces.extend((0..experts).map(piece));
        all.rows = part.end;
    }
    all
}

impl Parameter {
    /// Whether the factors are those of this parameter in the layout `(experts, in, out)` or `(experts, out, in)`.
    fn fits(&self, a: &Tensor, b: &Tensor, rank: usize, in_out: bool) -> bool {
        let (out, input) = if in_out { (self.columns, self.rows) } else { (self.rows, self.columns) };
        let Some(stacked) = self.experts.checked_mul(rank) else { return false };
        a.shape() == [stacked, input] && b.shape() == [out, stacked]
    }

    /// `A` is `[experts * r, in]`, expert slowest; `B` is `[out, r * experts]`, expert fastest.
    fn terms(
        self,
        adapter: usize,
        (a, b): (&Tensor, &Tensor),
        rank: usize,
        scale: f32,
        in_out: bool,
    ) -> Result<Vec<ExpertTerm>, String> {
        let stacked = self.experts * rank;
        let input = if in_out { self.rows } else { self.columns };
        let term = |piece: Piece| {
            let Piece { tensor, expert, part, first_row } = piece;
            let a_layout = Layout { offset: expert * rank * input, row_stride: input, column_stride: 1 };
            let b_layout = Layout { offset: expert, row_stride: stacked, column_stride: self.experts };
            let transposed = |l: Layout| Layout { row_stride: l.column_stride, column_stride: l.row_stride, ..l };
            let from_row = |l: Layout| Layout { offset: l.offset + part.start * l.row_stride, ..l };
            let (left, right) = if in_out {
                ((a, from_row(transposed(a_layout))), (b, transposed(b_layout)))
            } else {
                ((b, from_row(b_layout)), (a, a_layout))
            };
            let term = LowRankPlan {
                adapter,
                rows: first_row..first_row + part.len(),
                rank,
                scale,
                left: FactorPlan::new(left.0, left.1, part.len(), rank)?,
                right: FactorPlan::new(right.0, right.1, rank, self.columns)?,
            };
            Ok(ExpertTerm { tensor, row_axes: self.row_axes, term })
        };
        self.pieces.into_iter().map(term).collect()
    }
}

/// What the module of one expert is on a base that stores the experts fused.
pub(super) struct Slice {
    /// The base tensor's name.
    pub(super) tensor: String,
    /// Its rows, both leading axes taken as one.
    pub(super) rows: Range<usize>,
    /// Whether they are stored `(in, out)`.
    pub(super) transposed: bool,
}

/// The rows of a fused base tensor that module `...experts.N.gate_proj` and its like, or `...experts.gate_up_projs.N`,
/// stand for.
pub(super) fn slice_of_fused((base, names): (&Checkpoint, &Names<'_>), module: &str) -> Option<Slice> {
    let (path, last) = module.rsplit_once('.')?;
    let (path, before) = path.rsplit_once('.')?;
    let stack = |name: &str| {
        let tensor = names.find(&format!("{path}.{name}"))?;
        let found = &base.tensors[&tensor];
        let &[experts, rows, _] = found.shape() else { return None };
        // A shape without bytes may claim any number of experts.
        (!found.bytes().is_empty()).then_some((tensor, experts, rows))
    };
    let transposed = is_transposed(base);
    if let Some((_, name)) = LISTS.iter().find(|(list, _)| *list == before) {
        let expert: usize = last.parse().ok()?;
        let (tensor, experts, rows) = stack(name)?;
        return (expert < experts).then(|| Slice { tensor, rows: expert * rows..(expert + 1) * rows, transposed });
    }
    let expert: usize = before.parse().ok()?;
    let fused = FUSED.iter().filter(|(_, parts)| parts.iter().any(|names| names.contains(&last)));
    let (parts, (tensor, experts, rows)) =
        fused.into_iter().find_map(|(fused, parts)| stack(fused).map(|found| (parts, found)))?;
    let position = parts.iter().position(|names| names.contains(&last))?;
    if expert >= experts || rows % parts.len() != 0 || transposed {
        return None;
    }
    let height = rows / parts.len();
    let first = expert * rows + position * height;
    Some(Slice { tensor, rows: first..first + height, transposed })
}
