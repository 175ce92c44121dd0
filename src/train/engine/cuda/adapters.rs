//! Products with frozen weights and their adapters, forward and backward, and what an adapter needs after each step.

use super::frozen::CudaFrozen;
use super::kernels::*;
use super::matrix::{CudaMatrix, CudaVector};
use super::{At, CudaEngine, Output, Sizes, bits, eights};
use crate::error::{Error, Result};
use crate::train::dropout::Dropout;

/// Kernels by the width that they are made for: the least that covers a padded rank, or the widest, in parts.
fn of_width(padded: usize, kernels: [&'static Kernel; 3]) -> (&'static Kernel, u64) {
    let [eight, sixteen, wide] = kernels;
    match padded {
        8 => (eight, 1),
        16 => (sixteen, 1),
        _ => (wide, padded.div_ceil(32) as u64),
    }
}

impl CudaEngine {
    pub(super) fn bind_adapters(&self, frozen: &CudaFrozen, parameters: &CudaVector) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let (group, w) = (&frozen.group, &frozen.weights);
        let (slots, rank, cols) = (group.slots.len() as u64, group.rank as u64, group.inputs as u64);
        let grid = slots * (frozen.padded() as u64 / 8) * cols.div_ceil(256);
        let (stack, turned) = (adapters.stack.address(), adapters.turned.address());
        let (parameters_at, offsets) = (parameters.address(), adapters.offsets.address());
        self.launch(&PACK_A, grid, &[parameters_at, offsets, slots, rank, cols, stack, turned])?;
        let (rows, room) = (group.outputs as u64, group.room() as u64);
        let arguments = [
            parameters_at,
            adapters.spans.address(),
            slots,
            rank,
            bits(group.scale),
            w.address(),
            w.stride as u64,
            rows,
            cols,
            room,
        ];
        self.launch(&PACK_B, (rows * room).div_ceil(256), &arguments)?;
        self.bind_gains(frozen, parameters)
    }

    /// Gains of rows with magnitudes: m / ||W + s B A||.
    fn bind_gains(&self, frozen: &CudaFrozen, parameters: &CudaVector) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let Some(gains) = &adapters.gains else { return Ok(()) };
        let (group, w, padded) = (&frozen.group, &frozen.weights, frozen.padded());
        let (rank, cols) = (group.rank, group.inputs);
        for (number, slot) in group.slots.iter().enumerate() {
            let Some(magnitude) = &slot.magnitude else { continue };
            let squares = CudaVector::new(&self.card, rank * rank)?;
            let arguments = [parameters.value(slot.a.start), squares.address(), rank as u64, cols as u64];
            self.launch(&GRAM, (rank * rank) as u64, &arguments)?;
            let along = CudaVector::new(&self.card, slot.rows.len() * padded)?;
            let rows_at = At { address: w.address() + (slot.rows.start * w.stride * 2) as u64, stride: w.stride };
            let a_at = At { address: adapters.stack.address() + (number * padded * cols * 2) as u64, stride: cols };
            let out = At { address: along.address(), stride: padded };
            let sizes = Sizes { rows: slot.rows.len(), cols: padded, depth: cols };
            // SAFETY: the matrices have these sizes.
            unsafe { self.blas.times_transposed(rows_at, a_at, out, sizes, 0.0, Output::F32) }?;
            let arguments = [
                gains.norms.value(slot.rows.start),
                along.address(),
                padded as u64,
                parameters.value(slot.b.start),
                squares.address(),
                parameters.value(magnitude.start),
                bits(group.scale),
                gains.gains.value(slot.rows.start),
                gains.inverses.value(slot.rows.start),
                slot.rows.len() as u64,
                rank as u64,
            ];
            self.launch(&DORA_GAINS, (slot.rows.len() as u64).div_ceil(256), &arguments)?;
        }
        Ok(())
    }

    pub(super) fn adapt_into(&self, frozen: &CudaFrozen, x: &CudaMatrix, dropout: Option<&Dropout>) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let group = &frozen.group;
        let masks = frozen.masks(&self.card, dropout)?;
        let (kernel, parts) = of_width(frozen.padded(), [&ADAPT_8, &ADAPT_16, &ADAPT_32]);
        let (rows, slots) = (x.rows as u64, group.slots.len() as u64);
        let arguments = [
            x.address(),
            x.stride as u64,
            adapters.stack.address(),
            masks.keys,
            masks.threshold,
            masks.scale,
            rows,
            x.cols as u64,
            slots,
            group.rank as u64,
            group.room() as u64,
        ];
        self.launch(kernel, rows.div_ceil(32) * slots * parts, &arguments)
    }

    pub(super) fn project_all(
        &self,
        frozen: &CudaFrozen,
        x: &CudaMatrix,
        dropout: Option<&Dropout>,
        onto: Option<&CudaMatrix>,
    ) -> Result<CudaMatrix> {
        let gains = frozen.adapters.as_ref().and_then(|adapters| adapters.gains.as_ref());
        let y = self.matrix(x.rows, frozen.group.outputs, 0)?;
        let bias = frozen.bias.as_ref().map_or(0, CudaVector::address);
        if let Some(gains) = gains {
            if dropout.is_some() {
                return Err(Error::refused(
                    "DoRA with dropout is not trained on cards yet",
                    "set --lora_dropout 0, or use --device cpu",
                ));
            }
            self.product(frozen, x, &y, 0.0)?;
            let (onto, stride) = onto.map_or((0, 0), |onto| (onto.address(), onto.stride as u64));
            let at = [y.address(), y.stride as u64];
            let sizes = [y.rows as u64, y.cols as u64];
            let gains = gains.gains.address();
            let arguments = [at[0], at[1], gains, bias, onto, stride, at[0], at[1], sizes[0], sizes[1]];
            self.launch(&SCALE_COLUMNS, eights(y.rows, y.cols), &arguments)?;
            return Ok(y);
        }
        let filled = bias != 0 || onto.is_some();
        if filled {
            self.filled(bias, onto, &y)?;
        }
        self.product(frozen, x, &y, if filled { 1.0 } else { 0.0 })?;
        Ok(y)
    }

    /// `y = x_aug * W_aug^T + beta * y`.
    fn product(&self, frozen: &CudaFrozen, x: &CudaMatrix, y: &CudaMatrix, beta: f32) -> Result<()> {
        let depth = frozen.group.inputs + frozen.group.room();
        let sizes = Sizes { rows: x.rows, cols: y.cols, depth };
        // SAFETY: both have that many columns, the spare ones included, and y is as large as the product.
        unsafe { self.blas.times_transposed(x.at(), frozen.weights.at(), y.at(), sizes, beta, Output::Bf16) }
    }

    pub(super) fn project_all_back(
        &self,
        frozen: &CudaFrozen,
        dy: &CudaMatrix,
        x: &CudaMatrix,
        dropout: Option<&Dropout>,
        gradients: &CudaVector,
    ) -> Result<CudaMatrix> {
        let group = &frozen.group;
        let gains = frozen.adapters.as_ref().and_then(|adapters| adapters.gains.as_ref());
        let scaled = match gains {
            None => None,
            Some(gains) => {
                self.magnitudes_back(frozen, dy, x, gradients)?;
                let scaled = self.matrix(dy.rows, dy.cols, 0)?;
                let (from, to) = ([dy.address(), dy.stride as u64], [scaled.address(), scaled.stride as u64]);
                let (rows, cols) = (dy.rows as u64, dy.cols as u64);
                let arguments = [from[0], from[1], gains.gains.address(), 0, 0, 0, to[0], to[1], rows, cols];
                self.launch(&SCALE_COLUMNS, eights(dy.rows, dy.cols), &arguments)?;
                Some(scaled)
            }
        };
        let dy = scaled.as_ref().unwrap_or(dy);
        let dx = self.matrix(dy.rows, group.inputs, group.room())?;
        self.card.timed("product, back", || {
            let sizes = Sizes { rows: dy.rows, cols: group.inputs + group.room(), depth: group.outputs };
            // SAFETY: the matrices have these sizes.
            unsafe { self.blas.times(dy.at(), frozen.weights.at(), dx.at(), sizes) }
        })?;
        self.card.timed("adapt, back", || self.adapt_back(frozen, &dx, dropout))?;
        self.card.timed("factors", || {
            self.factor_a(frozen, &dx, x, dropout, gradients)?;
            self.factor_b(frozen, dy, x, gradients)
        })?;
        Ok(dx)
    }

    fn adapt_back(&self, frozen: &CudaFrozen, dx: &CudaMatrix, dropout: Option<&Dropout>) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let masks = frozen.masks(&self.card, dropout)?;
        let (rows, cols) = (dx.rows as u64, dx.cols as u64);
        let arguments = [
            dx.address(),
            dx.stride as u64,
            adapters.turned.address(),
            masks.keys,
            masks.threshold,
            masks.scale,
            rows,
            cols,
            frozen.group.slots.len() as u64,
            frozen.group.rank as u64,
        ];
        self.launch(&ADAPT_BACK, rows.div_ceil(128) * cols.div_ceil(256), &arguments)
    }

    fn factor_a(
        &self,
        frozen: &CudaFrozen,
        dx: &CudaMatrix,
        x: &CudaMatrix,
        dropout: Option<&Dropout>,
        gradients: &CudaVector,
    ) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let group = &frozen.group;
        let masks = frozen.masks(&self.card, dropout)?;
        let (kernel, parts) = of_width(frozen.padded(), [&FACTOR_A_8, &FACTOR_A_16, &FACTOR_A_32]);
        let (slots, rank, cols) = (group.slots.len(), group.rank, group.inputs);
        let (chunks, total) = (x.rows.div_ceil(CHUNK), slots * rank * cols);
        let partials = CudaVector::new(&self.card, chunks * total)?;
        let arguments = [
            x.address(),
            x.stride as u64,
            dx.column(cols),
            dx.stride as u64,
            masks.keys,
            masks.threshold,
            x.rows as u64,
            cols as u64,
            slots as u64,
            rank as u64,
            partials.address(),
        ];
        let grid = (chunks * cols.div_ceil(256) * slots) as u64 * parts;
        self.launch(kernel, grid, &arguments)?;
        self.fold(&partials, chunks, total, gradients, adapters.fold_a.address(), slots, masks.scale, 0)
    }

    fn factor_b(&self, frozen: &CudaFrozen, dy: &CudaMatrix, x: &CudaMatrix, gradients: &CudaVector) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let group = &frozen.group;
        let (kernel, parts) = of_width(frozen.padded(), [&FACTOR_B_8, &FACTOR_B_16, &FACTOR_B_32]);
        let (slots, rank) = (group.slots.len(), group.rank);
        let chunks = dy.rows.div_ceil(CHUNK);
        let total: usize = group.slots.iter().map(|slot| slot.b.len()).sum();
        let across: usize = group.slots.iter().map(|slot| slot.rows.len().div_ceil(256)).sum();
        let partials = CudaVector::new(&self.card, chunks * total)?;
        let arguments = [
            dy.address(),
            dy.stride as u64,
            x.column(group.inputs),
            x.stride as u64,
            adapters.rows.address(),
            dy.rows as u64,
            slots as u64,
            rank as u64,
            partials.address(),
            total as u64,
        ];
        self.launch(kernel, (chunks * across) as u64 * parts, &arguments)?;
        let scale = bits(group.scale);
        self.fold(&partials, chunks, total, gradients, adapters.fold_b.address(), slots, scale, 0)
    }

    /// The gradient of magnitudes: `dy * z` summed over rows, over the norm, where `z` is what the gains scale.
    fn magnitudes_back(
        &self,
        frozen: &CudaFrozen,
        dy: &CudaMatrix,
        x: &CudaMatrix,
        gradients: &CudaVector,
    ) -> Result<()> {
        let Some(gains) = frozen.adapters.as_ref().and_then(|adapters| adapters.gains.as_ref()) else { return Ok(()) };
        let z = self.matrix(x.rows, frozen.group.outputs, 0)?;
        self.product(frozen, x, &z, 0.0)?;
        for slot in &frozen.group.slots {
            let Some(magnitude) = &slot.magnitude else { continue };
            let (chunks, cols) = (dy.rows.div_ceil(CHUNK), slot.rows.len());
            let partials = CudaVector::new(&self.card, chunks * cols)?;
            let (dy_at, z_at) = (dy.column(slot.rows.start), z.column(slot.rows.start));
            let (rows, width) = (dy.rows as u64, cols as u64);
            let arguments = [dy_at, dy.stride as u64, z_at, z.stride as u64, rows, width, partials.address()];
            self.launch(&COLUMN_DOTS, (chunks * cols.div_ceil(256)) as u64, &arguments)?;
            let span = self.card.upload(&[0u64, magnitude.start as u64])?;
            let each = gains.inverses.value(slot.rows.start);
            self.fold(&partials, chunks, cols, gradients, span.address(), 1, bits(1.0), each)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "they are the kernel's")]
    fn fold(
        &self,
        partials: &CudaVector,
        chunks: usize,
        total: usize,
        gradients: &CudaVector,
        spans: u64,
        slots: usize,
        factor: u64,
        each: u64,
    ) -> Result<()> {
        let (chunks, total, slots) = (chunks as u64, total as u64, slots as u64);
        let arguments = [partials.address(), chunks, total, gradients.address(), spans, slots, factor, each];
        self.launch(&FOLD, total.div_ceil(1024), &arguments)
    }
}
