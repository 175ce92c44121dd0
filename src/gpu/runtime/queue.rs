//! A GPU as one queue of work: a stream, on which everything is enqueued in order, and in whose order memory is freed. One
//! of the rooms with `unsafe`.

use std::collections::BTreeMap;
use std::slice;

use super::failure::Failure;
use super::functions::Background;
use super::gpu::Gpu;
use super::kernel::Kernel;
use super::memory::DeviceMemory;
use super::staging::{Fill, Staging, Target};
use super::stream::Stream;
use super::timing::Timer;
use crate::error::{Error, Result};

/// What a failure means for the user, which depends on what the GPU was to do.
pub(crate) type Explain = fn(Failure) -> Error;

/// See the module.
pub(crate) struct Queue {
    explain: Explain,
    /// Before `gpu`, so that its threads end first.
    _compiling: Background,
    staging: Staging,
    timer: Timer,
    stream: Stream,
    gpu: Gpu,
}

/// Numbers without padding, of which any bytes are some.
///
/// # Safety
/// The type must be that.
pub(crate) unsafe trait Plain: Copy + Default {}
// SAFETY: as the trait wants it; so are the others.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}
// SAFETY: as above.
unsafe impl Plain for [u32; 2] {}

impl Queue {
    /// Opens GPU number `number`, which is fit (see [`super::find`]), for work that uses these kernels. They are
    /// compiled in the background; the first is waited for, which tells whether the driver takes them.
    pub(crate) fn open(number: usize, kernels: &'static [Kernel], explain: Explain) -> Result<Self> {
        let open = || -> Result<Self, Failure> {
            let gpu = Gpu::open(number)?;
            if !gpu.has_pools() {
                return Err(Failure::NoPools);
            }
            let stream = gpu.stream()?;
            let staging = Staging::open(&stream)?;
            let compiling = gpu.functions().load_in_background(kernels);
            if let Some(first) = kernels.first() {
                gpu.functions().load(first)?;
            }
            gpu.keep_freed_memory(u64::MAX)?;
            Ok(Self { explain, _compiling: compiling, staging, timer: Timer::default(), stream, gpu })
        };
        open().map_err(explain)
    }

    /// Has failures explained as they are here.
    pub(crate) fn explain(&self) -> Explain {
        self.explain
    }

    /// Makes this thread's calls of the driver and its libraries go to this GPU.
    pub(crate) fn bind(&self) -> Result<()> {
        self.gpu.bind().map_err(self.explain)
    }

    /// The GPU's name, for users.
    pub(crate) fn name(&self) -> &str {
        self.gpu.name()
    }

    /// Most bytes of shared memory that a thread block may ask for.
    pub(crate) fn shared_memory(&self) -> Result<u32> {
        self.gpu.shared_memory().map_err(self.explain)
    }

    /// Most bytes that were in use at once, where it can be told.
    pub(crate) fn peak(&self) -> Option<u64> {
        self.gpu.peak_of_pool()
    }

    /// Bytes that may be allocated, where it can be told.
    pub(crate) fn free(&self) -> Option<u64> {
        self.gpu.left_for_pool()
    }

    /// The stream, for libraries.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// `len` bytes, not initialized.
    pub(crate) fn allocate(&self, len: usize) -> Result<DeviceMemory> {
        let len = len.max(16);
        let memory = DeviceMemory::pooled(&self.stream, len).or_else(|failure| {
            if !failure.is_out_of_memory() {
                return Err(failure);
            }
            // What was freed may lie in pieces: once all work is done, the pool can give them back and start afresh.
            self.stream.wait()?;
            self.gpu.release_freed_memory()?;
            DeviceMemory::pooled(&self.stream, len)
        });
        memory.map_err(self.explain)
    }

    /// `len` bytes of zeros.
    pub(crate) fn zeros(&self, len: usize) -> Result<DeviceMemory> {
        let memory = self.allocate(len)?;
        self.clear(&memory, len)?;
        Ok(memory)
    }

