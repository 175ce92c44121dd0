//! Projections with adapters: some parts adapted or none, biases, dropout, magnitudes.

use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{Probe, Random, assert_close, assert_gradient, dot, wide};
use crate::checkpoint::{SafetensorsFile, Tensor};
use crate::engine::dropout::Dropout;
use crate::engine::{Adapters, Slot};

const ROWS: usize = 13;
const INPUTS: usize = 40;
const OUTPUTS: [usize; 3] = [24, 8, 16];

/// Adapters on stacked weights, and what the reference knows of these.
struct Case {
    adapters: Adapters,
    /// All rows, in f64.
    weights: Vec<f64>,
    biases: Vec<f64>,
    dropout: Option<Dropout>,
}

/// Adapters on the parts that are to be, in the order of their outputs, and the length of the vector of parameters: others'
/// lie before theirs.
pub(crate) fn adapters(inputs: usize, parts: &[(usize, bool)], rank: usize, magnitudes: bool) -> (Adapters, usize) {
    let mut end = 100;
    let mut take = |len: usize| {
        end += len;
        end - len..end
    };
    let (mut slots, mut row) = (Vec::new(), 0);
    for (outputs, adapted) in parts {
        let rows = row..row + outputs;
        row = rows.end;
        if *adapted {
            let (a, b) = (take(rank * inputs), take(outputs * rank));
            let columns = slots.len() * rank..(slots.len() + 1) * rank;
            slots.push(Slot {
                module: slots.len() + 1,
                rows,
                columns,
                a,
                b,
                magnitude: magnitudes.then(|| take(*outputs)),
            });
        }
    }
    (Adapters { rank, scale: 2.0, slots }, end)
}

/// Every combination of adapted parts, biases and dropout; with DoRA or without it.
pub(crate) fn check_projection<E: Probe>(engine: &E, magnitudes: bool, tolerance: f64) {
    for adapted in [[true; 3], [true, false, true], [false; 3]] {
        for bias in [false, true] {
            for dropout in [None, Dropout::new(0.25, 42, 3)] {
                check_case(engine, 5, adapted, bias, dropout, magnitudes, tolerance);
            }
        }
    }
}

/// Other ranks: kernels have several for them.
pub(crate) fn check_ranks<E: Probe>(engine: &E, ranks: &[usize], tolerance: f64) {
    for rank in ranks {
        for dropout in [None, Dropout::new(0.25, 42, 3)] {
            check_case(engine, *rank, [true; 3], false, dropout, false, tolerance);
        }
    }
}

fn check_case<E: Probe>(
    engine: &E,
    rank: usize,
    adapted: [bool; 3],
    bias: bool,
    dropout: Option<Dropout>,
    magnitudes: bool,
    tolerance: f64,
) {
    let what =
        format!("rank {rank}, adapted {adapted:?}, bias {bias}, dropout {}, DoRA {magnitudes}", dropout.is_some());
    let mut random = Random::new(9);
    let parts: Vec<_> = OUTPUTS.into_iter().zip(adapted).collect();
    let (adapters, len) = adapters(INPUTS, &parts, rank, magnitudes);
    let weights = OUTPUTS.map(|outputs| random.values(outputs * INPUTS, 0.3));
    // One part never has a bias.
    let biases = OUTPUTS.map(|outputs| (bias && outputs != 8).then(|| random.values(outputs, 1.0)));
    let case = Case {
        weights: wide(&weights.concat()),
        biases: OUTPUTS.iter().zip(&biases).flat_map(|(n, b)| wide(b.as_ref().unwrap_or(&vec![0.0; *n]))).collect(),
        adapters: adapters.clone(),
        dropout,
    };
    let dir = tempfile::tempdir().unwrap();
    let (weights, biases) = saved(dir.path(), &weights, &biases);
    let mut frozen = engine.freeze(&weights, &biases, &adapters).unwrap();

    let norms = engine.row_norms(&frozen).unwrap();
    for (slot, norms) in adapters.slots.iter().zip(&norms) {
        let rows = case.weights[slot.rows.start * INPUTS..slot.rows.end * INPUTS].chunks(INPUTS);
        assert_close("row_norms", norms, &rows.map(|row| dot(row, row).sqrt()).collect::<Vec<_>>(), 1e-5);
    }
    // Bound twice: nothing of the first factors may stay.
    let mut parameters = random.values(len, 0.5);
    engine.bind(&mut frozen, &engine.vector(&parameters).unwrap()).unwrap();
    parameters = random.values(len, 0.5);
    for slot in &adapters.slots {
        for value in slot.magnitude.clone().map(|magnitude| &mut parameters[magnitude]).into_iter().flatten() {
            *value = value.abs() + 1.0;
        }
    }
    engine.bind(&mut frozen, &engine.vector(&parameters).unwrap()).unwrap();

    let (padding, outputs) = (adapters.padding(), OUTPUTS.iter().sum::<usize>());
    let x = random.values(ROWS * INPUTS, 1.0);
    let [dy, onto] = [(); 2].map(|()| random.values(ROWS * outputs, 1.0));
    let dropout = dropout.as_ref();
    let on_x = engine.adapt(&frozen, engine.matrix(ROWS, INPUTS, padding, &x), dropout).unwrap();
    let [on_dy, on_onto] = [&dy, &onto].map(|values| engine.matrix(ROWS, outputs, 0, values));
    let norms = case.norms(&wide(&parameters));
    let mut expected = case.forward(&wide(&x), &wide(&parameters), &norms);
    let y = engine.project(&frozen, &on_x, dropout, None).unwrap();
    assert_close(&format!("project: {what}"), &engine.values(&y), &expected, tolerance);
    expected.iter_mut().zip(&onto).for_each(|(y, onto)| *y += f64::from(*onto));
    let y = engine.project(&frozen, &on_x, dropout, Some(&on_onto)).unwrap();
    assert_close(&format!("project onto: {what}"), &engine.values(&y), &expected, tolerance);

    // Gradients are added to what is there.
    let mut gradients = engine.vector(&vec![1.0; len]).unwrap();
    let dx = engine.project_back(&frozen, &on_dy, &on_x, dropout, &mut gradients).unwrap();
    let gradients: Vec<f32> = engine.read(&gradients).unwrap().iter().map(|value| value - 1.0).collect();
    let (dy, wide_x, wide_parameters) = (wide(&dy), wide(&x), wide(&parameters));
    let loss = |x: &[f64]| dot(&dy, &case.forward(x, &wide_parameters, &norms));
    assert_gradient(&format!("project_back: {what}"), &engine.values(&dx), &x, &mut random, tolerance, loss);
    for slot in &adapters.slots {
        for (name, range) in [("A", Some(&slot.a)), ("B", Some(&slot.b)), ("magnitude", slot.magnitude.as_ref())] {
            let Some(range) = range.cloned() else { continue };
            let loss = |values: &[f64]| {
                let mut parameters = wide_parameters.clone();
                parameters[range.clone()].copy_from_slice(values);
                dot(&dy, &case.forward(&wide_x, &parameters, &norms))
            };
            let what = format!("gradient of {name} of module {}: {what}", slot.module);
            assert_gradient(&what, &gradients[range.clone()], &parameters[range.clone()], &mut random, tolerance, loss);
        }
    }
    let mut others = gradients;
    for slot in &adapters.slots {
        for range in [Some(&slot.a), Some(&slot.b), slot.magnitude.as_ref()].into_iter().flatten() {
            others[range.clone()].fill(0.0);
        }
    }
    assert!(others.iter().all(|value| *value == 0.0), "other modules are left alone: {what}");
}

