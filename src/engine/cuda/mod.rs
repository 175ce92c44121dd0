//! Training on an NVIDIA card, in bf16 with sums in f32: matrix products by cuBLAS, everything else by kernels of our
//! own. The driver and cuBLAS are found at run time. One of the rooms with `unsafe`.

mod adapters;
mod attention;
mod card;
mod dora;
mod frozen;
mod kernels;
mod masks;
mod matrix;
mod placed;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod throughput;

use std::collections::BTreeMap;

use crate::arch::Heads;
use crate::checkpoint::Tensor;
use crate::engine::Batch;
use crate::engine::dropout::Dropout;
use crate::engine::{AdamW, Engine};
use crate::error::{Error, Result};
use crate::gpu::{At, Blas, Device, Kernel, Output, Sizes};
use crate::ranks::Ranks;
use crate::train::lora::Group;

use card::{Card, broken};
pub use frozen::CudaFrozen;
use kernels::{
    ADAMW, CROSS_ENTROPY, FILL_ROWS, GATE, GATE_BACK, GATHER_ROWS, NORMALIZE, NORMALIZE_BACK, ROTATE, ROW_NORMS,
    SCATTER_ROWS, SUM_PARTIALS, SUM_SQUARES,
};
use masks::Keys;
pub use matrix::{CudaMatrix, CudaVector};
pub use placed::CudaBatch;

/// Bytes of logits that are made at once.
const LOGITS: usize = 640 << 20;

/// An NVIDIA card.
pub struct CudaEngine {
    blas: Blas,
    keys: Keys,
    card: Card,
}

/// A kernel's parameter: the bits of an f32.
fn bits(value: f32) -> u64 {
    value.to_bits().into()
}

/// Blocks of 256 threads that handle 8 columns each; kernels count those in 32 bits.
fn eights(rows: usize, cols: usize) -> Result<u64> {
    match rows.checked_mul(cols / 8) {
        Some(count) if u32::try_from(count).is_ok() => Ok(count.div_ceil(256) as u64),
        _ => {
            let problem = format!("a matrix of {rows} x {cols} values is more than the kernels of cards count");
            Err(Error::unsupported(problem, "lower --per_device_train_batch_size or --max_length"))
        }
    }
}

/// Whether `y` has the rows and columns of `x`.
fn alike(x: &CudaMatrix, y: &CudaMatrix) -> bool {
    (x.rows, x.cols) == (y.rows, y.cols)
}

impl CudaEngine {
    /// Opens the first card that `device` means.
    pub fn open(device: Device) -> Result<Self> {
        let card = card::open(device)?;
        let blas = Blas::open(&card)?;
        Ok(Self { blas, keys: Keys::default(), card })
    }

    /// Whether there are kernels for such heads, and the card runs them: to be asked before weights are loaded.
    pub fn supports(&self, heads: Heads) -> Result<()> {
        attention::check(heads, self.card.shared_memory()?)
    }

    /// Enqueues a kernel whose arguments are right: see its source.
    fn launch(&self, kernel: &Kernel, grid: u64, arguments: &[u64]) -> Result<()> {
        // SAFETY: this room passes what kernels/*.cu document, of matrices and vectors that are alive.
        unsafe { self.card.launch(kernel, grid, arguments) }
    }

    fn matrix(&self, rows: usize, cols: usize, room: usize) -> Result<CudaMatrix> {
        CudaMatrix::new(&self.card, rows, cols, room)
    }

    fn filled(&self, bias: u64, onto: Option<&CudaMatrix>, y: &CudaMatrix) -> Result<()> {
        let (onto, stride) = onto.map_or((0, 0), |onto| (onto.address(), onto.stride));
        let arguments = [bias, onto, stride as u64, y.address(), y.stride as u64, y.rows as u64, y.cols as u64];
        self.launch(&FILL_ROWS, eights(y.rows, y.cols)?, &arguments)
    }
}

/// Whether `weight` is that of a norm of `x`.
fn check_norm(x: &CudaMatrix, weight: &CudaVector) -> Result<()> {
    if x.cols == weight.len && x.cols.is_multiple_of(8) {
        return Ok(());
    }
    Err(broken("a norm of another width"))
}

impl Engine for CudaEngine {
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Frozen = CudaFrozen;
    type Placed = CudaBatch;

    fn vector(&self, values: &[f32]) -> Result<CudaVector> {
        CudaVector::of(&self.card, values)
    }

    fn read(&self, vector: &CudaVector) -> Result<Vec<f32>> {
        self.card.read(vector.memory(), vector.len)
    }

    fn write(&self, vector: &mut CudaVector, values: &[f32]) -> Result<()> {
        if vector.len != values.len() {
            return Err(broken("values for a vector of another length"));
        }
        self.card.write(vector.memory(), values)
    }

    fn zero(&self, vector: &mut CudaVector) -> Result<()> {
        self.card.clear(vector.memory(), vector.len * 4)
    }

