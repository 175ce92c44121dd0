//! Filling memory with output bytes: any range of a merged tensor, any range of a shard.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use safetensors::Dtype;

use super::shard::{PlacedTensor, Shard};
use crate::adapter::TensorSource;
use crate::error::{Error, Result};
use crate::gpu::{Assist, Block, Resident, Source};
use crate::merge::{Float, Merge, Overflow, Vector};
use crate::stream::{BLOCK_LEN, Work};

/// A tensor with its changes, cast to the output's type. Its arithmetic is made when it is first asked for and dropped
/// after the last of its uses.
pub(crate) struct MergedTensor<'a> {
    name: &'a str,
    source: &'a TensorSource,
    dtype: Dtype,
    overflow: Overflow,
    vector: Vector,
    merge: Mutex<(usize, Option<Arc<Prepared<'a>>>)>,
}

/// A tensor's arithmetic, and what of it is on the GPUs.
pub(super) struct Prepared<'a> {
    pub(super) merge: Merge<'a>,
    pub(super) factors: Resident,
}

impl<'a> MergedTensor<'a> {
    /// The tensor `name` of `source` as `dtype`; [`Self::fill`] will be called about `uses` times.
    pub(super) fn new(
        (name, source, dtype): (&'a str, &'a TensorSource, Dtype),
        uses: usize,
        overflow: Overflow,
        vector: Vector,
    ) -> Self {
        Self { name, source, dtype, overflow, vector, merge: Mutex::new((uses, None)) }
    }

    /// A tensor in its place.
    pub(crate) fn placed(placed: &'a PlacedTensor, uses: usize, overflow: Overflow, vector: Vector) -> Self {
        Self::new((&placed.name, &placed.source, placed.dtype), uses, overflow, vector)
    }

    /// Bytes of the largest widened factor.
    pub(super) fn factor_bytes(source: &TensorSource) -> usize {
        let columns = source.matrix().1;
        let bytes = source.low_rank.iter().map(|term| term.rank.saturating_mul(columns).saturating_mul(4));
        bytes.max().unwrap_or(0)
    }

    /// Writes bytes `range` of the tensor to `out`; see [`Ready::fill`]. One of its uses.
    pub(crate) fn fill(&self, range: Range<usize>, out: &mut [u8], assist: &mut Assist<'_>) -> Result<()> {
        self.ready()?.fill_with(range, out, assist)
    }

    /// The tensor for one of its uses.
    pub(super) fn ready(&self) -> Result<Ready<'_, 'a>> {
        let is_copied = !self.source.is_changed() && self.source.source.dtype() == self.dtype;
        Ok(Ready { tensor: self, merge: if is_copied { None } else { Some(self.merge()?) } })
    }

    fn merge(&self) -> Result<Arc<Prepared<'a>>> {
        let mut slot = self.merge.lock().unwrap_or_else(PoisonError::into_inner);
        slot.0 = slot.0.saturating_sub(1);
        let merge = match &slot.1 {
            Some(merge) => Arc::clone(merge),
            None => Arc::new(self.prepare()?),
        };
        slot.1 = (slot.0 > 0).then(|| Arc::clone(&merge));
        Ok(merge)
    }

    fn prepare(&self) -> Result<Prepared<'a>> {
        let merge = self.source.merge(self.dtype, self.overflow, self.vector).ok_or_else(|| {
            Error::bug(
                format!("tensor {} of type {:?} can't be changed", self.name, self.source.source.dtype()),
                "report this: the plan should have refused it",
            )
        })?;
        Ok(Prepared { merge, factors: Resident::default() })
    }
}

/// A tensor whose arithmetic is at hand, for as many ranges as one use takes.
pub(super) struct Ready<'t, 'a> {
    tensor: &'t MergedTensor<'a>,
    /// Absent where the tensor is copied.
    merge: Option<Arc<Prepared<'a>>>,
}

impl<'a> Ready<'_, 'a> {
    /// The arithmetic; absent where the tensor is copied.
    pub(super) fn prepared(&self) -> Option<&Prepared<'a>> {
        self.merge.as_deref()
    }

    /// The stored bytes that output elements `elements` are made of, in the page tables.
    pub(super) fn stored(&self, elements: Range<usize>) -> &[u8] {
        let source = &self.tensor.source.source;
        let size = source.dtype().bitsize() / 8;
        source.prefetch(elements.start * size, elements.len() * size);
        &source.bytes()[elements.start * size..elements.end * size]
    }

    /// As [`Self::fill`], on a GPU as far as there is one.
    fn fill_with(&self, range: Range<usize>, out: &mut [u8], assist: &mut Assist<'_>) -> Result<()> {
        let mut done = 0;
        if let (Some(prepared), Some(capacity)) = (&self.merge, assist.capacity()) {
            let size = self.tensor.dtype.bitsize() / 8;
            let elements = range.start / size..range.end / size;
            let source = Source::Merged { merge: &prepared.merge, factors: &prepared.factors, heads: None };
            for start in elements.clone().step_by(capacity) {
                let elements = start..elements.end.min(start + capacity);
                let wanted = 0..elements.len() * size;
                self.stored(elements.clone());
                let block = Block { source, elements, encoding: None, wanted: wanted.clone() };
                if assist.run(&block, &mut out[done..done + wanted.end]).is_none() {
                    break;
                }
                done += wanted.end;
            }
        }
        if done == out.len() { Ok(()) } else { self.fill(range.start + done..range.end, &mut out[done..]) }
    }

    /// Writes bytes `range` of the tensor to `out`. The range begins and ends between elements.
    pub(super) fn fill(&self, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        let MergedTensor { name, dtype, .. } = *self.tensor;
        let source = &self.tensor.source.source;
        let Some(Prepared { merge, .. }) = self.prepared() else {
            source.prefetch(range.start, range.len());
            out.copy_from_slice(&source.bytes()[range]);
            return Ok(());
        };
        let element = dtype.bitsize() / 8;
        let elements = range.start / element..range.end / element;
        let stored = source.dtype().bitsize() / 8;
        source.prefetch(elements.start * stored, elements.len() * stored);
        merge.run(elements, out).map_err(|fault| {
            let (tensor, row, column) = (name.to_owned(), fault.row as u64, fault.column as u64);
            match Float::of(dtype) {
                Some(float) if fault.value.is_finite() => {
                    Error::Overflow { tensor, row, column, value: fault.value, dtype: float.name(), can_clamp: true }
                }
                _ => Error::NotFinite { tensor, row, column, value: fault.value },
            }
        })
    }
}

