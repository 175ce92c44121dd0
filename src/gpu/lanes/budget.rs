//! How the memory that a GPU may use is divided: half for lanes, each with buffers for a block of some most elements,
//! and half for what stays on the GPU while a tensor is being made.

use super::card::MEMORY;
use crate::size::ByteSize;

/// Most elements of a block where there is memory for it, and the least that a lane is worth having for.
const CAPACITY: (usize, usize) = (4 << 20, 256 << 10);
/// Lanes that keep a GPU busy: one computes and one copies each way, while others are filled and emptied.
const LANES: usize = 6;
/// Lanes that are worth having smaller blocks for.
const FEW_LANES: usize = 3;
/// Room for the rest of whole rows beside a block's elements, in bytes.
const ROWS_BESIDE: usize = 2 << 20;
/// Regions begin at multiples of this many bytes; kernels read 16 at a time.
pub(super) const ALIGN: usize = 256;
/// Values whose errors are summed together by the first of two kernels.
pub(super) const PIECE: usize = 256;
/// Bytes of one set of sums: four f64, one f32 and as much again.
pub(super) const SUMS: usize = 40;
/// Where the sums begin in [`Regions::answer`]. Before them lies the fault word.
pub(super) const SUMS_START: usize = 64;

/// Part of a lane's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// Its first byte.
    pub(super) start: usize,
    /// Its length in bytes.
    pub(super) len: usize,
}

/// The parts of a lane's memory on the GPU, for blocks of up to so many elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Regions {
    /// Stored floats.
    pub(super) base: Region,
    /// f32 values.
    pub(super) values: Region,
    /// The bytes that the block is made for.
    pub(super) out: Region,
    /// DoRA's factors on rows.
    pub(super) gains: Region,
    /// Sums of pieces.
    pub(super) partial: Region,
    /// The fault word, and the sums of chunks.
    pub(super) answer: Region,
    /// Bytes of all.
    pub(super) len: usize,
}

impl Regions {
    pub(super) fn of(capacity: usize) -> Self {
        let mut len = 0;
        let mut next = |bytes: usize| {
            let region = Region { start: len, len: bytes.next_multiple_of(ALIGN) };
            len += region.len;
            region
        };
        let chunks = capacity / 4096 + 16;
        Self {
            base: next(4 * capacity + ROWS_BESIDE),
            values: next(4 * capacity),
            out: next(4 * capacity + ALIGN),
            gains: next(capacity / 4 + 16),
            partial: next((capacity / PIECE + chunks) * SUMS),
            answer: next(SUMS_START + chunks * SUMS),
            len,
        }
    }
}

/// What a GPU's memory is dealt out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Most elements of a block.
    pub(super) capacity: usize,
    /// How many lanes.
    pub(super) lanes: usize,
    /// Bytes for what stays on the GPU.
    pub(super) resident: usize,
}

impl Budget {
    /// What `bytes` make; `None` if it is less than [`Self::least`].
    pub(super) fn within(bytes: usize) -> Option<Self> {
        let half = bytes / 2;
        let lanes = |capacity| half / Regions::of(capacity).len;
        let (mut capacity, least) = CAPACITY;
        while capacity > least && lanes(capacity) < FEW_LANES {
            capacity /= 2;
        }
        let lanes = lanes(capacity).min(LANES);
        (lanes > 0).then(|| Self { capacity, lanes, resident: bytes - lanes * Regions::of(capacity).len })
    }

    /// The least bytes that a GPU is of use with.
    pub(super) fn least() -> usize {
        2 * Regions::of(CAPACITY.1).len
    }
}

/// What a GPU takes at most while it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CardNeeds {
    /// Bytes of its own memory.
    pub card_bytes: u64,
    /// Bytes of the machine's memory, pinned for its lanes.
    pub lane_bytes: u64,
}

impl CardNeeds {
    /// Where up to `memory` of the GPU is used; `None` if that is too little for it to be of use.
    pub fn of(memory: Option<ByteSize>) -> Option<Self> {
        let card_bytes = memory.map_or(MEMORY, |asked| asked.0);
        let Budget { capacity, lanes, .. } = Budget::within(card_bytes as usize)?;
        let Regions { base, answer, .. } = Regions::of(capacity);
        Some(Self { card_bytes, lane_bytes: (lanes * (base.len + answer.len)) as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_needs_what_its_lanes_pin() {
        let needs = CardNeeds::of(None).unwrap();
        assert_eq!(needs.card_bytes, 2 << 30);
        let inputs = (LANES * (4 * CAPACITY.0 + ROWS_BESIDE)) as u64;
        assert!(needs.lane_bytes > inputs && needs.lane_bytes < inputs + (1 << 20), "{needs:?}");
        assert!(CardNeeds::of(Some(ByteSize(64 << 20))).unwrap().lane_bytes < needs.lane_bytes);
        assert_eq!(CardNeeds::of(Some(ByteSize(1))), None);
    }

    #[test]
    fn regions_lie_one_after_another() {
        for capacity in [CAPACITY.0, CAPACITY.1] {
            let r = Regions::of(capacity);
            let mut end = 0;
            for region in [r.base, r.values, r.out, r.gains, r.partial, r.answer] {
                assert!(region.start == end && region.start.is_multiple_of(ALIGN), "{r:?}");
                end += region.len;
            }
            assert_eq!(end, r.len);
            assert!(r.base.len >= 4 * capacity && r.partial.len >= capacity / PIECE * SUMS);
        }
    }

    #[test]
    fn memory_is_dealt_out_within_bounds() {
        let least = Budget::least();
        assert_eq!(Budget::within(least - 2), None);
        assert_eq!(Budget::within(0), None);
        let mut capacity = 0;
        for bytes in [least, 2 * least, 64 << 20, 128 << 20, 300 << 20, 1 << 30, 2 << 30, 80 << 30] {
            let budget = Budget::within(bytes).unwrap();
            let lanes = budget.lanes * Regions::of(budget.capacity).len;
            assert!(lanes + budget.resident <= bytes && budget.resident >= bytes / 2, "{bytes}: {budget:?}");
            assert!(budget.capacity >= capacity && budget.capacity.is_power_of_two(), "{bytes}: {budget:?}");
            capacity = budget.capacity;
        }
        let whole = Budget::within(2 << 30).unwrap();
        assert_eq!((whole.capacity, whole.lanes), (CAPACITY.0, LANES));
        assert_eq!(Budget::within(least).unwrap().lanes, 1);
    }
}
