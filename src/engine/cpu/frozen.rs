//! The frozen weights of a group in f32, with their adapters: the stacked `A`, and `s * B` in the spare columns.

use std::ops::Range;

use candle_core::Tensor as Table;

use super::elementwise::dot;
use super::matrix::{change, each_row, each_two_rows, failed, tensor, times, values};
use crate::checkpoint::Tensor;
use crate::error::{Error, Result, escaped};
use crate::merge::{Float, TO_FLOATS};
use crate::train::lora::{Group, Slot};

/// A group's weights and adapters.
#[derive(Debug)]
pub struct Frozen {
    pub(super) group: Group,
    /// `[outputs, inputs + room]`: the base and `s * B`.
    pub(super) weight: Table,
    /// `A` of each slot in its rows, `[room, inputs]`; rows of no slot are zero.
    pub(super) a: Table,
    /// A bias for each output, if any part has one.
    pub(super) bias: Option<Vec<f32>>,
    /// With DoRA.
    pub(super) dora: Option<Dora>,
}

/// What DoRA makes of each output: 1 where a row has no magnitude.
#[derive(Debug)]
pub(super) struct Dora {
    /// The norm of the row of `W + s * B * A`.
    pub(super) norms: Vec<f32>,
    /// Magnitude / norm.
    pub(super) gains: Vec<f32>,
}

