//! Rows with magnitudes (DoRA, Liu et al., 2024) as PEFT computes them (peft/tuners/lora/dora.py and variants.py): a row of
//! the adapted weight is scaled by its gain `g`, which is its magnitude over its norm. With dropout, the magnitude's share
//! of the base's output comes from the dropped input: `y = x W^T + (g - 1) * (d W^T) + g * s (d A^T) B^T`, `d` dropped.
//! Norms count as constants in the backward pass.

use super::adapters::Shape;
use super::frozen::{CudaFrozen, Gains};
use super::kernels::{ADD_DROPPED, CHUNK, COLUMN_DOTS, DORA_GAINS, DROP_ROWS, GRAM, SCALE_BEYOND_ONE, SCALE_COLUMNS};
use super::masks::Masks;
use super::matrix::{CudaMatrix, CudaVector};
use super::{CudaEngine, bits, eights};
use crate::engine::Slot;
use crate::error::Result;
use crate::gpu::{At, Output, Sizes};

impl CudaEngine {
    /// Gains of rows with magnitudes: m / ||W + s B A||.
    pub(super) fn bind_gains(&self, frozen: &CudaFrozen, parameters: &CudaVector) -> Result<()> {
        let (Some(tables), Some(gains)) = (&frozen.tables, frozen.gains()) else { return Ok(()) };
        let (adapters, padded) = (&frozen.adapters, frozen.padded());
        let (rank, cols) = (adapters.rank, frozen.inputs);
        for (number, slot) in adapters.slots.iter().enumerate() {
            let Some(magnitude) = &slot.magnitude else { continue };
            let squares = CudaVector::new(&self.card, rank * rank)?;
            let arguments = [parameters.value(slot.a.start), squares.address(), rank as u64, cols as u64];
            self.launch(&GRAM, (rank * rank) as u64, &arguments)?;
            let along = CudaVector::new(&self.card, slot.rows.len() * padded)?;
            let a_at = At { address: tables.stack.address() + (number * padded * cols * 2) as u64, stride: cols };
            let out = At { address: along.address(), stride: padded };
            let sizes = Sizes { rows: slot.rows.len(), cols: padded, depth: cols };
            // SAFETY: the matrices have these sizes.
            unsafe { self.blas.times_transposed(rows_of(frozen, slot), a_at, out, sizes, 0.0, Output::F32) }?;
            let arguments = [
                gains.norms.value(slot.rows.start),
                along.address(),
                padded as u64,
                parameters.value(slot.b.start),
                squares.address(),
                parameters.value(magnitude.start),
                bits(adapters.scale),
                gains.values.value(slot.rows.start),
                gains.inverses.value(slot.rows.start),
                slot.rows.len() as u64,
                rank as u64,
            ];
            self.launch(&DORA_GAINS, (slot.rows.len() as u64).div_ceil(256), &arguments)?;
        }
        Ok(())
    }

    /// The outputs, plus `onto`.
    pub(super) fn project_gained(
        &self,
        frozen: &CudaFrozen,
        gains: &Gains,
        x: &CudaMatrix,
        masks: Masks,
        onto: Option<&CudaMatrix>,
    ) -> Result<CudaMatrix> {
        let bias = frozen.bias.as_ref().map_or(0, CudaVector::address);
        let y = self.matrix(x.rows, frozen.outputs, 0)?;
        if !masks.drop_any() {
            self.product(frozen, x, &y, 0.0)?;
            self.scale(&y, gains.values.address(), bias, onto, &y)?;
            return Ok(y);
        }
        let filled = bias != 0 || onto.is_some();
        if filled {
            self.filled(bias, onto, &y)?;
        }
        let (beta, inputs) = (if filled { 1.0 } else { 0.0 }, frozen.inputs);
        let base = |x: &CudaMatrix, start: usize, len: usize| {
            let weights = At { address: frozen.weights.row(start), stride: frozen.weights.stride };
            let to = At { address: y.column(start), stride: y.stride };
            let sizes = Sizes { rows: x.rows, cols: len, depth: inputs };
            // SAFETY: these are rows of the weights and as many columns of y.
            unsafe { self.blas.times_transposed(x.at(), weights, to, sizes, beta, Output::Bf16) }
        };
        let mut done = 0;
        for (number, slot) in frozen.adapters.slots.iter().enumerate() {
            base(x, done, slot.rows.start - done)?;
            done = slot.rows.end;
            // What was not dropped has gain 1: y = (x - d) W^T + g * (d W^T + s (d A^T) B^T).
            let rest = self.matrix(x.rows, inputs, 0)?;
            let dropped = self.dropped(frozen, x, masks.of_slot(number), Some(&rest))?;
            base(&rest, slot.rows.start, slot.rows.len())?;
            drop(rest);
            let gained = self.slot_outputs(frozen, slot, &dropped)?;
            let (from, to) = ([gained.address(), gained.stride as u64], [y.column(slot.rows.start), y.stride as u64]);
            let (rows, cols) = (gained.rows as u64, gained.cols as u64);
            let of_slot = gains.values.value(slot.rows.start);
            let arguments = [from[0], from[1], of_slot, 0, to[0], to[1], to[0], to[1], rows, cols];
            self.launch(&SCALE_COLUMNS, eights(gained.rows, gained.cols)?, &arguments)?;
        }
        base(x, done, frozen.outputs - done)?;
        Ok(y)
    }

