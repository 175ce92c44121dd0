//! Cross-entropy of the targets, and its way back through the head. Logits are made for some targets at a time.

use super::elementwise::{add, check_tokens, exp};
use super::matrix::{Matrix, change, each_row, each_two_rows, times, times_transposed, values};
use crate::engine::{Batch, Target};
use crate::error::Result;

/// Logits that are made at once: 256 MB.
const LOGITS: usize = 1 << 26;

pub(super) fn cross_entropy(
    x: &Matrix,
    head: &Matrix,
    batch: &Batch,
    scale: f32,
    back: bool,
) -> Result<(Vec<f32>, Option<Matrix>)> {
    let (cols, vocabulary) = (x.cols(), head.rows());
    check_tokens(head, batch.targets.iter().map(|target| &target.token))?;
    let mut losses = vec![0.0; batch.targets.len()];
    let mut dx = vec![0.0; if back { x.rows() * cols } else { 0 }];
    let most = (LOGITS / vocabulary.max(1)).max(1);
    for (targets, losses) in batch.targets.chunks(most).zip(losses.chunks_mut(most)) {
        let logits = times_transposed(gather(x, targets)?.whole(), &head.columns(0, cols)?)?;
        change(&logits, |logits| {
            each_two_rows(logits, vocabulary, losses, 1, |row, logits, loss| {
                loss[0] = one(logits, targets[row], back.then_some(scale));
            });
        })?;
        if back {
            let found = times(&logits, &head.columns(0, cols)?)?;
            for (target, found) in targets.iter().zip(values(&found).chunks_exact(cols)) {
                add(&mut dx[target.row as usize * cols..][..cols], found);
            }
        }
    }
    let dx = back.then(|| Matrix::new(dx, x.rows(), cols, cols)).transpose()?;
    Ok((losses, dx))
}

/// The targets' rows of `x`.
fn gather(x: &Matrix, targets: &[Target]) -> Result<Matrix> {
    let (cols, width) = (x.cols(), x.width());
    let x = x.values();
    let mut out = vec![0.0; targets.len() * cols];
    each_row(&mut out, cols, |row, out| out.copy_from_slice(&x[targets[row].row as usize * width..][..cols]));
    Matrix::new(out, targets.len(), cols, cols)
}

/// The loss of one target; with a scale, its logits become the gradient of the scaled loss.
fn one(logits: &mut [f32], target: Target, scale: Option<f32>) -> f32 {
    let Target { token, weight, .. } = target;
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = logits[token as usize];
    let mut sums = [0.0f64; 8];
    for run in logits.chunks_mut(8) {
        for (logit, sum) in run.iter_mut().zip(&mut sums) {
            *logit = exp(*logit - most);
            *sum += f64::from(*logit);
        }
    }
    let total: f64 = sums.iter().sum();
    if let Some(scale) = scale {
        let factor = (f64::from(scale) * f64::from(weight) / total) as f32;
        logits.iter_mut().for_each(|logit| *logit *= factor);
        logits[token as usize] -= scale * weight;
    }
    (f64::from(weight) * (f64::from(most) + total.ln() - f64::from(own))) as f32
}
