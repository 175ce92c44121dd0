//! Matrix products, by cuBLAS, which is found at run time. One of the rooms with `unsafe`.

use std::error::Error as _;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use super::symbol;
use crate::error::Result;
use crate::gpu::runtime::{DeviceMemory, Explain, Failure, Queue, Stream};

/// Where cuBLAS is looked for, unless the variable names a file: the newest first, and where the toolkit puts it.
const NAMES: [&str; 4] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so", "/usr/local/cuda/lib64/libcublas.so"];
/// Names the library's file.
pub(crate) const CUBLAS_VARIABLE: &str = "QFT_CUBLAS";
/// Bytes of its workspace: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> c_int;
type SetMathMode = unsafe extern "C" fn(Handle, c_int) -> c_int;
type SetWorkspace = unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int;
#[rustfmt::skip]
type GemmEx = unsafe extern "C" fn(
    Handle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, *const c_void, c_int, c_int,
    *const c_void, *mut c_void, c_int, c_int, c_int, c_int,
) -> c_int;

/// `cudaDataType`, `cublasComputeType_t` and `cublasGemmAlgo_t`, as `library_types.h` and `cublas_api.h` number them.
const BF16: c_int = 14;
const F32: c_int = 0;
const COMPUTE_F32: c_int = 68;
const DEFAULT: c_int = -1;
/// `cublasMath_t`: partial sums are added up in f32, not in bf16.
const DISALLOW_REDUCED_PRECISION_REDUCTION: c_int = 16;

/// cuBLAS, with a handle on a queue's stream.
pub(crate) struct Blas {
    explain: Explain,
    handle: Handle,
    gemm: GemmEx,
    destroy: Destroy,
    _workspace: DeviceMemory,
    _stream: Stream,
    /// Last: the functions are in the first, which uses the others.
    _libraries: Vec<Library>,
}

/// Where a matrix begins and how many values lie between its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) address: u64,
    pub(crate) stride: usize,
}

/// The three sizes of a product: rows and columns of what comes out, and the length of the sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) depth: usize,
}

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Bf16,
    F32,
}

