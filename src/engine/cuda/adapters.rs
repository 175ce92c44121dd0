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
use super::{CudaEngine, bits};
use crate::engine::dropout::Dropout;
use crate::error::Result;
use crate::gpu::{Kernel, Output, Sizes};

/// How the kernels of adapters see the slots: as many, or as one that is wider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    slots: usize,
    rank: usize,
}

impl View {
    fn of(frozen: &CudaFrozen, masks: Masks) -> Self {
        let (slots, rank) = (frozen.adapters.slots.len(), frozen.adapters.rank);
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
        let Some(tables) = &frozen.tables else { return Ok(()) };
        if parameters.len < frozen.parameters() {
            return Err(broken("a vector of parameters that is too short"));
        }
        let (adapters, w) = (&frozen.adapters, &frozen.weights);
        let (slots, rank, cols) = (adapters.slots.len() as u64, adapters.rank as u64, frozen.inputs as u64);
        let grid = slots * (frozen.padded() as u64 / 8) * cols.div_ceil(256);
        let (stack, turned) = (tables.stack.address(), tables.turned.address());
        let (parameters_at, offsets) = (parameters.address(), tables.offsets.address());
        self.launch(&PACK_A, grid, &[parameters_at, offsets, slots, rank, cols, stack, turned])?;
        let (rows, padding) = (frozen.outputs as u64, adapters.padding() as u64);
        let arguments = [
            parameters_at,
            tables.spans.address(),
            slots,
            rank,
            bits(adapters.scale),
            w.address(),
            w.stride as u64,
            rows,
            cols,
            padding,
        ];
        self.launch(&PACK_B, (rows * padding).div_ceil(256), &arguments)?;
        self.bind_gains(frozen, parameters)
    }

    /// The masks of the slots.
    fn masks(&self, frozen: &CudaFrozen, dropout: Option<&Dropout>) -> Result<Masks> {
        match frozen.adapters.slots.first() {
            Some(slot) => self.keys.masks(&self.card, dropout, slot.module),
            None => Ok(Masks::NONE),
        }
    }

    pub(super) fn adapt_into(&self, frozen: &CudaFrozen, x: &CudaMatrix, dropout: Option<&Dropout>) -> Result<()> {
        frozen.check_input(x)?;
        let Some(tables) = &frozen.tables else { return Ok(()) };
        let masks = self.masks(frozen, dropout)?;
        let view = View::of(frozen, masks);
        let (kernel, parts) = view.choose([&ADAPT_8, &ADAPT_16, &ADAPT_32]);
        let rows = x.rows as u64;
        let arguments = [
            x.address(),
            x.stride as u64,
            tables.stack.address(),
            masks.keys,
            masks.threshold,
            masks.scale,
            rows,
            x.cols as u64,
            view.slots as u64,
            view.rank as u64,
            frozen.adapters.padding() as u64,
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
        if onto.is_some_and(|onto| onto.rows != x.rows || onto.cols != frozen.outputs) {
            return Err(broken("a sum of matrices of two shapes"));
        }
        if let Some(gains) = frozen.gains() {
            return self.project_gained(frozen, gains, x, self.masks(frozen, dropout)?, onto);
        }
        let y = self.matrix(x.rows, frozen.outputs, 0)?;
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
        let depth = frozen.inputs + frozen.adapters.padding();
        let sizes = Sizes { rows: x.rows, cols: y.cols, depth };
        // SAFETY: both have that many columns, padding included, and y is as large as the product.
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
        if dy.rows != x.rows || dy.cols != frozen.outputs || gradients.len < frozen.parameters() {
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
        let adapters = &frozen.adapters;
        let dx = self.matrix(dy.rows, frozen.inputs, adapters.padding())?;
        self.card.timed("product, back", || {
            let sizes = Sizes { rows: dy.rows, cols: frozen.inputs + adapters.padding(), depth: frozen.outputs };
            // SAFETY: the matrices have these sizes.
            unsafe { self.blas.times(dy.at(), frozen.weights.at(), dx.at(), sizes) }
        })?;
        self.factors_back(frozen, dy, x, &dx, masks, gradients)?;
        Ok(dx)
    }

    /// From the padding columns of `dx` on: the way through the adapters, and the gradients of the factors.
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
        let Some(tables) = &frozen.tables else { return Ok(()) };
        let view = View::of(frozen, masks);
        let (rows, cols) = (dx.rows as u64, dx.cols as u64);
        let arguments = [
            dx.address(),
            dx.stride as u64,
            tables.turned.address(),
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
        let Some(tables) = &frozen.tables else { return Ok(()) };
        let (slots, rank, cols) = (frozen.adapters.slots.len(), frozen.adapters.rank, frozen.inputs);
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
        self.fold(&partials, shape, gradients, tables.fold_a.address(), masks.scale, 0)
    }

    fn factor_b(&self, frozen: &CudaFrozen, dy: &CudaMatrix, x: &CudaMatrix, gradients: &CudaVector) -> Result<()> {
        let Some(tables) = &frozen.tables else { return Ok(()) };
        let adapters = &frozen.adapters;
        // A slot's own share of the blocks is counted in `across`.
        let (kernel, parts) = View { slots: 1, rank: adapters.rank }.choose([&FACTOR_B_8, &FACTOR_B_16, &FACTOR_B_32]);
        let (slots, rank) = (adapters.slots.len(), adapters.rank);
        let total = adapters.slots.iter().map(|slot| slot.b.len()).sum();
        let shape = Shape { chunks: dy.rows.div_ceil(CHUNK), total, slots };
        let across: usize = adapters.slots.iter().map(|slot| slot.rows.len().div_ceil(256)).sum();
        let partials = CudaVector::new(&self.card, shape.chunks * total)?;
        let arguments = [
            dy.address(),
            dy.stride as u64,
            x.column(frozen.inputs),
            x.stride as u64,
            tables.rows.address(),
            dy.rows as u64,
            slots as u64,
            rank as u64,
            partials.address(),
            total as u64,
        ];
        self.launch(kernel, (shape.chunks * across) as u64 * parts, &arguments)?;
        self.fold(&partials, shape, gradients, tables.fold_b.address(), bits(adapters.scale), 0)
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
