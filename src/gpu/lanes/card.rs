//! One GPU: the memory that it may use, and its lanes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::block::{EncoderKind, Lane, Trouble};
use super::budget::Budget;
use super::fault::{Faults, Faulty};
use super::kernels::{FOLD_SUMS, HASH, Kernels, MERGE, WIDEN};
use super::lane::CudaLane;
use super::simulated::SimulatedCard;
use super::upload::Claim;
use crate::gpu::runtime::{Gpu, HostMemory, NoCard, Stream};
use crate::size::ByteSize;

/// Bytes of a GPU that are used unless more or less is asked for, and the part of its free memory that may be.
pub(super) const MEMORY: u64 = 2 << 30;
const OF_FREE: (u64, u64) = (4, 5);

/// A GPU that blocks can be made on.
pub(crate) enum Card {
    /// One of NVIDIA's.
    Cuda(Box<CudaCard>),
    /// One whose lanes fail when they are told to.
    Faulty(Box<Card>, Arc<Faults>),
    /// None that is real.
    Simulated(SimulatedCard),
}

impl Card {
    /// Its name, for users.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Cuda(card) => card.gpu.name(),
            Self::Faulty(card, _) => card.name(),
            Self::Simulated(_) => "simulated",
        }
    }

    /// Its number, as the driver counts.
    #[cfg(test)]
    pub(crate) fn number(&self) -> usize {
        match self {
            Self::Cuda(card) => card.gpu.number(),
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
            Self::Cuda(card) => Ok(Box::new(CudaLane::open(card)?)),
            Self::Faulty(card, faults) => Ok(Box::new(Faulty { lane: card.lane()?, faults: Arc::clone(faults) })),
            Self::Simulated(card) => Ok(card.lane()),
        }
    }

    /// Compiles the kernels that merges and `encoders` will need, side by side, so that no lane has to wait
    /// for its driver later. What fails will fail again, and be said, where it is used.
    pub(crate) fn prepare(&self, encoders: &[EncoderKind]) {
        match self {
            Self::Cuda(card) => card.prepare(encoders),
            Self::Faulty(card, _) => card.prepare(encoders),
            Self::Simulated(_) => {}
        }
    }

    /// Pins host memory for every GPU: see [`HostMemory::pin`].
    pub(crate) fn pin(&self, memory: &mut HostMemory) {
        match self {
            Self::Cuda(card) => memory.pin(&card.gpu),
            Self::Faulty(card, _) => card.pin(memory),
            Self::Simulated(_) => {}
        }
    }
}

/// One of NVIDIA's GPUs.
pub(crate) struct CudaCard {
    pub(super) gpu: Gpu,
    pub(super) budget: Budget,
    /// What stays on the GPU is allocated and uploaded here.
    pub(super) uploads: Stream,
    /// Bytes of that.
    used: Arc<AtomicUsize>,
}

impl CudaCard {
    /// Opens GPU number `number`, which is fit, to use up to `memory` of it.
    pub(super) fn open(number: usize, memory: Option<ByteSize>) -> Result<Self, NoCard> {
        let gpu = Gpu::open(number)?;
        // The processor has digests to compute.
        gpu.sleep_while_waiting()?;
        let allowed = allowed(gpu.free_memory()?, memory);
        let budget = Budget::within(allowed as usize).ok_or_else(|| NoCard::LittleMemory {
            name: gpu.name().to_owned(),
            free: ByteSize(allowed),
            needed: ByteSize(Budget::least() as u64),
        })?;
        let uploads = gpu.stream()?;
        if gpu.has_pools() {
            // The next tensor will want it.
            gpu.keep_freed_memory(budget.resident as u64)?;
        }
        Ok(Self { gpu, budget, uploads, used: Arc::default() })
    }

    /// Claims bytes for what stays on the GPU.
    pub(super) fn claim(&self, len: usize) -> Result<Claim, Trouble> {
        Claim::new(&self.used, len, self.budget.resident).ok_or(Trouble::Unsupported)
    }

    /// Compiles the kernels of merges.
    pub(super) fn load_merge(&self) {
        let _ = self.gpu.functions().load(&MERGE);
    }

    fn prepare(&self, encoders: &[EncoderKind]) {
        let rows = encoders.iter().filter_map(|encoder| Some((Kernels::of(encoder.kind)?, encoder.weighted)));
        let kernels = rows.flat_map(|(row, weighted)| [Some(row.encoder(weighted)), row.measure]).flatten();
        self.gpu.functions().load_all(kernels.chain([MERGE, WIDEN, FOLD_SUMS, HASH]));
    }
}

/// Bytes that may be used of `free` ones.
fn allowed(free: u64, asked: Option<ByteSize>) -> u64 {
    let of_free = free / OF_FREE.1 * OF_FREE.0;
    asked.map_or(MEMORY, |asked| asked.0).min(of_free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::TensorType;

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
        faulty.prepare(&[EncoderKind { kind: TensorType::Q4_K, weighted: false }]);
    }
}