/// Where the parts of a file lie: a header, and tensors one after another, with zeros between them.
pub(crate) struct Parts<'a> {
    header: &'a [u8],
    /// First byte and length of each tensor, in the order of their bytes.
    places: Vec<(usize, usize)>,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(header: &'a [u8], places: impl Iterator<Item = (u64, u64)>) -> Self {
        Self { header, places: places.map(|(offset, len)| (offset as usize, len as usize)).collect() }
    }

    /// Segments that have some of tensor `i`.
    pub(crate) fn segments(&self, i: usize) -> usize {
        let (offset, len) = self.places[i];
        (offset + len) / BLOCK_LEN - offset / BLOCK_LEN + 1
    }

    /// Writes the file's bytes `range` to `out`; `fill` writes some bytes of a tensor.
    pub(crate) fn fill(
        &self,
        range: Range<usize>,
        out: &mut [u8],
        mut fill: impl FnMut(usize, Range<usize>, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        if at < self.header.len() {
            let part = &self.header[at..self.header.len().min(range.end)];
            out[..part.len()].copy_from_slice(part);
            at += part.len();
        }
        // The first tensor that ends in or after the range is where it begins.
        let first = self.places.partition_point(|(offset, len)| offset + len <= range.start);
        for (i, (offset, len)) in self.places.iter().enumerate().skip(first) {
            let (start, end) = (range.start.max(*offset), range.end.min(offset + len));
            if start >= range.end {
                break;
            }
            if start < end {
                out[at - range.start..start - range.start].fill(0);
                fill(i, start - offset..end - offset, &mut out[start - range.start..end - range.start])?;
                at = end;
            }
        }
        out[at - range.start..].fill(0);
        Ok(())
    }
}

/// One safetensors shard, ready to be written.
pub(super) struct ShardWork<'a> {
    shard: &'a Shard,
    parts: Parts<'a>,
    tensors: Vec<MergedTensor<'a>>,
}

impl<'a> ShardWork<'a> {
    pub(super) fn new(shard: &'a Shard, overflow: Overflow, vector: Vector) -> Self {
        let parts = Parts::new(&shard.header, shard.tensors.iter().map(|t| (t.offset, t.len)));
        let merged = |(i, t)| MergedTensor::placed(t, parts.segments(i), overflow, vector);
        let tensors = shard.tensors.iter().enumerate().map(merged).collect();
        Self { shard, parts, tensors }
    }
}

impl Work for ShardWork<'_> {
    fn name(&self) -> &str {
        &self.shard.name
    }

    fn len(&self) -> u64 {
        self.shard.len()
    }

    fn fill(&self, range: Range<usize>, out: &mut [u8], assist: &mut Assist<'_>) -> Result<()> {
        self.parts.fill(range, out, |i, part, out| self.tensors[i].fill(part, out, assist))
    }

    fn output(&self) -> usize {
        0
    }

    fn factor_bytes(&self) -> usize {
        self.shard.tensors.iter().map(|t| MergedTensor::factor_bytes(&t.source)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However a file is cut into ranges, it is its header and its tensors, with zeros between.
        #[test]
        fn ranges_make_the_file(
            header in proptest::collection::vec(any::<u8>(), 0..9),
            tensors in proptest::collection::vec((0usize..4, 0usize..7), 0..6),
            cuts in proptest::collection::vec(1usize..9, 1..9),
        ) {
            let (mut file, mut places) = (header.clone(), Vec::new());
            for (i, (gap, len)) in tensors.iter().enumerate() {
                file.resize(file.len() + gap, 0);
                places.push((file.len() as u64, *len as u64));
                file.extend((0..*len).map(|byte| (10 * i + byte) as u8 | 0x80));
            }
            let parts = Parts::new(&header, places.into_iter());
            let mut start = 0;
            for cut in cuts.iter().cycle().take(file.len() + 1) {
                let range = start..file.len().min(start + cut);
                let mut out = vec![0x55; range.len()];
                parts.fill(range.clone(), &mut out, |i, bytes, out| {
                    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = (10 * i + byte) as u8 | 0x80);
                    Ok(())
                }).unwrap();
                prop_assert_eq!(&out[..], &file[range.clone()]);
                start = range.end;
            }
        }
    }
}
