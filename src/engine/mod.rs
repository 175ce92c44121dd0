//! What a device does for a transformer: hold its values ([`Engine`]), compute its outputs ([`Forward`]), go back from
//! the loss ([`Backward`]), and update what is trained ([`Optimizer`]). A model is written once, over these. `cpu`
//! computes in f32 and is the reference in tests of the GPUs; `cuda` computes in bf16 with f32 accumulation. Knows no
//! model, no data set and no other process.
//!
//! An adapter is in padding columns. Weights that share an input are stacked along rows into `[N, K + padding]`: after
//! the base's columns lie the modules' `s * B`, each in its own rows and rank columns, zero elsewhere. Inputs have the
//! same padding columns, which hold `dropout(x) * A^T`. One product then gives the base's outputs and every delta, and
//! one product of the backward pass gives the gradients of the input and of `x * A^T`. Without adapters there is no
//! padding.

mod adapters;
mod backward;
mod batch;
mod buffer;
#[cfg(test)]
pub(crate) mod checks;
pub mod cpu;
pub mod cuda;
pub mod dropout;
mod forward;
mod optimizer;
mod view;
mod widen;

pub use adapters::{Adapters, PADDING_STEP, Slot};
pub use backward::Backward;
pub use batch::{Batch, Sequence, Target};
pub use buffer::DeviceBuffer;
pub use cpu::CpuEngine;
pub use cuda::CudaEngine;
pub use forward::Forward;
pub use optimizer::{AdamW, Optimizer};
pub use view::{Columns, KeysValues};
pub(crate) use widen::widened;

use std::collections::BTreeMap;

use crate::checkpoint::Tensor;
use crate::error::Result;

/// A device: what it holds, and how values come there and back.
///
/// Matrices are row-major; "`[T, C]` with `padding`" means that each row has that many more columns after its `C` values,
/// which are unspecified until [`Forward::adapt`] fills them. `T` is the number of tokens of a micro-batch.
pub trait Engine {
    /// A matrix on the device, in its compute type: f32 on the processor, bf16 on GPUs.
    type Matrix;
    /// A vector of f32 on the device.
    type Vector;
    /// The frozen weights of projections that share an input, stacked, with their adapters.
    type Frozen;
    /// A micro-batch on the device.
    type Placed;

    /// A vector with these values.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// The vector's values.
    fn read(&self, vector: &Self::Vector) -> Result<Vec<f32>>;
    /// Overwrites the vector, which has as many values.
    fn write(&self, vector: &mut Self::Vector, values: &[f32]) -> Result<()>;
    /// Sets every value to zero.
    fn zero(&self, vector: &mut Self::Vector) -> Result<()>;
    /// Where the vector lies, if that is on a GPU, whose context is then current on this thread.
    fn buffer<'v>(&'v self, _: &'v mut Self::Vector) -> Result<Option<DeviceBuffer<'v>>> {
        Ok(None)
    }
    /// The values of a matrix as f32, row by row, without padding columns.
    fn read_matrix(&self, matrix: &Self::Matrix) -> Result<Vec<f32>>;

    /// A table of a model, `[vocabulary, hidden]`: embeddings or the head.
    fn table(&self, tensor: &Tensor) -> Result<Self::Matrix>;
    /// Stacks weights (each `[outputs, inputs]`, of the same inputs) and their biases (`[outputs]`), one of each or none.
    fn freeze(&self, weights: &[Tensor], biases: &[Option<Tensor>], adapters: &Adapters) -> Result<Self::Frozen>;
    /// Euclidean norm of each row of each slot's base weights, f32, in the order of the slots: where magnitudes begin.
    fn row_norms(&self, frozen: &Self::Frozen) -> Result<Vec<Vec<f32>>>;
    /// Takes over the adapters' factors (and magnitudes) from the vector of parameters: until then, deltas are zero.
    fn bind(&self, frozen: &mut Self::Frozen, parameters: &Self::Vector) -> Result<()>;
    /// Puts a micro-batch on the device.
    fn place(&self, batch: &Batch) -> Result<Self::Placed>;

    /// Most bytes of the device's memory that were in use at once, where it can be told.
    fn peak_memory(&self) -> Option<u64>;
    /// Bytes of the device's memory that are free, where memory is what limits a run.
    fn free_memory(&self) -> Option<u64> {
        None
    }
    /// From here on, every operation is timed, where the device can do that.
    fn time(&self) {}
    /// Does `work`, which enqueues on the device, as an operation of this kind, to be timed as one.
    fn timed<T>(&self, _kind: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work()
    }
    /// Seconds that the device spent by operation since [`Self::time`], for which it is waited.
    fn timings(&self) -> Result<BTreeMap<&'static str, f64>> {
        Ok(BTreeMap::new())
    }
    /// What the device is called, for users.
    fn name(&self) -> String;
    /// The type that it computes in, for users.
    const TYPE: &'static str;
}