impl Frozen {
    pub(super) fn new(group: &Group, weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<Self> {
        let (inputs, room) = (group.inputs, group.room());
        let width = inputs + room;
        let mut stacked = vec![0.0; group.outputs * width];
        let mut rest = &mut stacked[..];
        for weight in weights {
            let outputs = rest.len() / width.max(1);
            let [rows, cols] = *weight.shape() else { return Err(misshapen(weight, &[outputs, inputs])) };
            if cols != inputs || rows > outputs {
                return Err(misshapen(weight, &[outputs.min(rows), inputs]));
            }
            let float = float_of(weight)?;
            let (part, behind) = rest.split_at_mut(rows * width);
            let (bytes, len) = (weight.bytes(), inputs * float.size());
            each_row(part, width, |row, out| float.widen(&bytes[row * len..(row + 1) * len], &mut out[..inputs]));
            rest = behind;
        }
        if !rest.is_empty() {
            let (rows, parts) = (group.outputs - rest.len() / width, weights.len());
            let problem = format!("{parts} weights have {rows} rows, and {} were planned", group.outputs);
            return Err(Error::inconsistent(problem, "make sure that config.json and the weights are of one model"));
        }
        Ok(Self {
            group: group.clone(),
            weight: tensor(stacked, group.outputs, width)?,
            a: tensor(vec![0.0; room * inputs], room, inputs)?,
            bias: stack_biases(group, weights, biases)?,
            dora: group.slots.iter().any(|slot| slot.magnitude.is_some()).then(|| Dora::none(group.outputs)),
        })
    }

    /// A view of the base's columns.
    pub(super) fn base(&self) -> Result<Table> {
        self.weight.narrow(1, 0, self.group.inputs).map_err(failed)
    }

    /// Views of a slot's rows of the base, of its `s * B`, and of its `A`.
    pub(super) fn parts(&self, slot: &Slot) -> Result<[Table; 3]> {
        let Range { start, .. } = slot.rows;
        let rank = slot.columns.len();
        let rows = self.weight.narrow(0, start, slot.rows.len()).map_err(failed)?;
        Ok([
            rows.narrow(1, 0, self.group.inputs).map_err(failed)?,
            rows.narrow(1, self.group.inputs + slot.columns.start, rank).map_err(failed)?,
            self.a.narrow(0, slot.columns.start, rank).map_err(failed)?,
        ])
    }

    pub(super) fn row_norms(&self) -> Vec<Vec<f32>> {
        let (inputs, width) = (self.group.inputs, self.group.inputs + self.group.room());
        let weight = values(&self.weight);
        let norm = |row: usize| {
            let row = &weight[row * width..][..inputs];
            dot(row, row).sqrt() as f32
        };
        self.group.slots.iter().map(|slot| slot.rows.clone().map(norm).collect()).collect()
    }

    pub(super) fn bind(&mut self, parameters: &[f32]) -> Result<()> {
        let Group { inputs, rank, scale, ref slots, .. } = self.group;
        let width = inputs + self.group.room();
        change(&self.a, |a| {
            for slot in slots {
                a[slot.columns.start * inputs..slot.columns.end * inputs].copy_from_slice(&parameters[slot.a.clone()]);
            }
        })?;
        change(&self.weight, |weight| {
            for slot in slots {
                let columns = inputs + slot.columns.start..inputs + slot.columns.end;
                for (row, b) in slot.rows.clone().zip(parameters[slot.b.clone()].chunks_exact(rank)) {
                    for (out, b) in weight[row * width..][columns.clone()].iter_mut().zip(b) {
                        *out = scale * b;
                    }
                }
            }
        })?;
        let Some(mut dora) = self.dora.take() else { return Ok(()) };
        let done = slots.iter().try_for_each(|slot| self.bind_magnitudes(slot, parameters, &mut dora));
        self.dora = Some(dora);
        done
    }

    /// Norms of the adapted rows (section 4.3 of the DoRA paper: constants to the gradient), and what they make of the
    /// magnitudes.
    fn bind_magnitudes(&self, slot: &Slot, parameters: &[f32], dora: &mut Dora) -> Result<()> {
        let Some(magnitude) = slot.magnitude.clone() else { return Ok(()) };
        let magnitude = &parameters[magnitude];
        let (inputs, width) = (self.group.inputs, self.group.inputs + self.group.room());
        let [_, b, a] = self.parts(slot)?;
        let deltas = times(&b, &a)?;
        let weight = values(&self.weight);
        // Each row of deltas becomes its squares' sum, in its first value.
        change(&deltas, |deltas| {
            let norms = &mut dora.norms[slot.rows.clone()];
            each_two_rows(deltas, inputs, norms, 1, |row, deltas, norm| {
                let base = &weight[(slot.rows.start + row) * width..][..inputs];
                deltas.iter_mut().zip(base).for_each(|(delta, base)| *delta += base);
                norm[0] = dot(deltas, deltas).sqrt() as f32;
            });
        })?;
        let rows = slot.rows.clone();
        for ((gain, norm), magnitude) in dora.gains[rows.clone()].iter_mut().zip(&dora.norms[rows]).zip(magnitude) {
            *gain = magnitude / norm;
        }
        Ok(())
    }
}

impl Dora {
    fn none(outputs: usize) -> Self {
        Self { norms: vec![1.0; outputs], gains: vec![1.0; outputs] }
    }
}

/// A whole tensor in f32.
pub(super) fn widen(tensor: &Tensor) -> Result<Vec<f32>> {
    const CHUNK: usize = 1 << 16;
    let float = float_of(tensor)?;
    let mut out = vec![0.0; tensor.elements()];
    let (whole, bytes) = (out.len() / CHUNK * CHUNK, tensor.bytes());
    let (chunks, rest) = out.split_at_mut(whole);
    each_row(chunks, CHUNK, |chunk, out| float.widen(&bytes[chunk * CHUNK * float.size()..], out));
    float.widen(&bytes[whole * float.size()..], rest);
    Ok(out)
}

fn float_of(tensor: &Tensor) -> Result<Float> {
    Float::of(tensor.dtype()).ok_or_else(|| {
        let problem = format!("tensor {} is of type {:?}", escaped(tensor.name()), tensor.dtype());
        Error::malformed(tensor.file().path(), problem, format!("{TO_FLOATS}; train on that"))
    })
}

pub(super) fn misshapen(tensor: &Tensor, expected: &[usize]) -> Error {
    let problem = format!("tensor {} has the shape {:?}, not {expected:?}", escaped(tensor.name()), tensor.shape());
    Error::malformed(tensor.file().path(), problem, "make sure that config.json and the weights are of one model")
}

/// The biases of the parts, zero for those that have none; `None` if none has.
fn stack_biases(group: &Group, weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<Option<Vec<f32>>> {
    if biases.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut stacked = Vec::with_capacity(group.outputs);
    for (weight, bias) in weights.iter().zip(biases) {
        let rows = weight.shape().first().copied().unwrap_or(0);
        match bias {
            Some(bias) if bias.elements() != rows => return Err(misshapen(bias, &[rows])),
            Some(bias) => stacked.extend(widen(bias)?),
            None => stacked.resize(stacked.len() + rows, 0.0),
        }
    }
    stacked.resize(group.outputs, 0.0);
    Ok(Some(stacked))
}
