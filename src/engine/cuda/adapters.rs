//! Products with frozen weights and their adapters, forward and backward, and what an adapter needs after each step.
//! Rows with magnitudes are in `dora`.

use super::card::broken;
use super::frozen::{CudaFrozen, MOST_RANK};
use super::kernels::{
    ADAPT_8, ADAPT_16, ADAPT_32, ADAPT_BACK, CHUNK, FACTOR_A_8, FACTOR_A_16, FACTOR_A_32, FACTOR_B_8, FACTOR_B_16,
    FACTOR_B_32, FOLD, PACK_A, PACK_B,
};
use super::masks::Masks;
use super::matrix::{CudaMatrix, CudaVector};
use super::{CudaEngine, Output, Sizes, bits};
use crate::engine::dropout::Dropout;
use crate::error::Result;
use crate::gpu::Kernel;

/// How the kernels of adapters see the slots: as many, or as one that is wider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    slots: usize,
    rank: usize,
}

impl View {
    fn of(frozen: &CudaFrozen, masks: Masks) -> Self {
        let (slots, rank) = (frozen.group.slots.len(), frozen.group.rank);
        // Without masks, slots whose rows are not padded are one, for which inputs are read once.
        if !masks.drop_any() && rank.is_multiple_of(8) && slots * rank <= MOST_RANK {
            return Self { slots: 1, rank: slots * rank };
        }
        Self { slots, rank }
    }

    /// The kernel for the rank, of those for up to 8 and 16 and for parts of 32; and the blocks of a part of the rows, for
    /// all slots.
    fn choose(self, [eight, sixteen, wide]: [&'static Kernel; 3]) -> (&'static Kernel, u64) {
        let padded = self.rank.next_multiple_of(8);
        let kernel = match padded {
            8 => eight,
            16 => sixteen,
            _ => wide,
        };
        (kernel, (self.slots * padded.div_ceil(32)) as u64)
    }
}

/// Sums over chunks of rows, of `total` values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) chunks: usize,
    pub(super) total: usize,
    /// Parts that go to places of their own.
    pub(super) slots: usize,
}

impl CudaEngine {
    pub(super) fn bind_adapters(&self, frozen: &CudaFrozen, parameters: &CudaVector) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        if parameters.len < frozen.parameters() {
            return Err(broken("a vector of parameters that is too short"));
        }
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

    /// The masks of a group's slots.
    fn masks(&self, frozen: &CudaFrozen, dropout: Option<&Dropout>) -> Result<Masks> {
        match frozen.group.slots.first() {
            Some(slot) => self.keys.masks(&self.card, dropout, slot.module),
            None => Ok(Masks::NONE),
        }
    }

    pub(super) fn adapt_into(&self, frozen: &CudaFrozen, x: &CudaMatrix, dropout: Option<&Dropout>) -> Result<()> {
        frozen.check_input(x)?;
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let masks = self.masks(frozen, dropout)?;
        let view = View::of(frozen, masks);
        let (kernel, parts) = view.choose([&ADAPT_8, &ADAPT_16, &ADAPT_32]);
        let rows = x.rows as u64;
        let arguments = [
            x.address(),
            x.stride as u64,
            adapters.stack.address(),
            masks.keys,
            masks.threshold,
            masks.scale,
            rows,
            x.cols as u64,
            view.slots as u64,
            view.rank as u64,
            frozen.group.room() as u64,
        ];
        self.launch(kernel, rows.div_ceil(32) * parts, &arguments)
    }

    pub(super) fn project_all(
        &self,
        frozen: &CudaFrozen,
        x: &CudaMatrix,
        dropout: Option<&Dropout>,
        onto: Option<&CudaMatrix>,
    ) -> Result<CudaMatrix> {
        frozen.check_input(x)?;
        if onto.is_some_and(|onto| onto.rows != x.rows || onto.cols != frozen.group.outputs) {
            return Err(broken("a sum of matrices of two shapes"));
        }
        if let Some(gains) = frozen.gains() {
            return self.project_gained(frozen, gains, x, self.masks(frozen, dropout)?, onto);
        }
        let y = self.matrix(x.rows, frozen.group.outputs, 0)?;
        let bias = frozen.bias.as_ref().map_or(0, CudaVector::address);
        let filled = bias != 0 || onto.is_some();
        if filled {
            self.filled(bias, onto, &y)?;
        }
        self.product(frozen, x, &y, if filled { 1.0 } else { 0.0 })?;
        Ok(y)
    }

    /// `y = x_aug * W_aug^T + beta * y`.
    pub(super) fn product(&self, frozen: &CudaFrozen, x: &CudaMatrix, y: &CudaMatrix, beta: f32) -> Result<()> {
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
        frozen.check_input(x)?;
        if dy.rows != x.rows || dy.cols != frozen.group.outputs || gradients.len < frozen.parameters() {
            return Err(broken("the gradient of another projection"));
        }
        let masks = self.masks(frozen, dropout)?;
        match frozen.gains() {
            Some(gains) => self.project_gained_back(frozen, gains, [dy, x], masks, gradients),
            None => self.plain_back(frozen, dy, x, masks, gradients),
        }
    }