    fn table(&self, tensor: &Tensor) -> Result<CudaMatrix> {
        let [rows, cols] = *tensor.shape() else { return Err(broken("a table that is no matrix")) };
        if cols == 0 || !cols.is_multiple_of(8) {
            let problem = format!("the model has hidden states of {cols} values, and cards take multiples of 8");
            return Err(Error::unsupported(problem, "use --device cpu"));
        }
        let matrix = self.matrix(rows, cols, 0)?;
        frozen::copy(&self.card, tensor, &matrix, 0)?;
        Ok(matrix)
    }

    fn freeze(&self, group: &Group, weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<CudaFrozen> {
        let frozen = CudaFrozen::new(&self.card, group, weights, biases)?;
        // The slots' modules follow each other.
        self.keys.expect(group.slots.first().map_or(0, |slot| slot.module + group.slots.len()));
        if let Some(gains) = frozen.adapters.as_ref().and_then(|adapters| adapters.gains.as_ref()) {
            self.norms_into(&frozen, &gains.norms)?;
        }
        Ok(frozen)
    }

    fn row_norms(&self, frozen: &CudaFrozen) -> Result<Vec<Vec<f32>>> {
        let norms = CudaVector::new(&self.card, frozen.group.outputs)?;
        self.norms_into(frozen, &norms)?;
        let norms = self.read(&norms)?;
        Ok(frozen.group.slots.iter().map(|slot| norms[slot.rows.clone()].to_vec()).collect())
    }

    fn bind(&self, frozen: &mut CudaFrozen, parameters: &CudaVector) -> Result<()> {
        self.card.timed("bind", || self.bind_adapters(frozen, parameters))
    }

    fn place(&self, batch: &Batch) -> Result<CudaBatch> {
        CudaBatch::place(&self.card, batch)
    }

    fn zeros_like(&self, x: &CudaMatrix) -> Result<CudaMatrix> {
        let zeros = self.matrix(x.rows, x.cols, x.stride - x.cols)?;
        self.card.clear(zeros.memory(), zeros.bytes())?;
        Ok(zeros)
    }

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
        room: usize,
    ) -> Result<(CudaMatrix, CudaVector)> {
        check_norm(x, weight)?;
        self.card.timed("norm", || {
            let y = self.matrix(x.rows, x.cols, room)?;
            let inverse = CudaVector::new(&self.card, x.rows)?;
            let (rows, cols) = (x.rows as u64, x.cols as u64);
            let (from, to) = ([x.address(), x.stride as u64], [y.address(), y.stride as u64]);
            let arguments =
                [from[0], from[1], weight.address(), bits(epsilon), to[0], to[1], inverse.address(), rows, cols];
            self.launch(&NORMALIZE, rows, &arguments)?;
            Ok((y, inverse))
        })
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
        qkv: &CudaMatrix,
        heads: Heads,
        batch: &CudaBatch,
        room: usize,
    ) -> Result<(CudaMatrix, CudaVector)> {
        self.card.timed("attention", || self.attention(qkv, heads, batch, room))
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

    fn gate(&self, gate_up: &CudaMatrix, room: usize) -> Result<CudaMatrix> {
        if !gate_up.cols.is_multiple_of(16) {
            return Err(broken("gates of an odd width"));
        }
        self.card.timed("gate", || {
            let width = gate_up.cols / 2;
            let y = self.matrix(gate_up.rows, width, room)?;
            let (rows, from, to) = (y.rows as u64, gate_up.stride as u64, y.stride as u64);
            let arguments = [gate_up.address(), from, y.address(), to, rows, width as u64];
            self.launch(&GATE, eights(y.rows, width)?, &arguments)?;
            Ok(y)
        })
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

    fn cross_entropy(
        &self,
        x: &CudaMatrix,
        head: &CudaMatrix,
        batch: &CudaBatch,
        scale: f32,
        back: bool,
    ) -> Result<(CudaVector, Option<CudaMatrix>)> {
        self.card.timed("loss", || self.losses(x, head, batch, scale, back))
    }

    fn sum_on_card(&self, vector: &mut CudaVector, ranks: &mut dyn Ranks) -> Result<bool> {
        // NCCL takes the card whose context is current.
        self.card.bind()?;
        let Some(cards) = ranks.on_card()? else { return Ok(false) };
        let stream = self.card.stream().handle();
        // SAFETY: the vector is on this card and has that many values; the stream is this card's.
        self.card.timed("ranks", || unsafe { cards.sum(vector.address(), vector.len, stream) })?;
        Ok(true)
    }

    fn sum_of_squares(&self, vector: &CudaVector) -> Result<f64> {
        let blocks = (vector.len as u64).div_ceil(8192);
        let partials = self.card.allocate(blocks as usize * 8)?;
        let sum = self.card.zeros(8)?;
        self.launch(&SUM_SQUARES, blocks, &[vector.address(), vector.len as u64, partials.address()])?;
        self.launch(&SUM_PARTIALS, 1, &[partials.address(), blocks, sum.address()])?;
        Ok(self.card.read::<f64>(&sum, 1)?.first().copied().unwrap_or_default())
    }

    fn adamw(
        &self,
        parameters: &mut CudaVector,
        gradients: &CudaVector,
        first: &mut CudaVector,
        second: &mut CudaVector,
        step: &AdamW,
    ) -> Result<()> {
        if [gradients, first, second].iter().any(|vector| vector.len != parameters.len) {
            return Err(broken("gradients or moments of other parameters"));
        }
        let AdamW { rate, beta1, beta2, epsilon, decay, step, clip } = *step;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let numbers = [rate, beta1, beta2, epsilon, decay, correction(beta1), correction(beta2), clip];
        let vectors = [parameters.address(), gradients.address(), first.address(), second.address()];
        let len = parameters.len as u64;
        let arguments: Vec<u64> = vectors.into_iter().chain([len]).chain(numbers.map(f64::to_bits)).collect();
        self.card.timed("adamw", || self.launch(&ADAMW, len.div_ceil(1024), &arguments))
    }

    fn peak_memory(&self) -> Option<u64> {
        self.card.peak()
    }

    fn free_memory(&self) -> Option<u64> {
        self.card.free()
    }

    fn time(&self) {
        self.card.time();
    }

    fn timings(&self) -> Result<BTreeMap<&'static str, f64>> {
        self.card.timings()
    }

    fn name(&self) -> String {
        self.card.name().to_owned()
    }

    const TYPE: &'static str = "bf16";
}

impl CudaEngine {
    fn norms_into(&self, frozen: &CudaFrozen, norms: &CudaVector) -> Result<()> {
        let (w, group) = (&frozen.weights, &frozen.group);
        let (rows, cols) = (group.outputs as u64, group.inputs as u64);
        self.launch(&ROW_NORMS, rows, &[w.address(), w.stride as u64, norms.address(), rows, cols])
    }

