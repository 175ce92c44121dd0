//! The NVIDIA driver as qft uses it: finding it and its GPUs, their memory, their kernels and what is enqueued on them. It is
//! loaded at run time: nothing here needs a GPU, a driver or a toolkit to be there. Kernels are known by their tables alone.

mod choice;
mod driver;
mod failure;
mod functions;
mod gpu;
mod host;
mod kernel;
mod memory;
mod ptx;
mod queue;
mod staging;
mod stream;
mod timing;

pub use choice::Device;
pub use driver::NoCard;
pub(crate) use driver::find;
pub(crate) use failure::Failure;
pub(crate) use gpu::Gpu;
pub(crate) use host::{ALIGN, HostMemory};
#[cfg(test)]
pub(crate) use kernel::check_table;
pub(crate) use kernel::{Kernel, Module, kernel_files};
pub(crate) use memory::DeviceMemory;
pub(crate) use queue::{Explain, Queue};
pub(crate) use staging::MOST_WIDTH;
pub(crate) use stream::{Event, Stream};
