//! Streams, on which a GPU does what is enqueued in its order, and events, which tell when it was there. One of the rooms
//! with `unsafe`.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent_flags};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::failure::Failure;

/// A stream of a GPU.
#[derive(Clone)]
pub(crate) struct Stream(Arc<CudaStream>);

impl Stream {
    pub(super) fn open(context: &Arc<CudaContext>) -> Result<Self, Failure> {
        Ok(Self(context.new_stream()?))
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.0.context()
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.0.cu_stream()
    }

    /// The driver's handle, for libraries.
    pub(crate) fn handle(&self) -> *mut c_void {
        self.raw().cast()
    }

    /// Enqueues the copy of `from` to `to` on the GPU.
    ///
    /// # Safety
    /// The GPU must have as much memory there, and `from` must stay as it is until the copy is done.
    pub(crate) unsafe fn upload<T: Copy>(&self, to: u64, from: &[T]) -> Result<(), Failure> {
        // SAFETY: the caller guarantees both sides.
        Ok(unsafe { result::memcpy_htod_async(to, from, self.raw()) }?)
    }

    /// Enqueues the copy from `from` on the GPU to `to`.
    ///
    /// # Safety
    /// The GPU must have as much memory there, whose bytes are values of the type, and nobody may use `to` until the copy
    /// is done.
    pub(crate) unsafe fn download<T: Copy>(&self, to: &mut [T], from: u64) -> Result<(), Failure> {
        // SAFETY: the caller guarantees both sides.
        Ok(unsafe { result::memcpy_dtoh_async(to, from, self.raw()) }?)
    }

    /// Enqueues that `len` bytes become zero.
    ///
    /// # Safety
    /// The GPU must have as much memory there.
    pub(crate) unsafe fn clear(&self, address: u64, len: usize) -> Result<(), Failure> {
        // SAFETY: the caller guarantees the memory.
        Ok(unsafe { result::memset_d8_async(address, 0, len, self.raw()) }?)
    }

    /// Waits until all that was enqueued is done, whatever failed before, elsewhere: cudarc's own method would then
    /// return at once.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        // SAFETY: the stream is alive.
        Ok(unsafe { result::stream::synchronize(self.raw()) }?)
    }
}

/// A place in the order of a stream's work.
pub(crate) struct Event(CudaEvent);

impl Event {
    /// One whose time counts.
    pub(super) fn timed(context: &Arc<CudaContext>) -> Result<Self, Failure> {
        Ok(Self(context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?))
    }

    /// One that threads sleep for.
    pub(super) fn awaited(context: &Arc<CudaContext>) -> Result<Self, Failure> {
        Ok(Self(context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))?))
    }

    /// Puts it after what was enqueued on `stream`.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), Failure> {
        Ok(self.0.record(&stream.0)?)
    }

    /// Waits for it; at once where it was put nowhere yet.
    pub(super) fn wait(&self) -> Result<(), Failure> {
        Ok(self.0.synchronize()?)
    }

    /// Seconds from here to `end`, for which it is waited.
    pub(crate) fn seconds_until(&self, end: &Self) -> Result<f64, Failure> {
        Ok(f64::from(self.0.elapsed_ms(&end.0)?) / 1e3)
    }
}
