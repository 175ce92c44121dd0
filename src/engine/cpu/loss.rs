//! Cross-entropy of the targets, and its backward pass through the head. Logits are made for some targets at a time.

use super::elementwise::{add, check_tokens, exp};
use super::matrix::{Matrix, each_row, each_two_rows, misfit, times, times_transposed};
use crate::engine::{Batch, Target};
use crate::error::Result;

/// Logits that are made at once: 256 MB.
const LOGITS: usize = 1 << 26;

/// The losses; and with a scale, the gradient of that times their sum with respect to `x`.
pub(super) fn cross_entropy(
    x: &Matrix,
    head: &Matrix,
    batch: &Batch,
    scale: Option<f32>,
) -> Result<(Vec<f32>, Option<Matrix>)> {
    let (cols, vocabulary) = (x.cols(), head.rows());
    check_tokens(head, batch.targets.iter().map(|target| &target.token))?;
    let mut losses = vec![0.0; batch.targets.len()];
    let mut dx = scale.map(|_| Matrix::zeros(x.rows(), cols, cols));
    let most = (LOGITS / vocabulary.max(1)).max(1);
    for (targets, losses) in batch.targets.chunks(most).zip(losses.chunks_mut(most)) {
        let rows: Vec<u32> = targets.iter().map(|target| target.row).collect();
        let mut logits = logits(x, head, &rows)?;
        each_two_rows(logits.values_mut(), vocabulary, losses, 1, |row, logits, loss| {
            loss[0] = one(logits, targets[row], scale);
        });
        if let Some(dx) = &mut dx {
            let found = times(logits.whole(), head.columns(0, cols)?)?;
            for (target, found) in targets.iter().zip(found.values().chunks_exact(cols)) {
                add(&mut dx.values_mut()[target.row as usize * cols..][..cols], found);
            }
        }
    }
    Ok((losses, dx))
}

/// The logits of some rows of `x`.
pub(super) fn logits(x: &Matrix, head: &Matrix, rows: &[u32]) -> Result<Matrix> {
    if rows.iter().any(|row| *row as usize >= x.rows()) {
        return Err(misfit("a row beyond the last"));
    }
    let cols = x.cols();
    times_transposed(gather(x, rows).whole(), head.columns(0, cols)?)
}

/// Some rows of `x`, without padding columns.
fn gather(x: &Matrix, rows: &[u32]) -> Matrix {
    let (cols, width) = (x.cols(), x.width());
    let mut out = Matrix::zeros(rows.len(), cols, cols);
    each_row(out.values_mut(), cols, |row, out| {
        out.copy_from_slice(&x.values()[rows[row] as usize * width..][..cols]);
    });
    out
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
