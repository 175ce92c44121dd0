//! The card that trains: its stream, its memory, and launching kernels. All work is enqueued on one stream, in order, and
//! memory is freed in that order too. One of the rooms with `unsafe`.

use std::sync::Arc;
use std::{ptr, slice};

use cudarc::driver::sys::{self, CUmemPool_attribute_enum as PoolAttribute};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::functions::Functions;
use super::kernels::Kernel;
use super::staging::{Fill, Staging, Target};
use super::timing::Timer;
use crate::error::{Error, Result};
use crate::gpu::{self, Device, DeviceMemory};

/// A card, open for training.
pub(super) struct Card {
    name: String,
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    functions: Functions,
    staging: Staging,
    pub(super) timer: Timer,
}

/// Numbers without padding, of which any bytes are some.
///
/// # Safety
/// The type must be that.
pub(super) unsafe trait Plain: Copy + Default {}
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

/// What the driver's answer means for the user.
pub(super) fn failed(error: DriverError) -> Error {
    if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return Error::out_of_memory(
            "the card has too little memory for this model and these batches",
            "lower --per_device_train_batch_size or --max_length (what does not fit is computed again already); \
             where the base alone is too large, take a smaller one with --model, or use --device cpu",
        );
    }
    Error::Card { problem: format!("the card failed: {}", gpu::said(error)) }
}

impl Card {
    /// Opens the first card that `device` means.
    pub(super) fn open(device: Device) -> Result<Self> {
        let refused = |no_card: gpu::NoCard| {
            let (problem, remedy) = no_card.parts();
            Error::new(no_card.kind(), problem, remedy)
        };
        let number = gpu::find_cards(device).map_err(refused)?.first().copied().unwrap_or(0);
        let context = CudaContext::new(number).map_err(failed)?;
        // SAFETY: all work is on one stream, so there is nothing for events to order.
        unsafe { context.disable_event_tracking() };
        if !context.has_async_alloc() {
            return Err(Error::device("the card's driver has no memory pools", "update it, or use --device cpu"));
        }
        let stream = context.new_stream().map_err(failed)?;
        let name = context.name().map_err(failed)?;
        let staging = Staging::open(&stream).map_err(failed)?;
        let (functions, timer) = (Functions::prepare(&context)?, Timer::default());
        let card = Self { name, context, stream, functions, staging, timer };
        card.keep_freed_memory()?;
        Ok(card)
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Most bytes of shared memory that a block may ask for.
    pub(super) fn shared_memory(&self) -> Result<u32> {
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let bytes = self.context.attribute(attribute).map_err(failed)?;
        Ok(u32::try_from(bytes).unwrap_or(0))
    }

    /// Lets the pool keep what is freed: the next layer will want it.
    fn keep_freed_memory(&self) -> Result<()> {
        let bytes = u64::MAX;
        let attribute = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let value = ptr::from_ref(&bytes).cast_mut().cast();
        // SAFETY: the device is that of a live context, and the attribute's value is one u64, which the driver reads.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context.cu_device()).map_err(failed)?;
            sys::cuMemPoolSetAttribute(pool, attribute, value).result().map_err(failed)
        }
    }

