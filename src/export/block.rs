//! Filling memory with output bytes: any range of a tensor, any range of a shard, copied or computed.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::shard::{PlacedTensor, Shard};
use crate::error::{Error, Result};
use crate::merge::{Float, Merge, Overflow, Vector};

/// Bytes that are worked on at once: a segment of a shard. Several fit the last-level cache.
pub(super) const BLOCK_LEN: usize = 2 << 20;

/// The arithmetic of one output tensor, made when it is first asked for and dropped after the last of its uses.
pub(super) struct TensorWork<'a> {
    placed: &'a PlacedTensor,
    overflow: Overflow,
    vector: Vector,
    merge: Mutex<(usize, Option<Arc<Merge<'a>>>)>,
}

impl<'a> TensorWork<'a> {
    /// Work on a tensor that [`Self::fill`] will be called for about `uses` times.
    pub(super) fn new(placed: &'a PlacedTensor, uses: usize, overflow: Overflow, vector: Vector) -> Self {
        Self { placed, overflow, vector, merge: Mutex::new((uses, None)) }
    }

    /// Writes bytes `range` of the tensor to `out`. The range begins and ends between elements.
    pub(super) fn fill(&self, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        let source = &self.placed.source.source;
        if !self.placed.source.is_changed() && source.dtype() == self.placed.dtype {
            source.prefetch(range.start, range.len());
            out.copy_from_slice(&source.bytes()[range]);
            return Ok(());
        }
        let element = self.placed.dtype.bitsize() / 8;
        let elements = range.start / element..range.end / element;
        let stored = source.dtype().bitsize() / 8;
        source.prefetch(elements.start * stored, elements.len() * stored);
        self.merge()?.run(elements, out).map_err(|fault| {
            let (tensor, row, column) = (self.placed.name.clone(), fault.row as u64, fault.column as u64);
            match Float::of(self.placed.dtype) {
                Some(float) if fault.value.is_finite() => {
                    Error::Overflow { tensor, row, column, value: fault.value, dtype: float.name() }
                }
                _ => Error::NotFinite { tensor, row, column, value: fault.value },
            }
        })
    }

    fn merge(&self) -> Result<Arc<Merge<'a>>> {
        let mut slot = self.merge.lock().unwrap_or_else(PoisonError::into_inner);
        slot.0 = slot.0.saturating_sub(1);
        let merge = match &slot.1 {
            Some(merge) => Arc::clone(merge),
            None => Arc::new(self.prepare()?),
        };
        slot.1 = (slot.0 > 0).then(|| Arc::clone(&merge));
        Ok(merge)
    }

    fn prepare(&self) -> Result<Merge<'a>> {
        let source = &self.placed.source;
        source.merge(self.placed.dtype, self.overflow, self.vector).ok_or_else(|| {
            Error::refused(
                format!("tensor {} of type {:?} can't be changed", self.placed.name, source.source.dtype()),
                "report this: the plan should have refused it",
            )
        })
    }
}

/// One shard as a run of bytes, cut into segments of [`BLOCK_LEN`].
pub(super) struct ShardWork<'a> {
    shard: &'a Shard,
    tensors: Vec<TensorWork<'a>>,
}

impl<'a> ShardWork<'a> {
    pub(super) fn new(shard: &'a Shard, overflow: Overflow, vector: Vector) -> Self {
        let segments = |t: &PlacedTensor| (t.offset + t.len) as usize / BLOCK_LEN - t.offset as usize / BLOCK_LEN + 1;
        let tensors = shard.tensors.iter().map(|t| TensorWork::new(t, segments(t), overflow, vector)).collect();
        Self { shard, tensors }
    }

    /// Number of segments: at least one, since a shard has a header.
    pub(super) fn segments(&self) -> usize {
        (self.shard.len() as usize).div_ceil(BLOCK_LEN)
    }

    /// The bytes of a segment, as a range of the file.
    pub(super) fn range(&self, segment: usize) -> Range<usize> {
        let start = segment * BLOCK_LEN;
        start..(self.shard.len() as usize).min(start + BLOCK_LEN)
    }

    /// Writes a segment's bytes to `out`, which is as long as its range.
    pub(super) fn fill(&self, segment: usize, out: &mut [u8]) -> Result<()> {
        let range = self.range(segment);
        let header = &self.shard.header;
        if range.start < header.len() {
            let part = &header[range.start..header.len().min(range.end)];
            out[..part.len()].copy_from_slice(part);
        }
        // Tensors lie one after another; the first that ends in or after the segment is where it begins.
        let first = self.shard.tensors.partition_point(|t| (t.offset + t.len) as usize <= range.start);
        for (placed, work) in self.shard.tensors[first..].iter().zip(&self.tensors[first..]) {
            let offset = placed.offset as usize;
            if offset >= range.end {
                break;
            }
            let (start, end) = (range.start.max(offset), range.end.min(offset + placed.len as usize));
            if start < end {
                work.fill(start - offset..end - offset, &mut out[start - range.start..end - range.start])?;
            }
        }
        Ok(())
    }
}