    /// The gradient of the input, and those of factors and magnitudes.
    pub(super) fn project_gained_back(
        &self,
        frozen: &CudaFrozen,
        gains: &Gains,
        [dy, x]: [&CudaMatrix; 2],
        masks: Masks,
        gradients: &CudaVector,
    ) -> Result<CudaMatrix> {
        // The gradient of what is scaled.
        let scaled = self.matrix(dy.rows, dy.cols, 0)?;
        self.scale(dy, gains.values.address(), 0, None, &scaled)?;
        if !masks.drop_any() {
            let outputs = self.matrix(x.rows, dy.cols, 0)?;
            self.product(frozen, x, &outputs, 0.0)?;
            for slot in &frozen.adapters.slots {
                let at = At { address: outputs.column(slot.rows.start), stride: outputs.stride };
                self.magnitudes_back(gains, slot, dy, at, gradients)?;
            }
            return self.plain_back(frozen, &scaled, x, masks, gradients);
        }
        let adapters = &frozen.adapters;
        let dx = self.matrix(dy.rows, frozen.inputs, adapters.padding())?;
        let weights = &frozen.weights;
        // SAFETY: the matrices have these sizes: all base columns by `dy`, all padding by what is scaled.
        unsafe {
            let sizes = Sizes { rows: dy.rows, cols: frozen.inputs, depth: frozen.outputs };
            self.blas.times(dy.at(), weights.at(), dx.at(), sizes)?;
            let padding = |of: &CudaMatrix| At { address: of.column(frozen.inputs), stride: of.stride };
            let sizes = Sizes { cols: adapters.padding(), ..sizes };
            self.blas.times(scaled.at(), padding(weights), padding(&dx), sizes)?;
        }
        for (number, slot) in adapters.slots.iter().enumerate() {
            let own = masks.of_slot(number);
            let dropped = self.dropped(frozen, x, own, None)?;
            let outputs = self.slot_outputs(frozen, slot, &dropped)?;
            drop(dropped);
            self.magnitudes_back(gains, slot, dy, outputs.at(), gradients)?;
            drop(outputs);
            self.dropped_back(frozen, gains, slot, dy, own, &dx)?;
        }
        self.factors_back(frozen, &scaled, x, &dx, masks, gradients)?;
        Ok(dx)
    }

    /// Adds the way through `(g - 1) * (d W^T)` to the gradient of the input.
    fn dropped_back(
        &self,
        frozen: &CudaFrozen,
        gains: &Gains,
        slot: &Slot,
        dy: &CudaMatrix,
        mask: Masks,
        dx: &CudaMatrix,
    ) -> Result<()> {
        let (rows, cols, inputs) = (dy.rows, slot.rows.len(), frozen.inputs);
        let beyond = self.matrix(rows, cols, 0)?;
        let (from, to) = ([dy.column(slot.rows.start), dy.stride as u64], [beyond.address(), beyond.stride as u64]);
        let of_slot = gains.values.value(slot.rows.start);
        let arguments = [from[0], from[1], of_slot, to[0], to[1], rows as u64, cols as u64];
        self.launch(&SCALE_BEYOND_ONE, eights(rows, cols)?, &arguments)?;
        let through = self.matrix(rows, inputs, 0)?;
        let sizes = Sizes { rows, cols: inputs, depth: cols };
        // SAFETY: the matrices have these sizes.
        unsafe { self.blas.times(beyond.at(), rows_of(frozen, slot), through.at(), sizes) }?;
        let (to, from) = ([dx.address(), dx.stride as u64], [through.address(), through.stride as u64]);
        let Masks { keys, threshold, scale } = mask;
        let arguments = [to[0], to[1], from[0], from[1], keys, threshold, scale, rows as u64, inputs as u64];
        self.launch(&ADD_DROPPED, eights(rows, inputs)?, &arguments)
    }

