//! NVIDIA's libraries beside the driver, found at run time: matrix products by cuBLAS, all-reduce over GPUs by NCCL.

mod cublas;
pub(crate) mod nccl;

pub(crate) use cublas::{At, Blas, CUBLAS_VARIABLE, Output, Sizes};

use libloading::Library;

/// The library's function of this name.
///
/// # Safety
/// `T` must be the function's type.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, libloading::Error> {
    // SAFETY: the caller knows the type.
    unsafe { library.get::<T>(name) }.map(|function| *function)
}
