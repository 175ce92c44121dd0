//! Where a vector lies on a GPU, for code that works on it beside the engine, mainly an all-reduce.

use std::ffi::c_void;
use std::marker::PhantomData;

/// The f32 of a vector on a GPU, borrowed from it. Work on them is to be enqueued on the stream.
#[derive(Debug)]
pub struct DeviceBuffer<'v> {
    address: u64,
    len: usize,
    stream: *mut c_void,
    vector: PhantomData<&'v mut [f32]>,
}

impl DeviceBuffer<'_> {
    /// `len` values at `address`.
    ///
    /// # Safety
    /// They must be on the GPU whose context is current on this thread, and stay there while this lives; `stream` must
    /// be a live stream of that GPU, as the driver knows it.
    pub(super) unsafe fn new(address: u64, len: usize, stream: *mut c_void) -> Self {
        Self { address, len, stream, vector: PhantomData }
    }

    /// Where the first value is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The stream on which the engine enqueues its own work.
    pub fn stream(&self) -> *mut c_void {
        self.stream
    }
}