impl Blas {
    /// Finds the library, for products on this queue.
    pub(crate) fn open(queue: &Queue) -> Result<Self> {
        let workspace = queue.allocate(WORKSPACE)?;
        let named = std::env::var_os(CUBLAS_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let paths = named.map_or_else(|| NAMES.map(PathBuf::from).to_vec(), |path| vec![path]);
        let mut reasons = Vec::new();
        for path in &paths {
            match Loaded::load(path) {
                Ok(loaded) => return Self::with(loaded, queue, workspace),
                Err(reason) => reasons.push(reason),
            }
        }
        // That a file is not there says less than anything else.
        let absent = |reason: &&String| !reason.contains("No such file");
        let reason = reasons.iter().find(absent).or(reasons.first()).map_or("", String::as_str);
        Err(queue.explain()(Failure::NoCublas(reason.to_owned())))
    }

    fn with(loaded: Loaded, queue: &Queue, workspace: DeviceMemory) -> Result<Self> {
        let Loaded { handle, gemm, destroy, set_stream, set_workspace, set_math_mode, libraries } = loaded;
        let (explain, stream) = (queue.explain(), queue.stream().clone());
        let (address, on) = (ptr::with_exposed_provenance_mut(workspace.address() as usize), stream.handle());
        // From here on, the handle is destroyed whatever fails.
        let blas =
            Self { explain, handle, gemm, destroy, _workspace: workspace, _stream: stream, _libraries: libraries };
        // SAFETY: the handle is live, and the stream and the workspace outlive it. The workspace comes after the stream,
        // which takes it away.
        unsafe {
            blas.check("cublasSetStream", set_stream(handle, on))?;
            blas.check("cublasSetWorkspace", set_workspace(handle, address, WORKSPACE))?;
            blas.check("cublasSetMathMode", set_math_mode(handle, DISALLOW_REDUCED_PRECISION_REDUCTION))?;
        }
        Ok(blas)
    }

    /// `out = a * b^T + beta * out` of bf16 matrices with sums in f32: `a` is `[rows, depth]`, `b` `[cols, depth]`.
    ///
    /// # Safety
    /// The matrices must be on the GPU and as large as that.
    pub(crate) unsafe fn times_transposed(
        &self,
        a: At,
        b: At,
        out: At,
        sizes: Sizes,
        beta: f32,
        output: Output,
    ) -> Result<()> {
        // SAFETY: the caller guarantees the matrices.
        unsafe { self.gemm(true, [b, a, out], sizes, beta, output) }
    }

    /// `out = a * b`: `a` is `[rows, depth]`, `b` `[depth, cols]`.
    ///
    /// # Safety
    /// As above.
    pub(crate) unsafe fn times(&self, a: At, b: At, out: At, sizes: Sizes) -> Result<()> {
        // SAFETY: the caller guarantees the matrices.
        unsafe { self.gemm(false, [b, a, out], sizes, 0.0, Output::Bf16) }
    }

    /// # Safety
    /// As above.
    unsafe fn gemm(
        &self,
        transposed: bool,
        [b, a, out]: [At; 3],
        sizes: Sizes,
        beta: f32,
        output: Output,
    ) -> Result<()> {
        let Some(Call { transposed, sizes: [m, n, k], strides: [lda, ldb, ldc] }) =
            Call::new(transposed, [b, a, out].map(|at| at.stride), sizes)
        else {
            let problem = format!("a product of {sizes:?} is too large for cuBLAS, or its rows overlap");
            return Err((self.explain)(Failure::TooLarge(problem)));
        };
        if m == 0 || n == 0 {
            return Ok(());
        }
        let alpha = 1f32;
        let place = |address: u64| ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        let (alpha, beta) = ((&raw const alpha).cast(), (&raw const beta).cast());
        let kind = if output == Output::F32 { F32 } else { BF16 };
        // SAFETY: the handle is live, alpha and beta are f32 as the compute type wants, and are read before the call
        // returns; the caller guarantees the matrices.
        let status = unsafe {
            (self.gemm)(
                self.handle,
                transposed,
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
        self.check("cublasGemmEx", status)
    }

    fn check(&self, call: &str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // CUBLAS_STATUS_ALLOC_FAILED and CUBLAS_STATUS_EXECUTION_FAILED are the ones that occur in practice.
        Err((self.explain)(Failure::Library(format!("{call} failed with status {status}"))))
    }
}

/// A product as cuBLAS is asked for it. It counts columns first, so that a row-major matrix is its transpose there: the
/// product is asked for as `out^T = b * a^T`, with `b` as the first operand, transposed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    transposed: c_int,
    /// m, n, k.
    sizes: [c_int; 3],
    /// Leading dimensions of the first operand, the second, and the result.
    strides: [c_int; 3],
}

impl Call {
    /// `None` if a number is too large, or rows overlap. Strides are those of b, a and the result.
    fn new(transposed: bool, strides: [usize; 3], Sizes { rows, cols, depth }: Sizes) -> Option<Self> {
        let widths = [if transposed { depth } else { cols }, depth, cols];
        let int = |size: usize| c_int::try_from(size).ok();
        strides.iter().zip(widths).all(|(stride, width)| *stride >= width).then_some(())?;
        let [lda, ldb, ldc] = strides.map(int);
        Some(Self {
            transposed: transposed.into(),
            sizes: [int(cols)?, int(rows)?, int(depth)?],
            strides: [lda?, ldb?, ldc?],
        })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and the library is still loaded.
        unsafe { (self.destroy)(self.handle) };
    }
}

/// A library, a handle that it made, and the functions that are called.
struct Loaded {
    handle: Handle,
    gemm: GemmEx,
    destroy: Destroy,
    set_stream: SetStream,
    set_workspace: SetWorkspace,
    set_math_mode: SetMathMode,
    libraries: Vec<Library>,
}

impl Loaded {
    /// Loads a library that works with the driver: one that is too new for it makes no handle.
    fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: loading cuBLAS runs its initializers, which is what it is made for.
        let open = |path: &Path| unsafe { Library::new(path) }.map_err(said);
        // The other half lies beside it, where the loader need not look. Absent, it is found elsewhere, or missed below.
        let other = sibling(path).and_then(|path| open(&path).ok());
        let library = open(path)?;
        // SAFETY: the functions have these signatures in every version of the library since CUDA 11, and are called while
        // it is loaded.
        unsafe {
            let create: Create = symbol(&library, "cublasCreate_v2").map_err(said)?;
            let destroy: Destroy = symbol(&library, "cublasDestroy_v2").map_err(said)?;
            let set_stream: SetStream = symbol(&library, "cublasSetStream_v2").map_err(said)?;
            let set_workspace: SetWorkspace = symbol(&library, "cublasSetWorkspace_v2").map_err(said)?;
            let set_math_mode: SetMathMode = symbol(&library, "cublasSetMathMode").map_err(said)?;
            let gemm: GemmEx = symbol(&library, "cublasGemmEx").map_err(said)?;
            let mut handle = ptr::null_mut();
            let status = create(&raw mut handle);
            if status != 0 {
                return Err(format!("cublasCreate of {} fails with status {status}", path.display()));
            }
            let libraries = [library].into_iter().chain(other).collect();
            Ok(Self { handle, gemm, destroy, set_stream, set_workspace, set_math_mode, libraries })
        }
    }
}

/// The file of cuBLASLt beside that of cuBLAS, if the path says where that is.
fn sibling(path: &Path) -> Option<PathBuf> {
    let version = path.file_name()?.to_str()?.strip_prefix("libcublas")?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty())?;
    Some(directory.join(format!("libcublasLt{version}")))
}

