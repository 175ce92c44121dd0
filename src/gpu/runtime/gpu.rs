//! A GPU that is open: its context, its functions, and what it says of its memory. One of the rooms with `unsafe`.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUmemPool_attribute_enum as PoolAttribute};
use cudarc::driver::{CudaContext, result};

use super::failure::Failure;
use super::functions::Functions;
use super::memory::DeviceMemory;
use super::stream::{Event, Stream};

/// See the module.
pub(crate) struct Gpu {
    number: usize,
    name: String,
    context: Arc<CudaContext>,
    functions: Arc<Functions>,
}

impl Gpu {
    /// Opens GPU number `number`, which is fit (see [`super::find`]).
    pub(crate) fn open(number: usize) -> Result<Self, Failure> {
        let context = CudaContext::new(number)?;
        // SAFETY: whatever is shared between streams is waited for before it is shared, and memory is freed after the
        // work that uses it was waited for, or in the order of the one stream that uses it.
        unsafe { context.disable_event_tracking() };
        let (name, functions) = (context.name()?, Arc::new(Functions::new(&context)));
        Ok(Self { number, name, context, functions })
    }

    /// Its number, as the driver counts.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Its name, for users.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Its kernels.
    pub(crate) fn functions(&self) -> &Arc<Functions> {
        &self.functions
    }

    /// Makes this thread's calls of the driver go to this GPU.
    pub(crate) fn bind(&self) -> Result<(), Failure> {
        Ok(self.context.bind_to_thread()?)
    }

    /// Has threads sleep, not spin, while they wait for it.
    pub(crate) fn sleep_while_waiting(&self) -> Result<(), Failure> {
        Ok(self.context.set_blocking_synchronize()?)
    }

    /// Another stream.
    pub(crate) fn stream(&self) -> Result<Stream, Failure> {
        Stream::open(&self.context)
    }

    /// An event whose time counts.
    pub(crate) fn event(&self) -> Result<Event, Failure> {
        Event::timed(&self.context)
    }

    /// Memory that is kept long, not initialized. `len` is above zero.
    pub(crate) fn allocate(&self, len: usize) -> Result<DeviceMemory, Failure> {
        DeviceMemory::new(&self.context, len)
    }

    /// Bytes that are free.
    pub(crate) fn free_memory(&self) -> Result<u64, Failure> {
        Ok(self.context.mem_get_info()?.0 as u64)
    }

    /// Most bytes of shared memory that a thread block may ask for.
    pub(crate) fn shared_memory(&self) -> Result<u32, Failure> {
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        Ok(u32::try_from(self.context.attribute(attribute)?).unwrap_or(0))
    }

    /// Whether its driver has pools of memory.
    pub(crate) fn has_pools(&self) -> bool {
        self.context.has_async_alloc()
    }

    /// Lets the pool keep up to `bytes` of freed memory, which whoever comes next will want.
    pub(crate) fn keep_freed_memory(&self, bytes: u64) -> Result<(), Failure> {
        let attribute = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let value = std::ptr::from_ref(&bytes).cast_mut().cast();
        // SAFETY: the device is that of a live context, and the attribute's value is one u64, which the driver reads.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context.cu_device())?;
            Ok(sys::cuMemPoolSetAttribute(pool, attribute, value).result()?)
        }
    }

    /// Has the pool give back what it keeps.
    pub(super) fn release_freed_memory(&self) -> Result<(), Failure> {
        // SAFETY: the device is that of a live context.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context.cu_device())?;
            Ok(sys::cuMemPoolTrimTo(pool, 0).result()?)
        }
    }

    /// Most bytes of the pool that were in use at once.
    pub(crate) fn peak_of_pool(&self) -> Option<u64> {
        self.pool(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// Bytes that the pool can give: those that are free, and those that it keeps.
    pub(crate) fn left_for_pool(&self) -> Option<u64> {
        let free = self.free_memory().ok()?;
        let reserved = self.pool(PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = self.pool(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Some(free + reserved.saturating_sub(used))
    }

    /// What the driver says of the pool, in bytes.
    fn pool(&self, attribute: PoolAttribute) -> Option<u64> {
        let mut bytes = 0u64;
        // SAFETY: as above, but the driver writes the u64.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context.cu_device()).ok()?;
            sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result().ok()?;
        }
        Some(bytes)
    }
}
