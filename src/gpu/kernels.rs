//! The kernels by what they do: their names, their modules, and how their work is dealt to threads, which must be as
//! in `kernels/*.cu`. A kernel is compiled by the driver when it is wanted, once a card. One of the rooms with `unsafe`.

use std::collections::HashMap;
use std::ffi::CString;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUjit_option_enum as JitOption};
use cudarc::driver::{CudaContext, CudaStream, result};

use super::block::Trouble;
use super::budget::PIECE;
use super::ptx;
use crate::ggml::TensorType;

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    module: Module,
    name: &'static str,
    /// Threads of a thread block.
    threads: u32,
    /// What a thread block handles: elements, or what is said.
    per_block: u64,
}

const fn kernel(module: Module, name: &'static str, threads: u32, per_block: u64) -> Kernel {
    Kernel { module, name, threads, per_block }
}

/// Makes merged values. Elements are dealt by rows and columns; this many a block give each thread one group of them.
pub(super) const MERGE: Kernel = kernel(Module::Merge, "merge", 128, 4096);
/// DoRA's factors on rows. A block handles this many rows.
pub(super) const ROW_GAINS: Kernel = kernel(Module::Merge, "row_gains", 128, 8);
/// Widens stored floats.
pub(super) const WIDEN: Kernel = kernel(Module::Merge, "widen", 128, 1024);
/// Adds up the sums of pieces. A block handles this many chunks.
pub(super) const FOLD_SUMS: Kernel = kernel(Module::Measure, "fold_sums", 256, 32);

/// Hashes pieces of [`crate::digest::PIECE`] bytes. A block handles this many bytes.
pub(super) const HASH: Kernel = kernel(Module::Blake3, "blake3_pieces", 128, 128 << 10);

/// The kernels of a type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    kind: TensorType,
    /// Encodes values.
    pub(super) encode: Kernel,
    /// Likewise, with importance; absent where that changes nothing.
    pub(super) weighted: Option<Kernel>,
    /// Measures what was encoded. A block handles this many pieces.
    pub(super) measure: Option<Kernel>,
}

/// A row of the table; names follow from the type's.
macro_rules! kernels {
    ($kind:ident, $name:literal, $module:ident, $threads:literal, $per_block:literal, plain) => {
        kernels!(@ $kind, $name, $module, $threads, $per_block, None)
    };
    ($kind:ident, $name:literal, $module:ident, $threads:literal, $per_block:literal, weighted) => {
        kernels!(@ $kind, $name, $module, $threads, $per_block,
            Some(kernel(Module::$module, concat!("encode_", $name, "_weighted"), $threads, $per_block)))
    };
    (@ $kind:ident, $name:literal, $module:ident, $threads:literal, $per_block:literal, $weighted:expr) => {
        Kernels {
            kind: TensorType::$kind,
            encode: kernel(Module::$module, concat!("encode_", $name), $threads, $per_block),
            weighted: $weighted,
            measure: Some(kernel(Module::Measure, concat!("measure_", $name), 256, 16)),
        }
    };
}

/// Kernels by type. F32 has no errors to measure.
const KERNELS: [Kernels; 15] = [
    Kernels { measure: None, ..kernels!(F32, "f32", Plain, 256, 2048, plain) },
    kernels!(F16, "f16", Plain, 256, 2048, plain),
    kernels!(BF16, "bf16", Plain, 256, 2048, plain),
    kernels!(Q8_0, "q8_0", Classic, 128, 4096, plain),
    kernels!(Q4_0, "q4_0", Classic, 128, 4096, weighted),
    kernels!(Q4_1, "q4_1", Classic, 128, 4096, weighted),
    kernels!(Q5_0, "q5_0", Classic, 128, 4096, weighted),
    kernels!(Q5_1, "q5_1", Classic, 128, 4096, weighted),
    kernels!(IQ4_NL, "iq4_nl", Iq4, 128, 4096, weighted),
    kernels!(IQ4_XS, "iq4_xs", Iq4, 128, 4096, weighted),
    kernels!(Q2_K, "q2_k", Affine, 256, 4096, weighted),
    kernels!(Q4_K, "q4_k", Affine, 128, 4096, weighted),
    kernels!(Q5_K, "q5_k", Affine, 128, 4096, weighted),
    kernels!(Q3_K, "q3_k", Symmetric, 128, 2048, weighted),
    kernels!(Q6_K, "q6_k", Symmetric, 128, 2048, weighted),
];

impl Kernels {
    /// The kernels of `kind`, if there are any.
    pub(super) fn of(kind: TensorType) -> Option<&'static Self> {
        KERNELS.iter().find(|row| row.kind == kind)
    }

    /// The kernel for values with or without importance.
    pub(super) fn encoder(&self, weighted: bool) -> Kernel {
        self.weighted.filter(|_| weighted).unwrap_or(self.encode)
    }

    /// The types that there are kernels for.
    #[cfg(test)]
    pub(super) fn kinds() -> impl Iterator<Item = TensorType> {
        KERNELS.iter().map(|row| row.kind)
    }
}

const _: () = assert!(PIECE == 256, "measure.cu sums pieces of 256 values");

/// A module: one file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Merge,
    Plain,
    Classic,
    Affine,
    Symmetric,
    Iq4,
    Measure,
    Blake3,
}

