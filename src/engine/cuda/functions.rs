//! The kernels as functions of one card. The driver compiles them in the background, while weights are read: whoever wants
//! one that is not there yet compiles it, or waits for the thread that does. One of the rooms with `unsafe`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use cudarc::driver::{CudaContext, result};

use super::kernels::{ALL, Kernel, MODULES};
use crate::error::{Error, Result};
use crate::gpu;

/// Shared memory of a block that needs no asking.
const SHARED: u32 = 48 << 10;

/// A kernel on the card. It goes with the context.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a function is a handle of the driver, whose calls any thread may make.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// See the module.
pub(super) struct Functions {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    context: Arc<CudaContext>,
    slots: HashMap<&'static str, OnceLock<Result<Function, String>>>,
    /// Kernels that were begun by the background.
    begun: AtomicUsize,
}

impl Functions {
    /// Begins to compile all kernels. One is waited for, which tells whether the driver takes them.
    pub(super) fn prepare(context: &Arc<CudaContext>) -> Result<Self> {
        let slots = ALL.iter().map(|kernel| (kernel.name, OnceLock::new())).collect();
        let shared = Arc::new(Shared { context: Arc::clone(context), slots, begun: AtomicUsize::new(0) });
        // The processor's other work is to copy weights.
        let count = thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
        let start = |_| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("kernels".to_owned()).spawn(move || shared.compile())
        };
        // A thread that does not start is not missed.
        let functions = Self { threads: (0..count).flat_map(start).collect(), shared };
        functions.get(&ALL[0])?;
        Ok(functions)
    }

    /// The function of a kernel.
    pub(super) fn get(&self, kernel: &Kernel) -> Result<sys::CUfunction> {
        let function = self.shared.get(kernel).map_err(|problem| Error::Card { problem })?;
        Ok(function.0)
    }
}

impl Shared {
    fn compile(&self) {
        while let Some(kernel) = ALL.get(self.begun.fetch_add(1, Ordering::Relaxed)) {
            // What fails is said where it is wanted.
            let _ = self.get(kernel);
        }
    }

    fn get(&self, kernel: &Kernel) -> Result<Function, String> {
        let slot = self.slots.get(kernel.name).ok_or_else(|| format!("there is no kernel {}", kernel.name))?;
        slot.get_or_init(|| load(&self.context, kernel)).clone()
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        self.shared.begun.store(ALL.len(), Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn load(context: &CudaContext, kernel: &Kernel) -> Result<Function, String> {
    let (module, ptx) = MODULES[kernel.module as usize];
    let function = gpu::load_function(context, module, ptx, kernel.name)?;
    if kernel.shared > SHARED {
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function was just loaded, in this context, which loading has bound.
        let set = unsafe { result::function::set_function_attribute(function, attribute, kernel.shared.cast_signed()) };
        set.map_err(|error| {
            let (name, shared) = (kernel.name, kernel.shared);
            format!("the kernel {name} can't have {shared} bytes of shared memory: {}", gpu::said(error))
        })?;
    }
    Ok(Function(function))
}