    /// `dropout(x)` of the slot whose mask this is, with the padding columns of `x`; and in `rest` what `x` has beyond it.
    fn dropped(
        &self,
        frozen: &CudaFrozen,
        x: &CudaMatrix,
        mask: Masks,
        rest: Option<&CudaMatrix>,
    ) -> Result<CudaMatrix> {
        let (inputs, padding) = (frozen.inputs, frozen.adapters.padding());
        let dropped = self.matrix(x.rows, inputs, padding)?;
        let to = [dropped.address(), dropped.stride as u64];
        let rest = rest.map_or([0, 0], |rest| [rest.address(), rest.stride as u64]);
        let Masks { keys, threshold, scale } = mask;
        let from = [x.address(), x.stride as u64, keys, threshold, scale];
        let sizes = [x.rows as u64, inputs as u64, padding as u64];
        self.launch(&DROP_ROWS, eights(x.rows, inputs + padding)?, &[&from[..], &to, &rest, &sizes].concat())?;
        Ok(dropped)
    }

    /// What a slot's gains scale: `x W^T + s (x A^T) B^T` of its rows.
    fn slot_outputs(&self, frozen: &CudaFrozen, slot: &Slot, x: &CudaMatrix) -> Result<CudaMatrix> {
        let outputs = self.matrix(x.rows, slot.rows.len(), 0)?;
        let depth = frozen.inputs + frozen.adapters.padding();
        let sizes = Sizes { rows: x.rows, cols: slot.rows.len(), depth };
        let weights = rows_of(frozen, slot);
        // SAFETY: the matrices have these sizes, padding columns included.
        unsafe { self.blas.times_transposed(x.at(), weights, outputs.at(), sizes, 0.0, Output::Bf16) }?;
        Ok(outputs)
    }

    /// Adds the gradient of magnitudes: `dy * outputs` summed over rows, over the norm, where the slot's gains scale
    /// `outputs`.
    fn magnitudes_back(
        &self,
        gains: &Gains,
        slot: &Slot,
        dy: &CudaMatrix,
        outputs: At,
        gradients: &CudaVector,
    ) -> Result<()> {
        let Some(magnitude) = &slot.magnitude else { return Ok(()) };
        let (chunks, cols) = (dy.rows.div_ceil(CHUNK), slot.rows.len());
        let partials = CudaVector::new(&self.card, chunks * cols)?;
        let from = [dy.column(slot.rows.start), dy.stride as u64, outputs.address, outputs.stride as u64];
        let arguments = [from[0], from[1], from[2], from[3], dy.rows as u64, cols as u64, partials.address()];
        self.launch(&COLUMN_DOTS, (chunks * cols.div_ceil(256)) as u64, &arguments)?;
        let span = self.card.upload(&[0u64, magnitude.start as u64])?;
        let each = gains.inverses.value(slot.rows.start);
        let shape = Shape { chunks, total: cols, slots: 1 };
        self.fold(&partials, shape, gradients, span.address(), bits(1.0), each)
    }

    /// `to = gains * from + bias + onto`, by columns; `to` may be `from`, and bias an address or 0.
    fn scale(
        &self,
        from: &CudaMatrix,
        gains: u64,
        bias: u64,
        onto: Option<&CudaMatrix>,
        to: &CudaMatrix,
    ) -> Result<()> {
        let onto = onto.map_or([0, 0], |onto| [onto.address(), onto.stride as u64]);
        let (source, out) = ([from.address(), from.stride as u64], [to.address(), to.stride as u64]);
        let sizes = [from.rows as u64, from.cols as u64];
        let arguments = [&source[..], &[gains, bias], &onto, &out, &sizes].concat();
        self.launch(&SCALE_COLUMNS, eights(from.rows, from.cols)?, &arguments)
    }
}

/// The rows of a slot among the weights.
fn rows_of(frozen: &CudaFrozen, slot: &Slot) -> At {
    At { address: frozen.weights.row(slot.rows.start), stride: frozen.weights.stride }
}