/// What the loader says: the reason is in the error's source.
#[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
fn said(error: libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cuBLAS does with a call, on numbers.
    fn column_major(call: Call, [a, b]: [&[f64]; 2], c: &mut [f64]) {
        let [m, n, k] = call.sizes.map(|size| usize::try_from(size).unwrap());
        let [lda, ldb, ldc] = call.strides.map(|stride| usize::try_from(stride).unwrap());
        for i in 0..m {
            for j in 0..n {
                let a = |l: usize| if call.transposed == 1 { a[l + i * lda] } else { a[i + l * lda] };
                c[i + j * ldc] = (0..k).map(|l| a(l) * b[l + j * ldb]).sum();
            }
        }
    }

    #[test]
    fn calls_make_row_major_products() {
        let numbers: Vec<f64> = (0..60).map(|i| f64::from(i * i % 37 - 18)).collect();
        let sizes = Sizes { rows: 3, cols: 5, depth: 4 };
        for (transposed, stride) in [(false, 6), (true, 9)] {
            let call = Call::new(transposed, [stride, 7, 8], sizes).unwrap();
            let mut out = vec![0.0; 24];
            let (b, a) = (&numbers[..], &numbers[11..]);
            column_major(call, [b, a], &mut out);
            for (row, col) in (0..3).flat_map(|row| (0..5).map(move |col| (row, col))) {
                let b = |l: usize| if transposed { b[col * stride + l] } else { b[l * stride + col] };
                let expected: f64 = (0..4).map(|l| a[row * 7 + l] * b(l)).sum();
                assert!((out[row * 8 + col] - expected).abs() < 1e-9, "{transposed} {row} {col}");
            }
        }
        assert_eq!(Call::new(false, [4, 7, 8], sizes), None, "rows of b overlap");
        assert_eq!(Call::new(true, [3, 7, 8], sizes), None);
        assert_eq!(Call::new(true, [9, 7, 8], Sizes { rows: 1 << 31, ..sizes }), None);
    }

    #[test]
    fn the_other_half_is_looked_for_beside_the_file() {
        assert_eq!(sibling(Path::new("/x/libcublas.so.12")), Some(PathBuf::from("/x/libcublasLt.so.12")));
        assert_eq!(sibling(Path::new("libcublas.so.12")), None);
    }
}
