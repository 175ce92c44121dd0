//! An NVIDIA GPU, in bf16 with sums in f32: matrix products by cuBLAS, everything else by kernels of our
//! own. The driver and cuBLAS are found at run time. One of the rooms with `unsafe`.

mod adapters;
mod attention;
mod backward;
mod card;
mod dora;
mod forward;
mod frozen;
mod kernels;
mod loss;
mod masks;
mod matrix;
mod optimizer;
mod placed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use half::bf16;

use crate::arch::Heads;
use crate::checkpoint::Tensor;
use crate::engine::{Adapters, Batch, DeviceBuffer, Engine};
use crate::error::{Error, Result};
use crate::gpu::{Blas, Device, Kernel};

use card::{Card, broken};
pub use frozen::CudaFrozen;
use kernels::{FILL_ROWS, GATHER_ROWS, ROW_NORMS};
use masks::Keys;
pub use matrix::{CudaMatrix, CudaVector};
pub use placed::CudaBatch;

/// An NVIDIA GPU.
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
            let problem = format!("a matrix of {rows} x {cols} values is more than the GPU kernels support");
            Err(Error::unsupported(problem, "lower ⟦per_device_train_batch_size⟧ or ⟦max_length⟧"))
        }
    }
}

/// Whether `y` has the rows and columns of `x`.
fn alike(x: &CudaMatrix, y: &CudaMatrix) -> bool {
    (x.rows, x.cols) == (y.rows, y.cols)
}

impl CudaEngine {
    /// Opens the first GPU that `device` means.
    pub fn open(device: Device) -> Result<Self> {
        let card = card::open(device)?;
        let blas = Blas::open(&card)?;
        Ok(Self { blas, keys: Keys::default(), card })
    }

    /// Whether there are kernels for such heads, and the GPU runs them: to be asked before weights are loaded.
    pub fn supports(&self, heads: Heads) -> Result<()> {
        attention::check(heads, self.card.shared_memory()?)
    }

    /// Enqueues a kernel whose arguments are right: see its source.
    fn launch(&self, kernel: &Kernel, grid: u64, arguments: &[u64]) -> Result<()> {
        // SAFETY: this room passes what kernels/*.cu document, of matrices and vectors that are alive.
        unsafe { self.card.launch(kernel, grid, arguments) }
    }

    fn matrix(&self, rows: usize, cols: usize, padding: usize) -> Result<CudaMatrix> {
        CudaMatrix::new(&self.card, rows, cols, padding)
    }

    fn filled(&self, bias: u64, onto: Option<&CudaMatrix>, y: &CudaMatrix) -> Result<()> {
        let (onto, stride) = onto.map_or((0, 0), |onto| (onto.address(), onto.stride));
        let arguments = [bias, onto, stride as u64, y.address(), y.stride as u64, y.rows as u64, y.cols as u64];
        self.launch(&FILL_ROWS, eights(y.rows, y.cols)?, &arguments)
    }
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

    fn buffer<'v>(&'v self, vector: &'v mut CudaVector) -> Result<Option<DeviceBuffer<'v>>> {
        self.card.bind()?;
        let stream = self.card.stream().handle();
        // SAFETY: the vector is on this GPU, whose context was just made current, and has that many values for as long
        // as it is borrowed; the stream is this GPU's, which is borrowed too.
        Ok(Some(unsafe { DeviceBuffer::new(vector.address(), vector.len, stream) }))
    }

    fn read_matrix(&self, matrix: &CudaMatrix) -> Result<Vec<f32>> {
        let bits: Vec<u16> = self.card.read(matrix.memory(), matrix.rows * matrix.stride)?;
        let rows = bits.chunks(matrix.stride.max(1)).flat_map(|row| &row[..matrix.cols]);
        Ok(rows.map(|bits| bf16::from_bits(*bits).to_f32()).collect())
    }

    fn table(&self, tensor: &Tensor) -> Result<CudaMatrix> {
        let [rows, cols] = *tensor.shape() else { return Err(broken("a table that is not a matrix")) };
        if cols == 0 || !cols.is_multiple_of(8) {
            let problem = format!("the model has hidden states of {cols} values, and GPUs require multiples of 8");
            return Err(Error::unsupported(problem, "use ⟦device cpu⟧"));
        }
        let matrix = self.matrix(rows, cols, 0)?;
        frozen::copy(&self.card, tensor, &matrix, 0)?;
        Ok(matrix)
    }

    fn freeze(&self, weights: &[Tensor], biases: &[Option<Tensor>], adapters: &Adapters) -> Result<CudaFrozen> {
        let frozen = CudaFrozen::new(&self.card, weights, biases, adapters)?;
        // The slots' modules follow each other.
        self.keys.expect(adapters.slots.first().map_or(0, |slot| slot.module + adapters.slots.len()));
        if let Some(gains) = frozen.gains() {
            self.norms_into(&frozen, &gains.norms)?;
        }
        Ok(frozen)
    }

    fn row_norms(&self, frozen: &CudaFrozen) -> Result<Vec<Vec<f32>>> {
        let norms = CudaVector::new(&self.card, frozen.outputs)?;
        self.norms_into(frozen, &norms)?;
        let norms = self.read(&norms)?;
        Ok(frozen.adapters.slots.iter().map(|slot| norms[slot.rows.clone()].to_vec()).collect())
    }

    fn bind(&self, frozen: &mut CudaFrozen, parameters: &CudaVector) -> Result<()> {
        self.card.timed("bind", || self.bind_adapters(frozen, parameters))
    }

    fn place(&self, batch: &Batch) -> Result<CudaBatch> {
        CudaBatch::place(&self.card, batch)
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

    fn timed<T>(&self, kind: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.card.timed(kind, work)
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
        let w = &frozen.weights;
        let (rows, cols) = (frozen.outputs as u64, frozen.inputs as u64);
        self.launch(&ROW_NORMS, rows, &[w.address(), w.stride as u64, norms.address(), rows, cols])
    }

    /// Rows of `from`, chosen by `indices`, into the rows of `to`.
    fn gather(&self, from: &CudaMatrix, indices: u64, to: &CudaMatrix) -> Result<()> {
        let (rows, cols) = (to.rows as u64, from.cols as u64);
        let arguments = [from.address(), from.stride as u64, indices, to.address(), to.stride as u64, rows, cols];
        self.launch(&GATHER_ROWS, eights(to.rows, from.cols)?, &arguments)
    }
}
