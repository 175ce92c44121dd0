//! Host memory that files are written from and GPUs copy to: page-aligned, and pinned once a GPU uses it. One of the
//! rooms with `unsafe`.

use super::gpu::Gpu;
use super::memory::Pin;

/// Alignment of the memory: a page, which is also what direct I/O wants.
pub(crate) const ALIGN: usize = 4096;

/// Bytes at a page-aligned address that never moves.
#[derive(Debug)]
pub(crate) struct HostMemory {
    /// Before `memory`, so that it is dropped first.
    pin: Option<Pin>,
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl HostMemory {
    /// `len` bytes, rounded up to whole pages, zeroed.
    pub(crate) fn new(len: usize) -> Self {
        let len = len.next_multiple_of(ALIGN);
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { pin: None, memory, start, len }
    }

    /// Pins the memory for every GPU, so that copies run at full speed and beside other work. Where the driver won't,
    /// copies are merely slower.
    pub(crate) fn pin(&mut self, gpu: &Gpu) {
        if self.pin.is_none() {
            let (address, len) = (self.bytes_mut().as_mut_ptr(), self.len);
            // SAFETY: the vector is never resized, so the pages stay where they are until it is dropped, after `pin`.
            self.pin = unsafe { Pin::new(gpu.context(), address, len) }.ok();
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