impl Case {
    fn row(&self, row: usize) -> &[f64] {
        &self.weights[row * INPUTS..(row + 1) * INPUTS]
    }

    /// Norms of the rows of `W + s * B * A` of each slot.
    fn norms(&self, parameters: &[f64]) -> Vec<Vec<f64>> {
        let norm = |slot: &Slot, row: usize| {
            let (a, b) = (&parameters[slot.a.clone()], &parameters[slot.b.clone()]);
            let b = &b[row * self.adapters.rank..][..self.adapters.rank];
            let mut sum = 0.0;
            for (col, weight) in self.row(slot.rows.start + row).iter().enumerate() {
                let delta: f64 = b.iter().enumerate().map(|(k, b)| b * a[k * INPUTS + col]).sum();
                sum += (weight + f64::from(self.adapters.scale) * delta).powi(2);
            }
            sum.sqrt()
        };
        self.adapters.slots.iter().map(|slot| (0..slot.rows.len()).map(|row| norm(slot, row)).collect()).collect()
    }

    /// As PEFT's `Linear.forward` and `DoraLinearLayer.forward` do it.
    fn forward(&self, x: &[f64], parameters: &[f64], norms: &[Vec<f64>]) -> Vec<f64> {
        let Adapters { rank, scale, slots } = &self.adapters;
        let mut out = Vec::new();
        for (number, x) in x.chunks(INPUTS).enumerate() {
            let base = |x: &[f64], row: usize| dot(x, self.row(row));
            let start = out.len();
            out.extend((0..self.biases.len()).map(|row| base(x, row) + self.biases[row]));
            for (slot, norms) in slots.iter().zip(norms) {
                let mut dropped = x.to_vec();
                if let Some(dropout) = &self.dropout {
                    let mask = dropout.mask(slot.module);
                    for (col, value) in dropped.iter_mut().enumerate() {
                        *value *= if mask.keeps(number, col, INPUTS) { f64::from(dropout.scale()) } else { 0.0 };
                    }
                }
                let a = parameters[slot.a.clone()].chunks(INPUTS);
                let adapted: Vec<f64> = a.map(|row| dot(&dropped, row)).collect();
                for (own, b) in parameters[slot.b.clone()].chunks(*rank).enumerate() {
                    let (row, delta) = (slot.rows.start + own, f64::from(*scale) * dot(&adapted, b));
                    out[start + row] += match &slot.magnitude {
                        None => delta,
                        Some(magnitude) => {
                            let gain = parameters[magnitude.start + own] / norms[own];
                            (gain - 1.0) * base(&dropped, row) + gain * delta
                        }
                    };
                }
            }
        }
        out
    }
}

/// Writes weights, each in another type, and biases to a file, and opens it.
fn saved(dir: &Path, weights: &[Vec<f32>; 3], biases: &[Option<Vec<f32>>; 3]) -> (Vec<Tensor>, Vec<Option<Tensor>>) {
    let narrow = |values: &[f32], dtype: Dtype| -> Vec<u8> {
        let one = |value: &f32| match dtype {
            Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(one).collect()
    };
    let mut parts: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (n, dtype) in [Dtype::BF16, Dtype::F16, Dtype::F32].into_iter().enumerate() {
        let shape = vec![weights[n].len() / INPUTS, INPUTS];
        parts.push((format!("w{n}"), dtype, shape, narrow(&weights[n], dtype)));
        if let Some(bias) = &biases[n] {
            parts.push((format!("b{n}"), Dtype::BF16, vec![bias.len()], narrow(bias, Dtype::BF16)));
        }
    }
    let views = parts
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let path = dir.join("weights.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    let find = |name: String| file.tensors().find(|tensor| tensor.name() == name);
    ((0..3).map(|n| find(format!("w{n}")).unwrap()).collect(), (0..3).map(|n| find(format!("b{n}"))).collect())
}
