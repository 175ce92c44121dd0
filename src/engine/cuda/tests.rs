//! The GPU against the references that all engines are held to. Where there is no GPU, tests say so and pass.

use std::io::Write;
use std::ops::Range;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{CudaEngine, CudaMatrix, frozen};
use crate::arch::Heads;
use crate::checkpoint::SafetensorsFile;
use crate::engine::checks::Probe;
use crate::engine::{Backward, Engine, Forward, checks};
use crate::gpu::Device;

/// Of the largest value: a few roundings to bf16.
const TOLERANCE: f64 = 2e-2;

impl Probe for CudaEngine {
    fn matrix(&self, rows: usize, cols: usize, padding: usize, values: &[f32]) -> CudaMatrix {
        let matrix = self.matrix(rows, cols, padding).unwrap();
        // Padding columns hold what no operation may read.
        let mut spaced = vec![bf16::NAN.to_bits(); rows * matrix.stride];
        for (out, values) in spaced.chunks_mut(matrix.stride).zip(values.chunks(cols)) {
            out.iter_mut().zip(values).for_each(|(out, value)| *out = bf16::from_f32(*value).to_bits());
        }
        self.card.write(matrix.memory(), &spaced).unwrap();
        matrix
    }
}

/// A GPU, or none, which is said.
fn engine() -> Option<CudaEngine> {
    match CudaEngine::open(Device::Cuda) {
        Ok(engine) => Some(engine),
        Err(error) => {
            // Past the test harness, which keeps what tests print.
            std::io::stderr().write_all(format!("skipped: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}

#[test]
fn rows_and_values() {
    let Some(engine) = engine() else { return };
    checks::check_embedding(&engine);
    checks::check_normalization(&engine, TOLERANCE);
    checks::check_gate(&engine, TOLERANCE);
}

#[test]
fn attention() {
    let Some(engine) = engine() else { return };
    for (query, key, size) in [(4, 2, 64), (3, 1, 128), (2, 2, 64)] {
        let heads = Heads { query, key, size };
        checks::check_rotation(&engine, heads, TOLERANCE);
        checks::check_attention(&engine, heads, TOLERANCE);
    }
}

#[test]
fn attention_to_kept_keys() {
    let Some(engine) = engine() else { return };
    for (query, key, size) in [(4, 2, 64), (3, 1, 128)] {
        checks::check_kept_keys(&engine, Heads { query, key, size }, TOLERANCE);
    }
}

#[test]
fn projections() {
    let Some(engine) = engine() else { return };
    checks::check_projection(&engine, false, TOLERANCE);
    checks::check_ranks(&engine, &[1, 8, 12, 16, 32, 40], TOLERANCE);
}

/// Gradients of factors are sums over chunks of rows: two parts of a batch give what the whole gives.
#[test]
fn rows_of_several_chunks() {
    let Some(engine) = engine() else { return };
    let (adapters, len) = checks::adapters(48, &[(16, true), (264, true)], 8, false);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let some = |len: usize, salt: usize| -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + salt * 104_729) % 129) as f32 / 64.0 - 1.0;
        (0..len).map(value).collect()
    };
    let bytes: Vec<u8> = some(280 * 48, 1).iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![280, 48], &bytes).unwrap();
    safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
    let weights: Vec<_> = SafetensorsFile::open(&path).unwrap().tensors().collect();
    let mut frozen = engine.freeze(&weights, &[None], &adapters).unwrap();
    engine.bind(&mut frozen, &engine.vector(&some(len, 2)).unwrap()).unwrap();
    let (x, dy) = (some(2100 * 48, 3), some(2100 * 280, 4));
    let gradients = |parts: &[Range<usize>]| {
        let mut gradients = engine.vector(&vec![0.0; len]).unwrap();
        for rows in parts {
            let (x, dy) = (&x[rows.start * 48..rows.end * 48], &dy[rows.start * 280..rows.end * 280]);
            let x = Probe::matrix(&engine, rows.len(), 48, adapters.padding(), x);
            let x = engine.adapt(&frozen, x, None).unwrap();
            let dy = Probe::matrix(&engine, rows.len(), 280, 0, dy);
            engine.project_back(&frozen, &dy, &x, None, &mut gradients).unwrap();
        }
        engine.read(&gradients).unwrap()
    };
    let (whole, parts) = (gradients(std::slice::from_ref(&(0..2100))), gradients(&[0..1000, 1000..2100]));
    let most = whole.iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(most > 10.0);
    for (whole, parts) in whole.iter().zip(&parts) {
        assert!((whole - parts).abs() < 1e-5 * most, "{whole} and {parts}");
    }
}

#[test]
fn projections_with_magnitudes() {
    let Some(engine) = engine() else { return };
    checks::check_projection(&engine, true, TOLERANCE);
}

/// More than a piece of pinned memory, to rows with padding and without.
#[test]
fn large_uploads() {
    let Some(engine) = engine() else { return };
    let values: Vec<f32> = (0..3_000_001).map(|i| i as f32).collect();
    assert!(engine.read(&engine.vector(&values).unwrap()).unwrap() == values);
    let (rows, cols) = (2305, 2056);
    let bits = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u16;
    let bytes: Vec<u8> = (0..rows * cols).flat_map(|i| bits(i).to_le_bytes()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.safetensors");
    let view = TensorView::new(Dtype::BF16, vec![rows, cols], &bytes).unwrap();
    safetensors::serialize_to_file([("large", view)], None, &path).unwrap();
    let tensor = SafetensorsFile::open(&path).unwrap().tensors().next().unwrap();
    for padding in [0, 24] {
        let matrix = CudaMatrix::new(&engine.card, rows + 3, cols, padding).unwrap();
        assert_eq!(frozen::copy(&engine.card, &tensor, &matrix, 3).unwrap(), rows);
        let found: Vec<u16> = engine.card.read(matrix.memory(), (rows + 3) * matrix.stride).unwrap();
        let found = found.chunks(matrix.stride).skip(3).flat_map(|row| &row[..cols]);
        assert!(found.enumerate().all(|(i, found)| *found == bits(i)), "padding {padding}");
        assert!(frozen::copy(&engine.card, &tensor, &matrix, 4).is_err(), "beyond the last row");
    }
}

#[test]
fn loss_and_optimizer() {
    let Some(engine) = engine() else { return };
    checks::check_cross_entropy(&engine, TOLERANCE);
    checks::check_logits(&engine, TOLERANCE);
    checks::check_vectors(&engine);
    checks::check_adamw(&engine);
}
