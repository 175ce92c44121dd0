//! One card: its context, the memory that it may use, and its lanes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::block::{Lane, Trouble};
use super::budget::Budget;
use super::driver::NoCard;
use super::fault::{Faults, Faulty};
use super::kernels::{Compiled, FOLD_SUMS, HASH, Kernels, MERGE, WIDEN};
use super::lane::CudaLane;
use super::memory::{Claim, Pin};
use super::simulated::SimulatedCard;
use crate::ggml::TensorType;
use crate::size::ByteSize;

/// Bytes of a card that are used unless more or less is asked for, and the part of its free memory that may be.
pub(super) const MEMORY: u64 = 2 << 30;
const OF_FREE: (u64, u64) = (4, 5);

/// A card that blocks can be made on.
pub(crate) enum Card {
    /// One of NVIDIA's.
    Cuda(Box<CudaCard>),
    /// One whose lanes fail when they are told to.
    Faulty(Box<Card>, Arc<Faults>),
    /// None that is real.
    Simulated(SimulatedCard),
}

impl Card {
    /// Its name, for people.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Cuda(card) => &card.name,
            Self::Faulty(card, _) => card.name(),
            Self::Simulated(_) => "simulated",
        }
    }

    /// Its number, as the driver counts.
    #[cfg(test)]
    pub(crate) fn number(&self) -> usize {
        match self {
            Self::Cuda(card) => card.number,
            Self::Faulty(card, _) => card.number(),
            Self::Simulated(_) => 0,
        }
    }

    /// How many lanes keep it busy within the memory that it may use.
    pub(crate) fn lanes(&self) -> usize {
        match self {
            Self::Cuda(card) => card.budget.lanes,
            Self::Faulty(card, _) => card.lanes(),
            Self::Simulated(_) => 2,
        }
    }

    /// Most elements of a block of its lanes.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Cuda(card) => card.budget.capacity,
            Self::Faulty(card, _) => card.capacity(),
            Self::Simulated(card) => card.capacity,
        }
    }

    /// A lane, for the thread that asks.
    pub(crate) fn lane(&self) -> Result<Box<dyn Lane + '_>, Trouble> {
        match self {
            Self::Cuda(card) => Ok(Box::new(CudaLane::open(card, self)?)),
            Self::Faulty(card, faults) => Ok(Box::new(Faulty { lane: card.lane()?, faults: Arc::clone(faults) })),
            Self::Simulated(card) => Ok(card.lane()),
        }
    }

    /// Compiles the kernels that merges and the encoding of `kinds`, each with or without importance, will need, side by side, so that no lane has to wait
    /// for its driver later. What fails will fail again, and be said, where it is used.
    pub(crate) fn prepare(&self, kinds: &[(TensorType, bool)]) {
        match self {
            Self::Cuda(card) => card.prepare(kinds),
            Self::Faulty(card, _) => card.prepare(kinds),
            Self::Simulated(_) => {}
        }
    }

    /// Pins host memory for every card.
    ///
    /// # Safety
    /// The memory must stay allocated until the pin is dropped.
    pub(super) unsafe fn pin(&self, address: *mut u8, len: usize) -> Result<Pin, Trouble> {
        match self {
            // SAFETY: the caller keeps the memory.
            Self::Cuda(card) => Ok(unsafe { Pin::new(&card.context, address, len) }?),
            // SAFETY: as above.
            Self::Faulty(card, _) => unsafe { card.pin(address, len) },
            Self::Simulated(_) => Err(Trouble::Unsupported),
        }
    }
}

/// One of NVIDIA's cards.
pub(crate) struct CudaCard {
    pub(super) number: usize,
    name: String,
    pub(super) context: Arc<CudaContext>,
    pub(super) budget: Budget,
    pub(super) compiled: Compiled,
    /// What stays on the card is allocated and uploaded here.
    pub(super) uploads: Arc<CudaStream>,
    /// Bytes of that.
    used: Arc<AtomicUsize>,
}

