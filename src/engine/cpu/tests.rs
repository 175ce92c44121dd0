//! The processor against the references that all engines are held to, and what only it promises.

use super::{CpuEngine, Matrix, elementwise};
use crate::arch::Heads;
use crate::engine::checks::Probe;
use crate::engine::{Backward, Columns, Forward, KeysValues, checks};

/// Of the largest value: what f32 leaves, and half a digit.
const TOLERANCE: f64 = 3e-6;

impl Probe for CpuEngine {
    fn matrix(&self, rows: usize, cols: usize, padding: usize, values: &[f32]) -> Matrix {
        let width = cols + padding;
        // Padding columns hold what no operation may read.
        let mut spaced = vec![f32::NAN; rows * width];
        for (out, values) in spaced.chunks_mut(width).zip(values.chunks(cols)) {
            out[..cols].copy_from_slice(values);
        }
        Matrix::new(spaced, rows, cols, width)
    }
}

#[test]
fn rows_and_values() {
    checks::check_embedding(&CpuEngine);
    checks::check_normalization(&CpuEngine, TOLERANCE);
    checks::check_gate(&CpuEngine, TOLERANCE);
}

#[test]
fn attention() {
    for (query, key, size) in [(4, 2, 16), (3, 1, 10), (2, 2, 64)] {
        let heads = Heads { query, key, size };
        checks::check_rotation(&CpuEngine, heads, TOLERANCE);
        checks::check_attention(&CpuEngine, heads, TOLERANCE);
    }
}

#[test]
fn attention_to_kept_keys() {
    for (query, key, size) in [(4, 2, 16), (3, 1, 10)] {
        checks::check_kept_keys(&CpuEngine, Heads { query, key, size }, TOLERANCE);
    }
}

#[test]
fn projections() {
    checks::check_projection(&CpuEngine, false, TOLERANCE);
    checks::check_ranks(&CpuEngine, &[16], TOLERANCE);
}

#[test]
fn projections_with_magnitudes() {
    checks::check_projection(&CpuEngine, true, TOLERANCE);
}

#[test]
fn loss_and_optimizer() {
    checks::check_cross_entropy(&CpuEngine, TOLERANCE);
    checks::check_logits(&CpuEngine, TOLERANCE);
    checks::check_vectors(&CpuEngine);
    checks::check_adamw(&CpuEngine);
}

#[test]
fn exp_is_exact_to_two_units() {
    for i in -86_999..88_000 {
        let x = i as f32 * 0.001;
        let (found, exact) = (f64::from(elementwise::exp(x)), f64::from(x).exp());
        assert!((found / exact - 1.0).abs() < 2.5e-7, "exp({x}) is {found}, not {exact}");
    }
    assert!(elementwise::exp(f32::NAN).is_nan() && elementwise::exp(-1e30) < 1e-37);
}

/// Large enough for several threads, which must not show.
#[test]
fn results_repeat_to_the_bit() {
    let heads = Heads { query: 6, key: 2, size: 32 };
    let step = || {
        let batch = checks::random_batch(&[300, 77, 5], 500);
        let values = |len: usize| (0..len).map(|i| ((i * 7919 % 4001) as f32 - 2000.0) / 1500.0).collect::<Vec<f32>>();
        let rows = batch.tokens.len();
        let qkv = CpuEngine.matrix(rows, heads.row(), 0, &values(rows * heads.row()));
        let (out, sums) =
            CpuEngine.attend(Columns::queries(&qkv), KeysValues::of(&qkv, heads), heads, &batch, 0).unwrap();
        let back = CpuEngine.attend_back(&out, &qkv, &out, &sums, heads, &batch).unwrap();
        let head = CpuEngine.matrix(500, out.cols(), 0, &values(500 * out.cols()));
        let (losses, dx) = CpuEngine.cross_entropy_back(&out, &head, &batch, 1.0).unwrap();
        let all = [CpuEngine.values(&back), losses, CpuEngine.values(&dx)].concat();
        all.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
    };
    let first = step();
    assert!((0..3).all(|_| step() == first));
}
