//! Matrix products, by cuBLAS, which is found at run time. One of the rooms with `unsafe`.

use std::ffi::{c_int, c_void};
use std::ptr;

use libloading::Library;

use crate::error::{Error, Result};
use crate::gpu::DeviceMemory;

/// Where cuBLAS is looked for, unless the variable names a file.
const NAMES: [&str; 3] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];
/// Names the library's file.
const VARIABLE: &str = "QFT_CUBLAS";
/// Bytes of its workspace: what NVIDIA advises for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> c_int;
type SetWorkspace = unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int;
#[rustfmt::skip]
type GemmEx = unsafe extern "C" fn(
    Handle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, *const c_void, c_int, c_int,
    *const c_void, *mut c_void, c_int, c_int, c_int, c_int,
) -> c_int;

/// `cudaDataType`, `cublasComputeType_t` and `cublasGemmAlgo_t`, as library_types.h and cublas_api.h number them.
const BF16: c_int = 14;
const F32: c_int = 0;
const COMPUTE_F32: c_int = 68;
const DEFAULT: c_int = -1;

/// cuBLAS, with a handle on the engine's stream.
pub(super) struct Blas {
    handle: Handle,
    gemm: GemmEx,
    destroy: Destroy,
    _workspace: DeviceMemory,
    /// Last: the functions are in it.
    _library: Library,
}

/// Where a matrix begins and how many values lie between its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub(super) address: u64,
    pub(super) stride: usize,
}

/// The three sizes of a product: rows and columns of what comes out, and the length of the sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) depth: usize,
}

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Bf16,
    F32,
}

impl Blas {
    /// Finds the library. `stream` is the driver's handle.
    pub(super) fn open(stream: *mut c_void, workspace: DeviceMemory) -> Result<Self> {
        let library = load()?;
        // SAFETY: the functions have these signatures in every version of the library that is looked for, and are called
        // with the handle that it made, while it is loaded.
        unsafe {
            let create: Create = symbol(&library, b"cublasCreate_v2\0")?;
            let destroy: Destroy = symbol(&library, b"cublasDestroy_v2\0")?;
            let set_stream: SetStream = symbol(&library, b"cublasSetStream_v2\0")?;
            let set_workspace: SetWorkspace = symbol(&library, b"cublasSetWorkspace_v2\0")?;
            let gemm: GemmEx = symbol(&library, b"cublasGemmEx\0")?;
            let mut handle = ptr::null_mut();
            check("cublasCreate", create(&raw mut handle))?;
            let blas = Self { handle, gemm, destroy, _workspace: workspace, _library: library };
            check("cublasSetStream", set_stream(handle, stream))?;
            let address = ptr::with_exposed_provenance_mut(blas._workspace.address() as usize);
            check("cublasSetWorkspace", set_workspace(handle, address, WORKSPACE))?;
            Ok(blas)
        }
    }

    /// `out = a * b^T + beta * out` of bf16 matrices with sums in f32: `a` is `[rows, depth]`, `b` `[cols, depth]`.
    ///
    /// # Safety
    /// The matrices must be on the card and as large as that.
    pub(super) unsafe fn times_transposed(
        &self,
        a: At,
        b: At,
        out: At,
        sizes: Sizes,
        beta: f32,
        output: Output,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the matrices.
        unsafe { self.gemm(true, b, a, out, sizes, beta, output) }
    }

    /// `out = a * b`: `a` is `[rows, depth]`, `b` `[depth, cols]`.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn times(&self, a: At, b: At, out: At, sizes: Sizes) -> Result<()> {
        // SAFETY: the caller vouches for the matrices.
        unsafe { self.gemm(false, b, a, out, sizes, 0.0, Output::Bf16) }
    }

    /// cuBLAS counts columns first, so that a row-major matrix is its transpose there: the product is asked for as
    /// `out^T = b * a^T`, with `b` as the first operand, transposed or not.
    unsafe fn gemm(
        &self,
        transposed: bool,
        b: At,
        a: At,
        out: At,
        sizes: Sizes,
        beta: f32,
        output: Output,
    ) -> Result<()> {
        let Sizes { rows, cols, depth } = sizes;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let int = |size: usize| {
            let large = |_| Error::refused("a matrix is too large for cuBLAS", "lower --per_device_train_batch_size");
            c_int::try_from(size).map_err(large)
        };
        let (m, n, k) = (int(cols)?, int(rows)?, int(depth)?);
        let (lda, ldb, ldc) = (int(b.stride)?, int(a.stride)?, int(out.stride)?);
        let alpha = 1f32;
        let place = |address: u64| ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        let (alpha, beta) = ((&raw const alpha).cast(), (&raw const beta).cast());
        let kind = if output == Output::F32 { F32 } else { BF16 };
        // SAFETY: the handle is live, alpha and beta are f32 as the compute type wants, and are read before the call
        // returns; the caller vouches for the matrices.
        let status = unsafe {
            (self.gemm)(
                self.handle,
                c_int::from(transposed),
                0,
                m,
                n,
                k,
                alpha,
                place(b.address),
                BF16,
                lda,
                place(a.address),
                BF16,
                ldb,
                beta,
                place(out.address),
                kind,
                ldc,
                COMPUTE_F32,
                DEFAULT,
            )
        };
        check("cublasGemmEx", status)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and the library is still loaded.
        unsafe { (self.destroy)(self.handle) };
    }
}

fn load() -> Result<Library> {
    let named = std::env::var(VARIABLE).ok();
    let names: Vec<&str> = named.as_deref().map_or_else(|| NAMES.to_vec(), |name| vec![name]);
    // SAFETY: loading cuBLAS runs its initializers, which is what it is made for.
    let found = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    found.ok_or_else(|| {
        Error::refused(
            format!("cuBLAS, which training on a card needs, was not found ({})", names.join(", ")),
            format!(
                "install it (with the CUDA toolkit, or `pip install nvidia-cublas`) and put it on LD_LIBRARY_PATH, or name \
                 its file in {VARIABLE}; or use --device cpu"
            ),
        )
    })
}

/// # Safety
/// `T` must be the function's type.
unsafe fn symbol<T: Copy>(library: &Library, name: &[u8]) -> Result<T> {
    // SAFETY: the caller knows the type.
    let found = unsafe { library.get::<T>(name) };
    found.map(|function| *function).map_err(|error| {
        Error::refused(format!("cuBLAS lacks a function: {error}"), format!("name another in {VARIABLE}"))
    })
}

fn check(call: &str, status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // CUBLAS_STATUS_ALLOC_FAILED and CUBLAS_STATUS_EXECUTION_FAILED are the ones that people meet.
    Err(Error::Card { problem: format!("{call} failed with status {status}") })
}