    /// Sets the first `len` bytes to zero.
    pub(crate) fn clear(&self, memory: &DeviceMemory, len: usize) -> Result<()> {
        self.check(memory, 0, len)?;
        // SAFETY: the memory has that many bytes.
        unsafe { self.stream.clear(memory.address(), len) }.map_err(self.explain)
    }

    /// Values of plain numbers, on the GPU.
    pub(crate) fn upload<T: Plain>(&self, values: &[T]) -> Result<DeviceMemory> {
        let memory = self.allocate(size_of_val(values))?;
        self.write(&memory, values)?;
        Ok(memory)
    }

    /// Overwrites the first values.
    pub(crate) fn write<T: Plain>(&self, memory: &DeviceMemory, values: &[T]) -> Result<()> {
        self.check(memory, 0, size_of_val(values))?;
        // SAFETY: the numbers have no padding, so that all of their bytes are initialized.
        let bytes = unsafe { slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        // SAFETY: the memory has that many bytes, and was allocated on this stream.
        unsafe { self.staging.write(memory.address(), bytes) }.map_err(self.explain)
    }

    /// Writes `rows` rows of `width` bytes that `fill` gives, from byte `start` on, `pitch` bytes apart. Rows are no longer
    /// than [`super::MOST_WIDTH`].
    pub(crate) fn write_rows(
        &self,
        memory: &DeviceMemory,
        start: usize,
        pitch: usize,
        [rows, width]: [usize; 2],
        fill: Fill<'_>,
    ) -> Result<()> {
        let len = rows.checked_mul(pitch).filter(|_| width <= pitch).unwrap_or(usize::MAX);
        self.check(memory, start, len)?;
        let address = memory.address() + start as u64;
        // SAFETY: the memory has these rows, and was allocated on this stream.
        unsafe { self.staging.fill(Target { address, pitch, rows, width }, fill) }.map_err(self.explain)
    }

    /// Reads the first values, once all that was enqueued is done.
    pub(crate) fn read<T: Plain>(&self, memory: &DeviceMemory, len: usize) -> Result<Vec<T>> {
        let mut values = vec![T::default(); len];
        self.check(memory, 0, size_of_val(&values[..]))?;
        if len > 0 {
            self.bind()?;
            // SAFETY: the memory has that many values, which are plain numbers, and the copy is waited for.
            unsafe { self.stream.download(&mut values, memory.address()) }.map_err(self.explain)?;
        }
        self.wait()?;
        Ok(values)
    }

    /// Waits until all that was enqueued is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.stream.wait().map_err(self.explain)
    }

    /// Enqueues a kernel for `work`, as `Functions::launch` takes it.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn launch(&self, kernel: &Kernel, work: u64, arguments: &[u64]) -> Result<()> {
        // SAFETY: the caller guarantees the arguments.
        unsafe { self.gpu.functions().launch(&self.stream, kernel, work, arguments) }.map_err(self.explain)
    }

    /// From here on, what is [`Self::timed`] is timed, from zero.
    pub(crate) fn time(&self) {
        self.timer.start();
    }

    /// Does `work`, and adds the time that it takes on the GPU to `name` where somebody wants to know.
    pub(crate) fn timed<T>(&self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.timer.time(&self.stream, name, self.explain, work)
    }

    /// Seconds by name since [`Self::time`], for which it is waited.
    pub(crate) fn timings(&self) -> Result<BTreeMap<&'static str, f64>> {
        self.timer.read(&self.stream).map_err(self.explain)
    }

    /// Whether the memory has `len` bytes from `start` on.
    fn check(&self, memory: &DeviceMemory, start: usize, len: usize) -> Result<()> {
        if start.checked_add(len).is_some_and(|end| end <= memory.len()) {
            return Ok(());
        }
        Err((self.explain)(Failure::Misuse("a copy beyond the end of its memory")))
    }
}
