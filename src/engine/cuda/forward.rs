//! The forward pass on the GPU: what each kernel is given.

use super::card::broken;
use super::frozen::CudaFrozen;
use super::kernels::{GATE, NORMALIZE, ROTATE};
use super::matrix::{CudaMatrix, CudaVector};
use super::placed::CudaBatch;
use super::{CudaEngine, attention, bits, eights};
use crate::arch::Heads;
use crate::engine::dropout::Dropout;
use crate::engine::{Columns, Forward, KeysValues};
use crate::error::Result;

/// Whether `weight` is that of a norm of `x`.
pub(super) fn check_norm(x: &CudaMatrix, weight: &CudaVector) -> Result<()> {
    if x.cols == weight.len && x.cols.is_multiple_of(8) {
        return Ok(());
    }
    Err(broken("a norm of another width"))
}

impl Forward for CudaEngine {
    fn embed(&self, table: &CudaMatrix, batch: &CudaBatch) -> Result<CudaMatrix> {
        if batch.largest_token >= table.rows {
            return Err(broken("a token beyond the vocabulary"));
        }
        let x = self.matrix(batch.rows, table.cols, 0)?;
        self.gather(table, batch.tokens.address(), &x)?;
        Ok(x)
    }

    fn normalize(
        &self,
        x: &CudaMatrix,
        weight: &CudaVector,
        epsilon: f32,
        padding: usize,
    ) -> Result<(CudaMatrix, CudaVector)> {
        check_norm(x, weight)?;
        self.card.timed("norm", || {
            let y = self.matrix(x.rows, x.cols, padding)?;
            let inverse = CudaVector::new(&self.card, x.rows)?;
            let (rows, cols) = (x.rows as u64, x.cols as u64);
            let (from, to) = ([x.address(), x.stride as u64], [y.address(), y.stride as u64]);
            let arguments =
                [from[0], from[1], weight.address(), bits(epsilon), to[0], to[1], inverse.address(), rows, cols];
            self.launch(&NORMALIZE, rows, &arguments)?;
            Ok((y, inverse))
        })
    }

    fn adapt(&self, frozen: &CudaFrozen, x: CudaMatrix, dropout: Option<&Dropout>) -> Result<CudaMatrix> {
        self.card.timed("adapt", || self.adapt_into(frozen, &x, dropout))?;
        Ok(x)
    }

    fn project(
        &self,
        frozen: &CudaFrozen,
        x: &CudaMatrix,
        dropout: Option<&Dropout>,
        onto: Option<&CudaMatrix>,
    ) -> Result<CudaMatrix> {
        self.card.timed("product", || self.project_all(frozen, x, dropout, onto))
    }

    fn rotate(
        &self,
        qkv: CudaMatrix,
        heads: Heads,
        tables: &[CudaVector; 2],
        batch: &CudaBatch,
        back: bool,
    ) -> Result<CudaMatrix> {
        attention::check_rows(&qkv, heads, batch)?;
        let reach = (batch.largest_position + 1) * (heads.size / 2);
        if !heads.size.is_multiple_of(16) || tables.iter().any(|table| table.len < reach) {
            return Err(broken("positions beyond the tables of rotary embeddings"));
        }
        self.card.timed("rotate", || {
            let turned = heads.query + heads.key;
            let blocks = eights(qkv.rows, turned * heads.size / 2)?;
            let arguments = [
                qkv.address(),
                qkv.stride as u64,
                tables[0].address(),
                tables[1].address(),
                batch.positions.address(),
                qkv.rows as u64,
                turned as u64,
                heads.size as u64,
                u64::from(back),
            ];
            self.launch(&ROTATE, blocks, &arguments)?;
            Ok(qkv)
        })
    }

    fn attend(
        &self,
        queries: Columns<'_, CudaMatrix>,
        seen: KeysValues<'_, CudaMatrix>,
        heads: Heads,
        batch: &CudaBatch,
        padding: usize,
    ) -> Result<(CudaMatrix, CudaVector)> {
        self.card.timed("attention", || self.attention(queries, seen, heads, batch, padding))
    }

    fn gate(&self, gate_up: &CudaMatrix, padding: usize) -> Result<CudaMatrix> {
        if !gate_up.cols.is_multiple_of(16) {
            return Err(broken("gates of an odd width"));
        }
        self.card.timed("gate", || {
            let width = gate_up.cols / 2;
            let y = self.matrix(gate_up.rows, width, padding)?;
            let (rows, from, to) = (y.rows as u64, gate_up.stride as u64, y.stride as u64);
            let arguments = [gate_up.address(), from, y.address(), to, rows, width as u64];
            self.launch(&GATE, eights(y.rows, width)?, &arguments)?;
            Ok(y)
        })
    }

    fn logits(&self, x: &CudaMatrix, head: &CudaMatrix, rows: &[u32]) -> Result<CudaMatrix> {
        self.card.timed("logits", || self.logits_of(x, head, rows))
    }

    fn cross_entropy(&self, x: &CudaMatrix, head: &CudaMatrix, batch: &CudaBatch) -> Result<CudaVector> {
        self.card.timed("loss", || self.losses(x, head, batch, 0.0, None))
    }
}
