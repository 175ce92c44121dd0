//! Memory on a GPU, and pins, which make host memory fit for copies to and from GPUs. One of the rooms with `unsafe`.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::failure::Failure;
use super::stream::Stream;

/// Bytes on a GPU, not initialized. Nothing but what is enqueued on the stream that it is from may use them any more when
/// they are dropped.
pub(crate) struct DeviceMemory {
    address: u64,
    len: usize,
    /// What frees it in its order, where the driver has pools.
    stream: Option<Stream>,
    context: Arc<CudaContext>,
}

impl DeviceMemory {
    /// Memory that is kept long. `len` is above zero.
    pub(super) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, Failure> {
        context.bind_to_thread()?;
        // SAFETY: a plain allocation; nobody reads it before it is written.
        let address = unsafe { result::malloc_sync(len) }?;
        Ok(Self { address, len, stream: None, context: Arc::clone(context) })
    }

    /// Memory from the GPU's pool, which costs little to take and to give back. `len` is above zero.
    pub(crate) fn pooled(stream: &Stream, len: usize) -> Result<Self, Failure> {
        let context = stream.context();
        if !context.has_async_alloc() {
            return Self::new(context, len);
        }
        context.bind_to_thread()?;
        // SAFETY: a plain allocation; the first use of it is on this stream, which is waited for before any other.
        let address = unsafe { result::malloc_async(stream.raw(), len) }?;
        Ok(Self { address, len, stream: Some(stream.clone()), context: Arc::clone(context) })
    }

    /// Where it begins, as the GPU counts.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let free = || -> Result<(), DriverError> {
            self.context.bind_to_thread()?;
            match &self.stream {
                // SAFETY: it was allocated on this stream, is freed once, and no work that uses it is left.
                Some(stream) => unsafe { result::free_async(self.address, stream.raw()) },
                // SAFETY: it is freed once, and no work that uses it is left.
                None => unsafe { result::free_sync(self.address) },
            }
        };
        // A lost GPU has no memory to free.
        let _ = free();
    }
}

/// Pinned memory, until it is dropped.
pub(crate) struct Pin {
    address: *mut u8,
    context: Arc<CudaContext>,
}

// SAFETY: the address is only given back to the driver, whose calls any thread may make.
unsafe impl Send for Pin {}
// SAFETY: as above.
unsafe impl Sync for Pin {}

impl Pin {
    /// Pins memory for every GPU.
    ///
    /// # Safety
    /// The memory must stay allocated until the pin is dropped.
    pub(super) unsafe fn new(context: &Arc<CudaContext>, address: *mut u8, len: usize) -> Result<Self, Failure> {
        context.bind_to_thread()?;
        // SAFETY: the caller keeps the memory.
        unsafe { sys::cuMemHostRegister_v2(address.cast(), len, sys::CU_MEMHOSTREGISTER_PORTABLE) }.result()?;
        Ok(Self { address, context: Arc::clone(context) })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Not `bind_to_thread`, which fails for what failed before, elsewhere. A lost GPU pins nothing.
        // SAFETY: the context is alive; the memory was registered, once, and whoever copies has waited for it.
        unsafe {
            let _ = result::ctx::set_current(self.context.cu_ctx());
            let _ = sys::cuMemHostUnregister(self.address.cast());
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}