/// Their names and PTX, in the order of the enum.
const MODULES: [(Module, &str, &str); 8] = [
    (Module::Merge, "merge", include_str!("kernels/merge.ptx")),
    (Module::Plain, "plain", include_str!("kernels/plain.ptx")),
    (Module::Classic, "classic", include_str!("kernels/classic.ptx")),
    (Module::Affine, "affine", include_str!("kernels/affine.ptx")),
    (Module::Symmetric, "symmetric", include_str!("kernels/symmetric.ptx")),
    (Module::Iq4, "iq4", include_str!("kernels/iq4.ptx")),
    (Module::Measure, "measure", include_str!("kernels/measure.ptx")),
    (Module::Blake3, "blake3", include_str!("kernels/blake3.ptx")),
];

/// A kernel on a card. It goes with the card's context.
#[derive(Clone, Copy)]
struct Loaded(sys::CUfunction);

// SAFETY: a function is a handle of the driver, whose calls any thread may make.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

/// A kernel that is being compiled, or was.
type Slot = Arc<OnceLock<Result<Loaded, String>>>;

/// The kernels of one card, by name.
#[derive(Default)]
pub(super) struct Compiled(Mutex<HashMap<&'static str, Slot>>);

impl Compiled {
    /// Compiles and loads `kernel`, if nobody did. Threads that want the same one wait; others don't.
    pub(super) fn load(&self, context: &CudaContext, kernel: Kernel) -> Result<(), Trouble> {
        self.function(context, kernel).map(|_| ())
    }

    fn function(&self, context: &CudaContext, kernel: Kernel) -> Result<Loaded, Trouble> {
        let slot = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel.name).or_default());
        slot.get_or_init(|| load(context, kernel)).clone().map_err(Trouble::Device)
    }

    /// Enqueues `kernel` for `work` (see [`Kernel::per_block`]) on `stream`, whose context is this card's and bound.
    ///
    /// # Safety
    /// `arguments` must be what the kernel's source says: numbers, and addresses of memory on the card that is as large
    /// as the kernel takes it to be and stays there until the stream is waited for.
    pub(super) unsafe fn launch(
        &self,
        stream: &CudaStream,
        kernel: Kernel,
        work: usize,
        arguments: &[u64],
    ) -> Result<(), Trouble> {
        let blocks = (work as u64).div_ceil(kernel.per_block);
        if blocks == 0 {
            return Ok(());
        }
        let Loaded(function) = self.function(stream.context(), kernel)?;
        // The driver reads the arguments before it returns.
        let mut places: Vec<_> = arguments.iter().map(|argument| ptr::from_ref(argument).cast_mut().cast()).collect();
        let grid = u32::try_from(blocks).map_err(|_| Trouble::Unsupported)?;
        // SAFETY: the function's module is never unloaded before its context is gone, all its parameters have 64 bits, and the caller vouches for them.
        unsafe {
            result::launch_kernel(function, (grid, 1, 1), (kernel.threads, 1, 1), 0, stream.cu_stream(), &mut places)
        }?;
        Ok(())
    }
}

/// Has the driver compile a kernel for the card; on failure, says what the driver's compiler says.
fn load(context: &CudaContext, kernel: Kernel) -> Result<Loaded, String> {
    let (_, module, ptx) = MODULES[kernel.module as usize];
    load_function(context, module, ptx, kernel.name).map(Loaded)
}

/// Has the driver compile the kernel `name` of the module's PTX, alone. The function goes with the context.
pub(crate) fn load_function(
    context: &CudaContext,
    module_name: &str,
    ptx: &str,
    name: &str,
) -> Result<sys::CUfunction, String> {
    let ptx = ptx::only(ptx, name).ok_or_else(|| format!("{module_name}.ptx has no kernel {name}"))?;
    let failed = |error, log: &[u8]| {
        let log = String::from_utf8_lossy(log);
        let log = log.trim_end_matches('\0').split_whitespace().collect::<Vec<_>>().join(" ");
        format!("the kernel {name} does not load: {} {log}", super::driver::said(error)).trim_end().to_owned()
    };
    context.bind_to_thread().map_err(|error| failed(error, &[]))?;
    let image = CString::new(ptx).map_err(|_| format!("{module_name}.ptx holds a zero byte"))?;
    let mut log = vec![0u8; 2048];
    let mut options = [JitOption::CU_JIT_ERROR_LOG_BUFFER, JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())];
    let mut module = ptr::null_mut();
    // SAFETY: the image ends in a zero, the options have a value each as the driver defines them, and `log` outlives
    // the call, which is the only one to write to it.
    let loaded = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut module,
            image.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    loaded.result().map_err(|error| failed(error, &log))?;
    let name = CString::new(name).map_err(|_| format!("{module_name}.ptx holds a zero byte"))?;
    // SAFETY: the module was just loaded.
    let function = unsafe { result::module::get_function(module, name) };
    function.map_err(|error| failed(error, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::encode::can_encode;

    #[test]
    fn every_type_that_can_be_encoded_has_kernels() {
        for kind in TensorType::all() {
            assert_eq!(Kernels::of(kind).is_some(), can_encode(kind), "{kind}");
        }
    }

    /// What the table says of each kernel, held against the PTX that is committed.
    #[test]
    fn modules_have_the_kernels_of_the_table() {
        let all = KERNELS.iter().flat_map(|row| [Some(row.encode), row.weighted, row.measure]).flatten();
        for kernel in all.chain([MERGE, ROW_GAINS, WIDEN, FOLD_SUMS, HASH]) {
            let (module, name, ptx) = MODULES[kernel.module as usize];
            assert_eq!(module, kernel.module);
            let ptx = ptx::only(ptx, kernel.name).unwrap_or_else(|| panic!("{name}.ptx has no kernel {}", kernel.name));
            assert_eq!(ptx.matches(".entry ").count(), 1, "{}", kernel.name);
            assert_eq!(ptx::threads(&ptx, kernel.name), Some(kernel.threads), "{}", kernel.name);
        }
    }
}
