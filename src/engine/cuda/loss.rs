//! Logits and cross-entropy on the GPU.

use super::card::broken;
use super::kernels::{CROSS_ENTROPY, SCATTER_ROWS};
use super::matrix::{CudaMatrix, CudaVector};
use super::placed::CudaBatch;
use super::{CudaEngine, bits, eights};
use crate::error::Result;
use crate::gpu::{Output, Sizes};

/// Bytes of logits that are made at once.
const LOGITS: usize = 640 << 20;

impl CudaEngine {
    /// The logits of some rows of `x`.
    pub(super) fn logits_of(&self, x: &CudaMatrix, head: &CudaMatrix, rows: &[u32]) -> Result<CudaMatrix> {
        if x.cols != head.cols || rows.iter().any(|row| *row as usize >= x.rows) {
            return Err(broken("a head of another model, or a row beyond the last"));
        }
        let indices = self.card.upload(rows)?;
        let chosen = self.matrix(rows.len(), x.cols, 0)?;
        self.gather(x, indices.address(), &chosen)?;
        self.times_head(&chosen, head)
    }

    /// `x * head^T`.
    fn times_head(&self, x: &CudaMatrix, head: &CudaMatrix) -> Result<CudaMatrix> {
        let logits = self.matrix(x.rows, head.rows, 0)?;
        let sizes = Sizes { rows: x.rows, cols: head.rows, depth: head.cols };
        // SAFETY: the matrices have these sizes.
        unsafe { self.blas.times_transposed(x.at(), head.at(), logits.at(), sizes, 0.0, Output::Bf16) }?;
        Ok(logits)
    }

    /// The losses; and into `dx`, which is zero, the gradient of `scale` times their sum.
    pub(super) fn losses(
        &self,
        x: &CudaMatrix,
        head: &CudaMatrix,
        batch: &CudaBatch,
        scale: f32,
        dx: Option<&CudaMatrix>,
    ) -> Result<CudaVector> {
        let (vocabulary, hidden) = (head.rows, head.cols);
        let known = batch.targets == 0 || batch.largest_target < vocabulary;
        if !known || x.rows != batch.rows || x.cols != hidden {
            return Err(broken("a head of another model, or a target beyond its vocabulary"));
        }
        let losses = CudaVector::new(&self.card, batch.targets)?;
        let most = (LOGITS / (2 * vocabulary.next_multiple_of(8))).max(1);
        for first in (0..batch.targets).step_by(most) {
            let rows = most.min(batch.targets - first);
            let skip = first as u64 * 4;
            let indices = batch.target_rows.address() + skip;
            let chosen = self.matrix(rows, hidden, 0)?;
            self.gather(x, indices, &chosen)?;
            let logits = self.times_head(&chosen, head)?;
            let arguments = [
                logits.address(),
                logits.stride as u64,
                batch.target_tokens.address() + skip,
                batch.target_weights.address() + skip,
                bits(scale),
                losses.value(first),
                u64::from(dx.is_some()),
                rows as u64,
                vocabulary as u64,
            ];
            self.launch(&CROSS_ENTROPY, rows as u64, &arguments)?;
            if let Some(dx) = dx {
                let sizes = Sizes { rows, cols: hidden, depth: vocabulary };
                // SAFETY: the matrices have these sizes.
                unsafe { self.blas.times(logits.at(), head.at(), chosen.at(), sizes) }?;
                let (from, to) = ([chosen.address(), chosen.stride as u64], [dx.address(), dx.stride as u64]);
                let arguments = [from[0], from[1], indices, to[0], to[1], rows as u64, hidden as u64];
                self.launch(&SCATTER_ROWS, eights(rows, hidden)?, &arguments)?;
            }
        }
        Ok(losses)
    }
}
