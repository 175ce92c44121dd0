//! Frozen weights in f32, stacked, with their adapters: the stacked `A`, and `s * B` in the padding columns.

use super::elementwise::dot;
use super::matrix::{Matrix, View, each_row, each_two_rows, misfit, times};
use crate::checkpoint::Tensor;
use crate::engine::widen::float_of;
use crate::engine::{Adapters, Slot};
use crate::error::{Error, Result, escaped};

/// Stacked weights and their adapters.
#[derive(Debug)]
pub struct Frozen {
    pub(super) inputs: usize,
    pub(super) adapters: Adapters,
    /// `[outputs, inputs + padding]`: the base and `s * B`.
    pub(super) weight: Matrix,
    /// `A` of each slot in its rows, `[padding, inputs]`; rows of no slot are zero.
    pub(super) a: Matrix,
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
    pub(super) fn new(weights: &[Tensor], biases: &[Option<Tensor>], adapters: &Adapters) -> Result<Self> {
        let inputs = weights.first().and_then(|weight| weight.shape().get(1)).copied().unwrap_or(0);
        let mut outputs = 0;
        for weight in weights {
            let [rows, cols] = *weight.shape() else { return Err(misshapen(weight, &[0, inputs])) };
            if cols != inputs {
                return Err(misshapen(weight, &[rows, inputs]));
            }
            outputs += rows;
        }
        if biases.len() != weights.len() || adapters.slots.iter().any(|slot| slot.rows.end > outputs) {
            return Err(misfit("biases or adapters of other weights"));
        }
        let width = inputs + adapters.padding();
        let mut weight = Matrix::zeros(outputs, width, width);
        let mut rest = weight.values_mut();
        for weight in weights {
            let (float, rows) = (float_of(weight)?, weight.shape()[0]);
            let (part, behind) = rest.split_at_mut(rows * width);
            let (bytes, len) = (weight.bytes(), inputs * float.size());
            each_row(part, width, |row, out| float.widen(&bytes[row * len..(row + 1) * len], &mut out[..inputs]));
            rest = behind;
        }
        Ok(Self {
            inputs,
            adapters: adapters.clone(),
            weight,
            a: Matrix::zeros(adapters.padding(), inputs, inputs),
            bias: stack_biases(weights, biases)?,
            dora: adapters.slots.iter().any(|slot| slot.magnitude.is_some()).then(|| Dora::none(outputs)),
        })
    }

    /// A view of the base's columns.
    pub(super) fn base(&self) -> Result<View<'_>> {
        self.weight.columns(0, self.inputs)
    }

    /// Views of a slot's rows of the base, of its `s * B`, and of its `A`.
    pub(super) fn parts(&self, slot: &Slot) -> Result<[View<'_>; 3]> {
        let columns = self.inputs + slot.columns.start..self.inputs + slot.columns.end;
        Ok([
            self.weight.part(slot.rows.clone(), 0..self.inputs)?,
            self.weight.part(slot.rows.clone(), columns)?,
            self.a.some_rows(slot.columns.clone())?,
        ])
    }

    pub(super) fn row_norms(&self) -> Vec<Vec<f32>> {
        let norm = |row: usize| {
            let row = &self.weight.values()[row * self.weight.width()..][..self.inputs];
            dot(row, row).sqrt() as f32
        };
        self.adapters.slots.iter().map(|slot| slot.rows.clone().map(norm).collect()).collect()
    }

    pub(super) fn bind(&mut self, parameters: &[f32]) -> Result<()> {
        let Self { inputs, ref adapters, ref mut weight, ref mut a, .. } = *self;
        let &Adapters { rank, scale, ref slots } = adapters;
        let width = weight.width();
        for slot in slots {
            let rows = slot.columns.start * inputs..slot.columns.end * inputs;
            a.values_mut()[rows].copy_from_slice(&parameters[slot.a.clone()]);
            let columns = inputs + slot.columns.start..inputs + slot.columns.end;
            for (row, b) in slot.rows.clone().zip(parameters[slot.b.clone()].chunks_exact(rank)) {
                for (out, b) in weight.values_mut()[row * width..][columns.clone()].iter_mut().zip(b) {
                    *out = scale * b;
                }
            }
        }
        let Some(mut dora) = self.dora.take() else { return Ok(()) };
        let done = self.adapters.slots.iter().try_for_each(|slot| self.bind_magnitudes(slot, parameters, &mut dora));
        self.dora = Some(dora);
        done
    }

    /// Norms of the adapted rows (section 4.3 of the DoRA paper: constants to the gradient), and what they make of the
    /// magnitudes.
    fn bind_magnitudes(&self, slot: &Slot, parameters: &[f32], dora: &mut Dora) -> Result<()> {
        let Some(magnitude) = slot.magnitude.clone() else { return Ok(()) };
        let magnitude = &parameters[magnitude];
        let (inputs, width) = (self.inputs, self.weight.width());
        let [_, b, a] = self.parts(slot)?;
        let mut deltas = times(b, a)?;
        let norms = &mut dora.norms[slot.rows.clone()];
        each_two_rows(deltas.values_mut(), inputs, norms, 1, |row, deltas, norm| {
            let base = &self.weight.values()[(slot.rows.start + row) * width..][..inputs];
            deltas.iter_mut().zip(base).for_each(|(delta, base)| *delta += base);
            norm[0] = dot(deltas, deltas).sqrt() as f32;
        });
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

pub(super) fn misshapen(tensor: &Tensor, expected: &[usize]) -> Error {
    let problem = format!("tensor {} has the shape {:?}, not {expected:?}", escaped(tensor.name()), tensor.shape());
    Error::malformed(tensor.file().path(), problem, "make sure that config.json and the weights are of one model")
}

/// The biases of the parts, zero for those that have none; `None` if none has.
fn stack_biases(weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<Option<Vec<f32>>> {
    if biases.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut stacked = Vec::new();
    for (weight, bias) in weights.iter().zip(biases) {
        let rows = weight.shape().first().copied().unwrap_or(0);
        match bias {
            Some(bias) if bias.elements() != rows => return Err(misshapen(bias, &[rows])),
            Some(bias) => stacked.extend(widen(bias)?),
            None => stacked.resize(stacked.len() + rows, 0.0),
        }
    }
    Ok(Some(stacked))
}
