//! The backward pass on the GPU.

use super::card::broken;
use super::forward::check_norm;
use super::frozen::CudaFrozen;
use super::kernels::{GATE_BACK, NORMALIZE_BACK};
use super::matrix::{CudaMatrix, CudaVector};
use super::placed::CudaBatch;
use super::{CudaEngine, alike, eights};
use crate::arch::Heads;
use crate::engine::Backward;
use crate::engine::dropout::Dropout;
use crate::error::Result;

impl Backward for CudaEngine {
    fn zeros_like(&self, x: &CudaMatrix) -> Result<CudaMatrix> {
        let zeros = self.matrix(x.rows, x.cols, x.stride - x.cols)?;
        self.card.clear(zeros.memory(), zeros.bytes())?;
        Ok(zeros)
    }

    fn normalize_back(
        &self,
        dy: &CudaMatrix,
        x: &CudaMatrix,
        weight: &CudaVector,
        inverse: &CudaVector,
        onto: CudaMatrix,
    ) -> Result<CudaMatrix> {
        check_norm(x, weight)?;
        if !alike(x, dy) || !alike(x, &onto) || inverse.len != x.rows {
            return Err(broken("the gradient of another norm"));
        }
        self.card.timed("norm, back", || {
            let arguments = [
                dy.address(),
                dy.stride as u64,
                x.address(),
                x.stride as u64,
                weight.address(),
                inverse.address(),
                onto.address(),
                onto.stride as u64,
                x.rows as u64,
                x.cols as u64,
            ];
            self.launch(&NORMALIZE_BACK, x.rows as u64, &arguments)?;
            Ok(onto)
        })
    }

    fn project_back(
        &self,
        frozen: &CudaFrozen,
        dy: &CudaMatrix,
        x: &CudaMatrix,
        dropout: Option<&Dropout>,
        gradients: &mut CudaVector,
    ) -> Result<CudaMatrix> {
        self.project_all_back(frozen, dy, x, dropout, gradients)
    }

    fn attend_back(
        &self,
        dout: &CudaMatrix,
        qkv: &CudaMatrix,
        out: &CudaMatrix,
        sums: &CudaVector,
        heads: Heads,
        batch: &CudaBatch,
    ) -> Result<CudaMatrix> {
        self.card.timed("attention, back", || self.attention_back(dout, qkv, out, sums, heads, batch))
    }

    fn gate_back(&self, dy: &CudaMatrix, gate_up: CudaMatrix) -> Result<CudaMatrix> {
        if gate_up.rows != dy.rows || gate_up.cols != 2 * dy.cols {
            return Err(broken("the gradient of another gate"));
        }
        self.card.timed("gate, back", || {
            let (rows, width) = (gate_up.rows, gate_up.cols / 2);
            let (from, to) = (dy.stride as u64, gate_up.stride as u64);
            let arguments = [dy.address(), from, gate_up.address(), to, rows as u64, width as u64];
            self.launch(&GATE_BACK, eights(rows, width)?, &arguments)?;
            Ok(gate_up)
        })
    }

    fn cross_entropy_back(
        &self,
        x: &CudaMatrix,
        head: &CudaMatrix,
        batch: &CudaBatch,
        scale: f32,
    ) -> Result<(CudaVector, CudaMatrix)> {
        self.card.timed("loss", || {
            let dx = self.zeros_like(x)?;
            let losses = self.losses(x, head, batch, scale, Some(&dx))?;
            Ok((losses, dx))
        })
    }
}