    /// Without magnitudes.
    pub(super) fn plain_back(
        &self,
        frozen: &CudaFrozen,
        dy: &CudaMatrix,
        x: &CudaMatrix,
        masks: Masks,
        gradients: &CudaVector,
    ) -> Result<CudaMatrix> {
        let group = &frozen.group;
        let dx = self.matrix(dy.rows, group.inputs, group.room())?;
        self.card.timed("product, back", || {
            let sizes = Sizes { rows: dy.rows, cols: group.inputs + group.room(), depth: group.outputs };
            // SAFETY: the matrices have these sizes.
            unsafe { self.blas.times(dy.at(), frozen.weights.at(), dx.at(), sizes) }
        })?;
        self.factors_back(frozen, dy, x, &dx, masks, gradients)?;
        Ok(dx)
    }

    /// From the spare columns of `dx` on: the way through the adapters, and the gradients of the factors.
    pub(super) fn factors_back(
        &self,
        frozen: &CudaFrozen,
        dy: &CudaMatrix,
        x: &CudaMatrix,
        dx: &CudaMatrix,
        masks: Masks,
        gradients: &CudaVector,
    ) -> Result<()> {
        self.card.timed("adapt, back", || self.adapt_back(frozen, dx, masks))?;
        self.card.timed("factors", || {
            self.factor_a(frozen, dx, x, masks, gradients)?;
            self.factor_b(frozen, dy, x, gradients)
        })
    }

    fn adapt_back(&self, frozen: &CudaFrozen, dx: &CudaMatrix, masks: Masks) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let view = View::of(frozen, masks);
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
            view.slots as u64,
            view.rank as u64,
        ];
        self.launch(&ADAPT_BACK, rows.div_ceil(128) * cols.div_ceil(256), &arguments)
    }

    fn factor_a(
        &self,
        frozen: &CudaFrozen,
        dx: &CudaMatrix,
        x: &CudaMatrix,
        masks: Masks,
        gradients: &CudaVector,
    ) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let (slots, rank, cols) = (frozen.group.slots.len(), frozen.group.rank, frozen.group.inputs);
        let view = View::of(frozen, masks);
        let (kernel, parts) = view.choose([&FACTOR_A_8, &FACTOR_A_16, &FACTOR_A_32]);
        let shape = Shape { chunks: x.rows.div_ceil(CHUNK), total: slots * rank * cols, slots };
        let partials = CudaVector::new(&self.card, shape.chunks * shape.total)?;
        let arguments = [
            x.address(),
            x.stride as u64,
            dx.column(cols),
            dx.stride as u64,
            masks.keys,
            masks.threshold,
            x.rows as u64,
            cols as u64,
            view.slots as u64,
            view.rank as u64,
            partials.address(),
        ];
        self.launch(kernel, (shape.chunks * cols.div_ceil(256)) as u64 * parts, &arguments)?;
        self.fold(&partials, shape, gradients, adapters.fold_a.address(), masks.scale, 0)
    }

    fn factor_b(&self, frozen: &CudaFrozen, dy: &CudaMatrix, x: &CudaMatrix, gradients: &CudaVector) -> Result<()> {
        let Some(adapters) = &frozen.adapters else { return Ok(()) };
        let group = &frozen.group;
        // A slot's own share of the blocks is counted in `across`.
        let (kernel, parts) = View { slots: 1, rank: group.rank }.choose([&FACTOR_B_8, &FACTOR_B_16, &FACTOR_B_32]);
        let (slots, rank) = (group.slots.len(), group.rank);
        let total = group.slots.iter().map(|slot| slot.b.len()).sum();
        let shape = Shape { chunks: dy.rows.div_ceil(CHUNK), total, slots };
        let across: usize = group.slots.iter().map(|slot| slot.rows.len().div_ceil(256)).sum();
        let partials = CudaVector::new(&self.card, shape.chunks * total)?;
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
        self.launch(kernel, (shape.chunks * across) as u64 * parts, &arguments)?;
        self.fold(&partials, shape, gradients, adapters.fold_b.address(), bits(group.scale), 0)
    }

    /// Adds sums of partial sums to gradients: `spans` say which go where, and `each` what each is multiplied by, if
    /// it is not 0.
    pub(super) fn fold(
        &self,
        partials: &CudaVector,
        Shape { chunks, total, slots }: Shape,
        gradients: &CudaVector,
        spans: u64,
        factor: u64,
        each: u64,
    ) -> Result<()> {
        let (chunks, total, slots) = (chunks as u64, total as u64, slots as u64);
        let arguments = [partials.address(), chunks, total, gradients.address(), spans, slots, factor, each];
        self.launch(&FOLD, total.div_ceil(1024), &arguments)
    }
}