impl CudaCard {
    /// Opens card number `number`, which is fit, to use up to `memory` of it.
    pub(super) fn open(number: usize, memory: Option<ByteSize>) -> Result<Self, NoCard> {
        let context = CudaContext::new(number)?;
        // SAFETY: whatever is shared between streams is waited for before it is shared, and memory is freed after the
        // work that uses it was waited for; see `memory` and `lane`.
        unsafe { context.disable_event_tracking() };
        // Lanes sleep while the card works: the processor has digests to compute.
        context.set_blocking_synchronize()?;
        let name = context.name()?;
        let free = context.mem_get_info()?.0 as u64;
        let allowed = allowed(free, memory);
        let budget = Budget::within(allowed as usize).ok_or_else(|| NoCard::LittleMemory {
            name: name.clone(),
            free: ByteSize(allowed),
            needed: ByteSize(Budget::least() as u64),
        })?;
        let uploads = context.new_stream()?;
        if context.has_async_alloc() {
            keep_freed_memory(&context, budget.resident as u64)?;
        }
        let (compiled, used) = (Compiled::default(), Arc::default());
        Ok(Self { number, name, context, budget, compiled, uploads, used })
    }

    /// Claims bytes for what stays on the card.
    pub(super) fn claim(&self, len: usize) -> Result<Claim, Trouble> {
        Claim::new(&self.used, len, self.budget.resident).ok_or(Trouble::Unsupported)
    }

    /// Compiles the kernels of merges.
    pub(super) fn load_merge(&self) {
        let _ = self.compiled.load(&self.context, MERGE);
    }

    fn prepare(&self, kinds: &[(TensorType, bool)]) {
        let of_kinds = kinds.iter().filter_map(|(kind, weighted)| Some((Kernels::of(*kind)?, *weighted)));
        let kernels = of_kinds.flat_map(|(row, weighted)| [Some(row.encoder(weighted)), row.measure]).flatten();
        std::thread::scope(|scope| {
            for kernel in kernels.chain([MERGE, WIDEN, FOLD_SUMS, HASH]) {
                scope.spawn(move || self.compiled.load(&self.context, kernel));
            }
        });
    }
}

/// Bytes that may be used of `free` ones.
fn allowed(free: u64, asked: Option<ByteSize>) -> u64 {
    let of_free = free / OF_FREE.1 * OF_FREE.0;
    asked.map_or(MEMORY, |asked| asked.0).min(of_free)
}

/// Lets the card's pool keep up to `bytes` of freed memory, which the next tensor will want.
fn keep_freed_memory(context: &CudaContext, bytes: u64) -> Result<(), DriverError> {
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let value = std::ptr::from_ref(&bytes).cast_mut().cast();
    // SAFETY: the device is that of a live context, and the attribute's value is one u64, which the driver reads.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        sys::cuMemPoolSetAttribute(pool, attribute, value).result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_was_asked_for_or_a_part_of_what_is_free() {
        assert_eq!(allowed(80 << 30, None), 2 << 30);
        assert_eq!(allowed(1000, None), 800);
        assert_eq!(allowed(80 << 30, Some(ByteSize(16 << 30))), 16 << 30);
        assert_eq!(allowed(1000, Some(ByteSize(900))), 800);
        assert_eq!(allowed(1000, Some(ByteSize(5))), 5);
    }

    #[test]
    fn a_faulty_card_is_as_the_one_within() {
        let card = Card::Simulated(SimulatedCard { capacity: 512 });
        let faulty = Card::Faulty(Box::new(card), Faults::new("lost@1".parse().unwrap()));
        assert_eq!((faulty.name(), faulty.number(), faulty.lanes(), faulty.capacity()), ("simulated", 0, 2, 512));
        assert_eq!(faulty.lane().unwrap().capacity(), 512);
        faulty.prepare(&[(TensorType::Q4_K, false)]);
    }
}
