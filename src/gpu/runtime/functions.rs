//! The kernels of a table as functions of one GPU: its driver compiles each alone, when it is wanted, and launches it. One
//! of the rooms with `unsafe`.

use std::collections::HashMap;
use std::ffi::CString;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute, CUjit_option_enum as JitOption};
use cudarc::driver::{CudaContext, DriverError, result};

use super::failure::{Failure, said};
use super::kernel::Kernel;
use super::ptx;
use super::stream::Stream;

/// Shared memory of a thread block that needs no asking.
const SHARED: u32 = 48 << 10;

/// A kernel on a GPU. It goes with the context.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a function is a handle of the driver, whose calls any thread may make.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// A kernel that is being compiled, or was.
type Slot = Arc<OnceLock<Result<Function, String>>>;

/// See the module.
pub(crate) struct Functions {
    context: Arc<CudaContext>,
    /// By the names of the file and the kernel.
    slots: Mutex<HashMap<[&'static str; 2], Slot>>,
}

impl Functions {
    pub(super) fn new(context: &Arc<CudaContext>) -> Self {
        Self { context: Arc::clone(context), slots: Mutex::default() }
    }

    /// Compiles `kernel`, if nobody did. Threads that want the same one wait; others don't.
    pub(crate) fn load(&self, kernel: &Kernel) -> Result<(), Failure> {
        self.get(kernel).map(|_| ())
    }

    fn get(&self, kernel: &Kernel) -> Result<Function, Failure> {
        let name = [kernel.module.name(), kernel.name];
        let slot = Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
        slot.get_or_init(|| load(&self.context, kernel)).clone().map_err(Failure::Kernel)
    }

    /// Enqueues `kernel` for `work` (see [`Kernel::per_block`]) on `stream`, which is one of this GPU.
    ///
    /// # Safety
    /// `arguments` must be what the kernel's source says: numbers, and addresses of memory on the GPU that is as large
    /// as the kernel takes it to be, and stays there until the kernel is done.
    pub(crate) unsafe fn launch(
        &self,
        stream: &Stream,
        kernel: &Kernel,
        work: u64,
        arguments: &[u64],
    ) -> Result<(), Failure> {
        let blocks = work.div_ceil(kernel.per_block);
        if blocks == 0 {
            return Ok(());
        }
        let Function(function) = self.get(kernel)?;
        let Ok(grid) = u32::try_from(blocks).and_then(i32::try_from).and_then(u32::try_from) else {
            return Err(Failure::TooLarge("a batch is too large for one launch".to_owned()));
        };
        // The driver reads the arguments before it returns.
        let mut places: Vec<_> = arguments.iter().map(|argument| ptr::from_ref(argument).cast_mut().cast()).collect();
        let (grid, block) = ((grid, 1, 1), (kernel.threads, 1, 1));
        // SAFETY: the function's module is never unloaded before its context is gone, all its parameters have 64 bits, and
        // the caller guarantees them.
        unsafe { result::launch_kernel(function, grid, block, kernel.shared, stream.raw(), &mut places) }?;
        Ok(())
    }

    /// Compiles these kernels side by side. What fails will fail again, and be said, where it is used.
    pub(crate) fn load_all(&self, kernels: impl Iterator<Item = Kernel>) {
        thread::scope(|scope| {
            for kernel in kernels {
                scope.spawn(move || self.load(&kernel));
            }
        });
    }

    /// Begins to compile these kernels beside other work, for which half of the processor is left: whoever wants one that
    /// is not there yet compiles it, or waits for the thread that does.
    pub(crate) fn load_in_background(self: &Arc<Self>, kernels: &'static [Kernel]) -> Background {
        let todo = Arc::new(Todo { functions: Arc::clone(self), kernels, begun: AtomicUsize::new(0) });
        let count = thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
        let start = |_| {
            let todo = Arc::clone(&todo);
            thread::Builder::new().name("kernels".to_owned()).spawn(move || todo.work())
        };
        // A thread that does not start is not missed.
        Background { threads: (0..count).flat_map(start).collect(), todo }
    }
}

/// Kernels that are being compiled by some threads, until all are, or it is dropped.
pub(crate) struct Background {
    todo: Arc<Todo>,
    threads: Vec<JoinHandle<()>>,
}

struct Todo {
    functions: Arc<Functions>,
    kernels: &'static [Kernel],
    /// Kernels that were begun.
    begun: AtomicUsize,
}

impl Todo {
    fn work(&self) {
        while let Some(kernel) = self.kernels.get(self.begun.fetch_add(1, Ordering::Relaxed)) {
            // What fails is said where it is wanted.
            let _ = self.functions.load(kernel);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.todo.begun.store(self.todo.kernels.len(), Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Has the driver compile a kernel, alone; on failure, says what the driver's compiler says. The function goes with the
/// context.
fn load(context: &CudaContext, kernel: &Kernel) -> Result<Function, String> {
    let (file, name) = (kernel.module.name(), kernel.name);
    let ptx = ptx::only(kernel.module.ptx(), name).ok_or_else(|| format!("{file}.ptx has no kernel {name}"))?;
    let failed = |error: DriverError, log: &[u8]| {
        let log = String::from_utf8_lossy(log);
        let log = log.trim_end_matches('\0').split_whitespace().collect::<Vec<_>>().join(" ");
        format!("the kernel {name} does not load: {} {log}", said(error)).trim_end().to_owned()
    };
    context.bind_to_thread().map_err(|error| failed(error, &[]))?;
    let image = CString::new(ptx).map_err(|_| format!("{file}.ptx holds a zero byte"))?;
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
    let symbol = CString::new(name).map_err(|_| format!("{file}.ptx holds a zero byte"))?;
    // SAFETY: the module was just loaded.
    let function = unsafe { result::module::get_function(module, symbol) }.map_err(|error| failed(error, &[]))?;
    if kernel.shared > SHARED {
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function was just loaded, in this context, which is bound.
        let set = unsafe { result::function::set_function_attribute(function, attribute, kernel.shared.cast_signed()) };
        set.map_err(|error| {
            let shared = kernel.shared;
            format!("the kernel {name} can't have {shared} bytes of shared memory: {}", said(error))
        })?;
    }
    Ok(Function(function))
}