    /// Most bytes of the pool that were in use at once.
    pub(super) fn peak(&self) -> Option<u64> {
        self.pooled(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// Bytes that may be allocated: those that are free, and those that the pool keeps.
    pub(super) fn free(&self) -> Option<u64> {
        let (free, _) = self.context.mem_get_info().ok()?;
        let reserved = self.pooled(PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = self.pooled(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Some(free as u64 + reserved.saturating_sub(used))
    }

    /// What the driver says of the pool, in bytes.
    fn pooled(&self, attribute: PoolAttribute) -> Option<u64> {
        let mut bytes = 0u64;
        // SAFETY: as above, but the driver writes the u64.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context.cu_device()).ok()?;
            sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result().ok()?;
        }
        Some(bytes)
    }

    /// `len` bytes, not initialized.
    pub(super) fn allocate(&self, len: usize) -> Result<DeviceMemory> {
        let len = len.max(16);
        let memory = match DeviceMemory::pooled(&self.stream, len) {
            // What was freed may lie in pieces: once all work is done, the pool can give them back and start afresh.
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                self.wait()?;
                // SAFETY: the device is that of a live context.
                unsafe {
                    let pool = result::device::get_default_mem_pool(self.context.cu_device()).map_err(failed)?;
                    sys::cuMemPoolTrimTo(pool, 0).result().map_err(failed)?;
                }
                DeviceMemory::pooled(&self.stream, len)
            }
            memory => memory,
        };
        memory.map_err(failed)
    }

    /// `len` bytes of zeros.
    pub(super) fn zeros(&self, len: usize) -> Result<DeviceMemory> {
        let memory = self.allocate(len)?;
        self.clear(&memory, len)?;
        Ok(memory)
    }

    /// Sets the first `len` bytes to zero.
    pub(super) fn clear(&self, memory: &DeviceMemory, len: usize) -> Result<()> {
        within(memory, 0, len)?;
        // SAFETY: the memory has that many bytes.
        unsafe { result::memset_d8_async(memory.address(), 0, len, self.stream.cu_stream()) }.map_err(failed)
    }

    /// Values of plain numbers, on the card.
    pub(super) fn upload<T: Plain>(&self, values: &[T]) -> Result<DeviceMemory> {
        let memory = self.allocate(size_of_val(values))?;
        self.write(&memory, values)?;
        Ok(memory)
    }

    /// Overwrites the first values.
    pub(super) fn write<T: Plain>(&self, memory: &DeviceMemory, values: &[T]) -> Result<()> {
        within(memory, 0, size_of_val(values))?;
        // SAFETY: the numbers have no padding, so that all of their bytes are initialized.
        let bytes = unsafe { slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        // SAFETY: the memory has that many bytes, and was allocated on this stream.
        unsafe { self.staging.write(memory.address(), bytes) }
    }

    /// Writes `rows` rows of `width` bytes that `fill` gives, from byte `start` on, `pitch` bytes apart.
    pub(super) fn write_rows(
        &self,
        memory: &DeviceMemory,
        start: usize,
        pitch: usize,
        [rows, width]: [usize; 2],
        fill: Fill<'_>,
    ) -> Result<()> {
        let len = rows.checked_mul(pitch).filter(|_| width <= pitch).unwrap_or(usize::MAX);
        within(memory, start, len)?;
        let address = memory.address() + start as u64;
        // SAFETY: the memory has these rows, and was allocated on this stream.
        unsafe { self.staging.fill(Target { address, pitch, rows, width }, fill) }
    }

    /// Reads the first values, once all that was enqueued is done.
    pub(super) fn read<T: Plain>(&self, memory: &DeviceMemory, len: usize) -> Result<Vec<T>> {
        let mut values = vec![T::default(); len];
        within(memory, 0, size_of_val(&values[..]))?;
        if len > 0 {
            self.context.bind_to_thread().map_err(failed)?;
            // SAFETY: the memory has that many values, which are plain numbers, and the copy is waited for.
            unsafe { result::memcpy_dtoh_async(&mut values, memory.address(), self.stream.cu_stream()) }
                .map_err(failed)?;
        }
        self.wait()?;
        Ok(values)
    }

    /// Waits until all that was enqueued is done.
    pub(super) fn wait(&self) -> Result<()> {
        gpu::wait_for(&self.stream).map_err(failed)
    }

    /// Enqueues `grid` blocks of a kernel.
    ///
    /// # Safety
    /// `arguments` must be what the kernel's source says: numbers, and addresses of memory on the card that is as large
    /// as the kernel takes it to be.
    pub(super) unsafe fn launch(&self, kernel: &Kernel, grid: u64, arguments: &[u64]) -> Result<()> {
        if grid == 0 {
            return Ok(());
        }
        let function = self.functions.get(kernel)?;
        let Ok(grid) = u32::try_from(grid).and_then(i32::try_from).and_then(u32::try_from) else {
            return Err(Error::unsupported(
                "a batch is too large for one launch",
                "lower --per_device_train_batch_size",
            ));
        };
        // The driver reads the arguments before it returns.
        let mut places: Vec<_> = arguments.iter().map(|argument| ptr::from_ref(argument).cast_mut().cast()).collect();
        // SAFETY: the function belongs to this live context, all its parameters have 64 bits, and the caller vouches for
        // them.
        unsafe {
            let (grid, block, shared) = ((grid, 1, 1), (kernel.threads, 1, 1), kernel.shared);
            result::launch_kernel(function, grid, block, shared, self.stream.cu_stream(), &mut places)
        }
        .map_err(failed)
    }

    /// Does `work`, and adds the time it takes on the card to `name` where somebody wants to know.
    pub(super) fn timed<T>(&self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.timer.time(&self.stream, name, work)
    }
}

/// Whether the memory has `len` bytes from `start` on.
fn within(memory: &DeviceMemory, start: usize, len: usize) -> Result<()> {
    if start.checked_add(len).is_some_and(|end| end <= memory.len()) {
        return Ok(());
    }
    Err(broken("a copy beyond the memory that it is for"))
}

/// A mistake of a caller's, which kernels would not survive.
pub(super) fn broken(what: &str) -> Error {
    Error::bug(format!("the card was given {what}"), "report this: it is a mistake in qft; or use --device cpu")
}
