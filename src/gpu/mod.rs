//! NVIDIA GPUs. `runtime` is the driver: finding it and GPUs that are fit, their memory, and loading and launching kernels;
//! `libraries` are cuBLAS and NCCL; both serve whoever computes on GPUs. `lanes` makes blocks of merged and encoded tensors,
//! with the bytes that the processor gives; it knows no file: `stream` schedules the lanes, `export` says what blocks are.

mod lanes;
mod libraries;
mod runtime;

#[cfg(test)]
pub(crate) use lanes::SimulatedCard;
pub(crate) use lanes::{
    Assist, Block, Card, EncoderKind, Encoding, Importance, Measured, Resident, Source, Tally, source_row,
};
pub use lanes::{CardNeeds, Cards, Effort, Fault};
pub(crate) use libraries::{At, Blas, CUBLAS_VARIABLE, Output, Sizes, nccl};
#[cfg(test)]
pub(crate) use runtime::check_table;
pub(crate) use runtime::{
    ALIGN, DeviceMemory, Failure, HostMemory, Kernel, MOST_WIDTH, Module, Queue, find, kernel_files,
};
pub use runtime::{Device, NoCard};
