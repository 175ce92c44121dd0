//! The tests of every engine: each operation against a simple reference in f64, each backward pass against finite
//! differences of that reference. The tests of an engine call these with the tolerance that its type allows.
//!
//! Inputs are random numbers that bf16 holds exactly, so that a tolerance covers an engine's own roundings only.

mod attention;
mod elementwise;
mod loss;
mod optimizer;
mod projection;

pub(crate) use attention::{check_attention, check_kept_keys, check_rotation};
pub(crate) use elementwise::{check_embedding, check_gate, check_normalization};
pub(crate) use loss::{check_cross_entropy, check_logits};
pub(crate) use optimizer::{check_adamw, check_vectors};
pub(crate) use projection::{adapters, check_projection, check_ranks};

use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::{Backward, Batch, Optimizer, Target};

/// An engine whose matrices tests can write and read.
pub(crate) trait Probe: Backward + Optimizer {
    /// A matrix of these values, row by row, with `padding` columns after each row.
    fn matrix(&self, rows: usize, cols: usize, padding: usize, values: &[f32]) -> Self::Matrix;
    /// The values, row by row, without padding columns.
    fn values(&self, matrix: &Self::Matrix) -> Vec<f32> {
        self.read_matrix(matrix).unwrap()
    }
}

/// Random numbers.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in -`bound`..`bound`, rounded to bf16.
    fn values(&mut self, len: usize, bound: f32) -> Vec<f32> {
        let unit = |random: u64| (random >> 40) as f32 / (1u64 << 24) as f32;
        (0..len).map(|_| bf16::from_f32((2.0 * unit(self.0.next_u64()) - 1.0) * bound).to_f32()).collect()
    }

    /// Some places below `len`: all, if they are few.
    fn places(&mut self, len: usize) -> Vec<usize> {
        const MOST: usize = 150;
        if len <= MOST {
            return (0..len).collect();
        }
        (0..MOST).map(|_| (self.0.next_u64() % len as u64) as usize).collect()
    }

    /// Segments of these lengths, with tokens below `vocabulary`, and targets at about half of the rows.
    fn batch(&mut self, lengths: &[usize], vocabulary: usize) -> Batch {
        let mut batch = Batch { starts: vec![0], ..Batch::default() };
        for length in lengths {
            batch.positions.extend(0..*length as u32);
            batch.starts.push(batch.positions.len() as u32);
        }
        let mut token = || (self.0.next_u64() % vocabulary as u64) as u32;
        batch.tokens = batch.positions.iter().map(|_| token()).collect();
        for row in 0..batch.tokens.len() as u32 {
            if token() % 2 == 0 {
                batch.targets.push(Target { row, token: token(), weight: 0.5 + (row % 3) as f32 });
            }
        }
        batch
    }
}

/// A batch for tests of an engine's own.
pub(crate) fn random_batch(lengths: &[usize], vocabulary: usize) -> Batch {
    Random::new(10).batch(lengths, vocabulary)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Fails unless each value is within `tolerance` times the largest expected value.
#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let most = expected.iter().fold(1e-30f64, |most, value| most.max(value.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs() / most;
        assert!(
            error <= tolerance,
            "{what}, value {place}: {found}, not {expected}: off by {error:.1e} of the largest"
        );
    }
}

/// Fails unless `found` is the gradient of `loss` at `x`, by central differences at some places.
#[track_caller]
fn assert_gradient(
    what: &str,
    found: &[f32],
    x: &[f32],
    random: &mut Random,
    tolerance: f64,
    loss: impl Fn(&[f64]) -> f64,
) {
    const STEP: f64 = 1e-4;
    assert_eq!(found.len(), x.len(), "{what}: lengths");
    let places = random.places(x.len());
    let mut x = wide(x);
    let expected: Vec<f64> = places
        .iter()
        .map(|place| {
            let middle = x[*place];
            x[*place] = middle + STEP;
            let above = loss(&x);
            x[*place] = middle - STEP;
            let below = loss(&x);
            x[*place] = middle;
            (above - below) / (2.0 * STEP)
        })
        .collect();
    let found: Vec<f32> = places.iter().map(|place| found[*place]).collect();
    assert_close(what, &found, &expected, tolerance);
}
