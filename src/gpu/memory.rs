//! Memory on a card, and pins, which make host memory fit for copies to and from cards. One of the rooms with `unsafe`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::block::Trouble;
use super::driver::said;

impl From<DriverError> for Trouble {
    fn from(error: DriverError) -> Self {
        Self::Device(said(error))
    }
}

/// Bytes on a card, not initialized. Nothing may use them any more when they are dropped: lanes wait for their work
/// before they return.
pub(crate) struct DeviceMemory {
    address: u64,
    len: usize,
    /// What frees it in its order, where the card has pools.
    stream: Option<Arc<CudaStream>>,
    context: Arc<CudaContext>,
}

impl DeviceMemory {
    /// Memory that is kept long. `len` is above zero.
    pub(super) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: a plain allocation; nobody reads it before it is written.
        let address = unsafe { result::malloc_sync(len) }?;
        Ok(Self { address, len, stream: None, context: Arc::clone(context) })
    }

    /// Memory from the card's pool, which costs little to take and to give back. `len` is above zero.
    pub(crate) fn pooled(stream: &Arc<CudaStream>, len: usize) -> Result<Self, DriverError> {
        let context = stream.context();
        if !context.has_async_alloc() {
            return Self::new(context, len);
        }
        context.bind_to_thread()?;
        // SAFETY: a plain allocation; the first use of it is on this stream, which is waited for before any other.
        let address = unsafe { result::malloc_async(stream.cu_stream(), len) }?;
        Ok(Self { address, len, stream: Some(Arc::clone(stream)), context: Arc::clone(context) })
    }

    /// Where it begins, as the card counts.
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
        let free = || {
            self.context.bind_to_thread()?;
            match &self.stream {
                // SAFETY: it was allocated on this stream, is freed once, and no work that uses it is left.
                Some(stream) => unsafe { result::free_async(self.address, stream.cu_stream()) },
                // SAFETY: it is freed once, and no work that uses it is left.
                None => unsafe { result::free_sync(self.address) },
            }
        };
        // A lost card has no memory to free.
        let _ = free();
    }
}

/// Part of the memory that a card has for what stays on it, until it is dropped.
pub(super) struct Claim {
    used: Arc<AtomicUsize>,
    len: usize,
}

impl Claim {
    /// Claims `len` of `limit` bytes, of which `used` are taken; `None` if too few are left.
    pub(super) fn new(used: &Arc<AtomicUsize>, len: usize, limit: usize) -> Option<Self> {
        let add = |taken: usize| taken.checked_add(len).filter(|sum| *sum <= limit);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Self { used: Arc::clone(used), len })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.used.fetch_sub(self.len, Ordering::Relaxed);
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
    /// Pins memory for every card.
    ///
    /// # Safety
    /// The memory must stay allocated until the pin is dropped.
    pub(super) unsafe fn new(context: &Arc<CudaContext>, address: *mut u8, len: usize) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the caller keeps the memory.
        unsafe { sys::cuMemHostRegister_v2(address.cast(), len, sys::CU_MEMHOSTREGISTER_PORTABLE) }.result()?;
        Ok(Self { address, context: Arc::clone(context) })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Not `bind_to_thread`, which fails for what failed before, elsewhere. A lost card pins nothing.
        // SAFETY: the context is alive; the memory was registered, once, and lanes have no copies under way when they
        // return.
        unsafe {
            let _ = result::ctx::set_current(self.context.cu_ctx());
            let _ = sys::cuMemHostUnregister(self.address.cast());
        }
    }
}

/// Waits until all that was enqueued on `stream` is done, whatever failed before, elsewhere: cudarc's own method would
/// then return at once.
pub(crate) fn wait_for(stream: &CudaStream) -> Result<(), DriverError> {
    // SAFETY: the stream is alive.
    unsafe { result::stream::synchronize(stream.cu_stream()) }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_stay_within_the_limit() {
        let used = Arc::new(AtomicUsize::new(0));
        let first = Claim::new(&used, 60, 100).unwrap();
        assert!(Claim::new(&used, 41, 100).is_none() && Claim::new(&used, usize::MAX, 100).is_none());
        let second = Claim::new(&used, 40, 100).unwrap();
        assert_eq!(used.load(Ordering::Relaxed), 100);
        drop(first);
        assert!(Claim::new(&used, 60, 100).is_some());
        drop(second);
        assert_eq!(used.load(Ordering::Relaxed), 0);
    }
}