    /// Rows of `from`, chosen by `indices`, into the rows of `to`.
    fn gather(&self, from: &CudaMatrix, indices: u64, to: &CudaMatrix) -> Result<()> {
        let (rows, cols) = (to.rows as u64, from.cols as u64);
        let arguments = [from.address(), from.stride as u64, indices, to.address(), to.stride as u64, rows, cols];
        self.launch(&GATHER_ROWS, eights(to.rows, from.cols)?, &arguments)
    }

    fn losses(
        &self,
        x: &CudaMatrix,
        head: &CudaMatrix,
        batch: &CudaBatch,
        scale: f32,
        back: bool,
    ) -> Result<(CudaVector, Option<CudaMatrix>)> {
        let (vocabulary, hidden) = (head.rows, head.cols);
        let known = batch.targets == 0 || batch.largest_target < vocabulary;
        if !known || x.rows != batch.rows || x.cols != hidden {
            return Err(broken("a head of another model, or a target beyond its vocabulary"));
        }
        let losses = CudaVector::new(&self.card, batch.targets)?;
        let dx = if back { Some(self.zeros_like(x)?) } else { None };
        let most = (LOGITS / (2 * vocabulary.next_multiple_of(8))).max(1);
        for first in (0..batch.targets).step_by(most) {
            let rows = most.min(batch.targets - first);
            let skip = first as u64 * 4;
            let indices = batch.target_rows.address() + skip;
            let chosen = self.matrix(rows, hidden, 0)?;
            self.gather(x, indices, &chosen)?;
            let logits = self.matrix(rows, vocabulary, 0)?;
            let sizes = Sizes { rows, cols: vocabulary, depth: hidden };
            // SAFETY: the matrices have these sizes.
            unsafe { self.blas.times_transposed(chosen.at(), head.at(), logits.at(), sizes, 0.0, Output::Bf16) }?;
            let arguments = [
                logits.address(),
                logits.stride as u64,
                batch.target_tokens.address() + skip,
                batch.target_weights.address() + skip,
                bits(scale),
                losses.value(first),
                u64::from(back),
                rows as u64,
                vocabulary as u64,
            ];
            self.launch(&CROSS_ENTROPY, rows as u64, &arguments)?;
            if let Some(dx) = &dx {
                let sizes = Sizes { rows, cols: hidden, depth: vocabulary };
                // SAFETY: as above.
                unsafe { self.blas.times(logits.at(), head.at(), chosen.at(), sizes) }?;
                let (from, to) = ([chosen.address(), chosen.stride as u64], [dx.address(), dx.stride as u64]);
                let arguments = [from[0], from[1], indices, to[0], to[1], rows as u64, hidden as u64];
                self.launch(&SCATTER_ROWS, eights(rows, hidden)?, &arguments)?;
            }
        }
        Ok((losses, dx))
    }
}
