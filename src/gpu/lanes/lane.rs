//! A lane: one stream of a GPU, with memory of its own there and pinned memory here, that makes block after block:
//! base bytes up, merge or widen, encode, measure, bytes down. One of the rooms with `unsafe`.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use super::block::{Block, Encoding, Lane, Measured, Source, Stages, Trouble};
use super::budget::{PIECE, Region, Regions, SUMS, SUMS_START};
use super::card::CudaCard;
use super::kernels::{FOLD_SUMS, HASH, Kernels, MERGE, ROW_GAINS, WIDEN};
use super::stage::{GROUP, Staged, stage};
use super::upload::{Factors, Weights};
use crate::digest;
use crate::ggml::ErrorSums;
use crate::gpu::runtime::{DeviceMemory, Event, Failure, HostMemory, Kernel, Stream};
use crate::merge::{Float, Merge};

/// What kernels take for "none of the float types".
const NO_FLOAT: u64 = 3;

/// What a block's work on the GPU uses and must not lose before it is done.
type Held = Vec<Arc<dyn Any + Send + Sync>>;

/// See the module.
pub(super) struct CudaLane<'c> {
    card: &'c CudaCard,
    stream: Stream,
    memory: DeviceMemory,
    regions: Regions,
    /// Base bytes, on their way up.
    input: HostMemory,
    /// The fault word and the sums, come down.
    answer: HostMemory,
    /// Before the upload, the kernels and the download, and after it.
    events: [Event; 4],
    stages: Stages,
}

impl<'c> CudaLane<'c> {
    /// A lane of `card`.
    pub(super) fn open(card: &'c CudaCard) -> Result<Self, Trouble> {
        let (gpu, regions) = (&card.gpu, Regions::of(card.budget.capacity));
        let memory = gpu.allocate(regions.len)?;
        let stream = gpu.stream()?;
        let events = [gpu.event()?, gpu.event()?, gpu.event()?, gpu.event()?];
        let pinned = |len| {
            let mut memory = HostMemory::new(len);
            memory.pin(gpu);
            memory
        };
        let (input, answer) = (pinned(regions.base.len), pinned(regions.answer.len));
        Ok(Self { card, stream, memory, regions, input, answer, events, stages: Stages::default() })
    }

    fn address(&self, region: Region) -> u64 {
        self.memory.address() + region.start as u64
    }

    fn fault(&self) -> u64 {
        self.address(self.regions.answer)
    }

    /// Enqueues `kernel` for `work`, as `Functions::launch` takes it.
    ///
    /// # Safety
    /// As there.
    unsafe fn launch(&self, kernel: Kernel, work: usize, arguments: &[u64]) -> Result<(), Trouble> {
        // SAFETY: the caller guarantees the arguments; `run` has bound the GPU's context and waits for the stream.
        Ok(unsafe { self.card.gpu.functions().launch(&self.stream, &kernel, work as u64, arguments) }?)
    }

    fn mark(&self, event: usize) -> Result<(), Failure> {
        self.events[event].record(&self.stream)
    }

    /// Enqueues all that makes `block`, and gives the lengths of the chunks that are measured. The work uses `held`.
    fn enqueue(&mut self, block: &Block<'_>, out: &mut [u8], held: &mut Held) -> Result<Vec<usize>, Trouble> {
        let count = block.elements.len();
        let made = match block.source {
            Source::Stored { bytes, float } => self.widened(bytes, float, count)?,
            Source::Merged { merge, factors, heads } => {
                let factors = Factors::of(merge, factors, self.card)?;
                held.push(Arc::clone(&factors) as Arc<dyn Any + Send + Sync>);
                self.merged(merge, &factors, heads, block)?
            }
        };
        let mut chunks = Vec::new();
        if let Some(encoding) = &block.encoding {
            self.encoded(encoding, block, held)?;
            if let Some(measured) = encoding.measured {
                chunks = self.measured(encoding, measured, count)?;
            }
        }
        self.mark(2)?;
        let sums = SUMS_START + chunks.len() * SUMS;
        let wanted = made + block.wanted.start as u64;
        // SAFETY: `made` begins as many bytes as the block has, of which these are some; both copies are waited for
        // before `out` and `answer` are used again.
        unsafe {
            self.stream.download(out, wanted)?;
            let (from, to) = (self.fault(), &mut self.answer.bytes_mut()[..sums]);
            self.stream.download(to, from)?;
        }
        self.mark(3)?;
        Ok(chunks)
    }

    /// Uploads `len` bytes of `input`, and begins the kernels' part.
    fn upload(&mut self, len: usize) -> Result<(), Trouble> {
        let base = self.address(self.regions.base);
        self.mark(0)?;
        // SAFETY: callers have checked that the region holds `len` bytes; `input` stays as it is until `run` has waited.
        unsafe { self.stream.upload(base, &self.input.bytes()[..len]) }?;
        self.mark(1)?;
        // SAFETY: the region holds as much.
        unsafe { self.stream.clear(self.fault(), SUMS_START) }?;
        Ok(())
    }

    /// Enqueues the widening of stored floats. Returns where encoded bytes will be.
    fn widened(&mut self, bytes: &[u8], float: Float, count: usize) -> Result<u64, Trouble> {
        let len = count * float.size();
        let start = Instant::now();
        let bytes = bytes.get(..len).filter(|_| len <= self.regions.base.len).ok_or(Trouble::Unsupported)?;
        self.input.bytes_mut()[..len].copy_from_slice(bytes);
        self.stages.read += start.elapsed().as_secs_f64();
        self.upload(len)?;
        let [base, values] = [self.regions.base, self.regions.values].map(|region| self.address(region));
        // SAFETY: (stored, float, count, values, fault); `base` holds `len` bytes and `values` the GPU's capacity.
        unsafe { self.launch(WIDEN, count, &[base, float as u64, count as u64, values, self.fault()]) }?;
        Ok(self.address(self.regions.out))
    }

    /// Enqueues the merge: to f32 values that are encoded next, or to bytes. Returns where the bytes are or will be.
    fn merged(
        &mut self,
        merge: &Merge<'_>,
        factors: &Factors,
        heads: Option<usize>,
        block: &Block<'_>,
    ) -> Result<u64, Trouble> {
        let parts = merge.parts();
        let (columns, elements) = (parts.columns, &block.elements);
        let start = Instant::now();
        let staged = Staged::of(&parts, elements);
        let (rows, len) = (staged.rows(columns), staged.len(parts.base_float.size()));
        let has_norms = factors.magnitude != 0;
        if columns == 0
            || elements.end > parts.rows * columns
            || len > self.regions.base.len
            || (has_norms && rows.len() * 4 > self.regions.gains.len)
        {
            return Err(Trouble::Unsupported);
        }
        stage(&parts, heads, &staged, &mut self.input.bytes_mut()[..len])?;
        self.stages.read += start.elapsed().as_secs_f64();
        self.upload(len)?;
        let gains = if has_norms { self.address(self.regions.gains) } else { 0 };
        let heads = heads.map_or(0, |heads| heads.max(1) as u64);
        let rounded_first = parts.rounded_first.map_or(NO_FLOAT, |float| float as u64);
        // What both kernels begin with, and what they have after the rows or elements to make.
        let base = [self.address(self.regions.base), parts.base_float as u64, staged.first as u64];
        let (terms, term_count) = (factors.terms, factors.term_count as u64);
        let change = [columns as u64, terms, term_count, parts.rows as u64, heads, rounded_first];
        let first_row = rows.start as u64;
        if has_norms {
            let arguments = [&base[..], &[first_row, rows.len() as u64], &change, &[factors.magnitude, gains]].concat();
            // SAFETY: as row_gains of merge.cu takes them: whole rows are staged, there is a magnitude for each row of
            // the tensor, and `gains` has memory for one a row of the block.
            unsafe { self.launch(ROW_GAINS, rows.len(), &arguments) }?;
        }
        let (out, out_float) = (self.address(self.regions.out), merge.output());
        // Without an encoding, bytes lie in groups as the elements do, so that the kernel's stores are aligned.
        let (values, bytes) = match block.encoding {
            Some(_) => (self.address(self.regions.values), 0),
            None => (0, out + (elements.start % GROUP * out_float.size()) as u64),
        };
        let gains = [gains, first_row, factors.column_gains];
        let made = [out_float as u64, values, bytes, self.fault()];
        let arguments = [&base[..], &[elements.start as u64, elements.len() as u64], &change, &gains, &made].concat();
        // SAFETY: as merge of merge.cu takes them: the elements' base is staged from `base_first` on, terms and gains
        // cover what they say, and `values` and `out` have memory for the GPU's capacity.
        unsafe { self.launch(MERGE, elements.len(), &arguments) }?;
        Ok(if bytes == 0 { out } else { bytes })
    }

    /// Enqueues the encoding of the values.
    fn encoded(&self, encoding: &Encoding<'_>, block: &Block<'_>, held: &mut Held) -> Result<(), Trouble> {
        let (kind, columns, count) = (encoding.kind, encoding.columns, block.elements.len());
        let kernels = Kernels::of(kind).ok_or(Trouble::Unsupported)?;
        let importance = encoding.importance.filter(|_| kernels.weighted.is_some());
        let [values, out] = [self.regions.values, self.regions.out].map(|region| self.address(region));
        if !count.is_multiple_of(kind.block_len()) || bytes_of(encoding, count) > self.regions.out.len {
            return Err(Trouble::Unsupported);
        }
        let mut arguments = vec![values, count as u64, out, self.fault()];
        if let Some(importance) = &importance {
            let (first, len) = (block.elements.start, importance.weights.len());
            let whole = |n: usize| n.is_multiple_of(columns.max(1));
            let none = columns == 0 || len == 0 || importance.rows_per_matrix == 0;
            if none || ![first, count, len].into_iter().all(whole) {
                return Err(Trouble::Unsupported);
            }
            let weights = Weights::of(importance, self.card)?;
            let numbers = [columns, importance.rows_per_matrix, len, first].map(|n| n as u64);
            arguments.push(weights.address());
            arguments.extend(numbers);
            held.push(weights);
        }
        // SAFETY: as kernels/common.cuh says of encoders: `values` has `count` values, whole blocks; `out`
        // has memory for them; with importance, whole rows, and weights for every column of whole matrices.
        unsafe { self.launch(kernels.encoder(importance.is_some()), count, &arguments) }
    }

    /// Enqueues the sums of errors. Returns the lengths of the chunks.
    fn measured(&self, encoding: &Encoding<'_>, measured: Measured, count: usize) -> Result<Vec<usize>, Trouble> {
        let Measured { skipped, first, chunk } = measured;
        let left = count.saturating_sub(skipped);
        let chunks = chunks(left, first, chunk);
        if chunks.is_empty() {
            return Ok(chunks);
        }
        let kernel = Kernels::of(encoding.kind).and_then(|kernels| kernels.measure).ok_or(Trouble::Unsupported)?;
        let pieces: usize = chunks.iter().map(|len| len.div_ceil(PIECE)).sum();
        let Regions { partial, answer, .. } = self.regions;
        if !skipped.is_multiple_of(encoding.kind.block_len())
            || pieces * SUMS > partial.len
            || SUMS_START + chunks.len() * SUMS > answer.len
        {
            return Err(Trouble::Unsupported);
        }
        let values = self.address(self.regions.values) + 4 * skipped as u64;
        let blocks = self.address(self.regions.out) + bytes_of(encoding, skipped) as u64;
        // The kernels have no empty first chunk, and no chunks of nothing.
        let (first, chunk) = (chunks[0] as u64, chunks.get(1).map_or(chunks[0], |_| chunk) as u64);
        let (left, partial) = (left as u64, self.address(partial));
        // SAFETY: as measure.cu takes them: the values and blocks after the skipped ones, and memory for each piece's
        // sums.
        unsafe { self.launch(kernel, pieces, &[values, left, blocks, first, chunk, partial]) }?;
        let sums = self.fault() + SUMS_START as u64;
        // SAFETY: likewise, and memory for each chunk's sums.
        unsafe { self.launch(FOLD_SUMS, chunks.len(), &[partial, left, first, chunk, sums]) }?;
        Ok(chunks)
    }

    /// Enqueues the hashing of `len` bytes of `input`, which are pieces from `first` on. The first `made` bytes of `answer`
    /// will be their values: a copy to memory that is not pinned would wait for all that is enqueued.
    fn enqueue_hash(&mut self, len: usize, first: usize, made: usize) -> Result<(), Trouble> {
        const CHUNKS: usize = digest::PIECE / 1024;
        self.upload(len)?;
        let [base, out] = [self.regions.base, self.regions.out].map(|region| self.address(region));
        let arguments = [base, len as u64, (first * CHUNKS) as u64, CHUNKS as u64, out];
        // SAFETY: (bytes, len, first_chunk, piece_chunks, out) as blake3.cu takes them; `out` has memory for 32 bytes a
        // piece.
        unsafe { self.launch(HASH, len, &arguments) }?;
        self.mark(2)?;
        // SAFETY: `out` holds as many bytes, and `hash` waits for the copy.
        unsafe { self.stream.download(&mut self.answer.bytes_mut()[..made], out) }?;
        Ok(self.mark(3)?)
    }

    /// Adds up how long the GPU took for the block that was waited for.
    fn time(&mut self) -> Result<(), Failure> {
        let seconds = |from: usize| self.events[from].seconds_until(&self.events[from + 1]);
        let (upload, kernel, download) = (seconds(0)?, seconds(1)?, seconds(2)?);
        self.stages.upload += upload;
        self.stages.kernel += kernel;
        self.stages.download += download;
        Ok(())
    }
}

impl Lane for CudaLane<'_> {
    fn capacity(&self) -> usize {
        self.card.budget.capacity
    }

    fn run(&mut self, block: &Block<'_>, out: &mut [u8]) -> Result<Vec<ErrorSums>, Trouble> {
        let count = block.elements.len();
        let bytes = match (&block.encoding, block.source) {
            (Some(encoding), _) => bytes_of(encoding, count),
            (None, Source::Merged { merge, .. }) => count * merge.output().size(),
            (None, Source::Stored { float, .. }) => count * float.size(),
        };
        // What is copied to `out` is exactly as long as it, whatever the caller says.
        if out.len() != block.wanted.len() || block.wanted.end > bytes || count > self.capacity() {
            return Err(Trouble::Unsupported);
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        if let (None, Source::Stored { bytes, .. }) = (&block.encoding, block.source) {
            out.copy_from_slice(bytes.get(block.wanted.clone()).ok_or(Trouble::Unsupported)?);
            return Ok(Vec::new());
        }
        self.card.gpu.bind()?;
        let mut held = Held::new();
        let enqueued = self.enqueue(block, out, &mut held);
        // Whatever was enqueued uses `out` and `held`, so it is waited for even if something failed.
        let waited = self.stream.wait();
        drop(held);
        let chunks = enqueued?;
        waited?;
        self.time()?;
        let answer = self.answer.bytes();
        if answer[..4] != [0; 4] {
            return Err(Trouble::Value);
        }
        let sums = answer[SUMS_START..].chunks_exact(SUMS).zip(&chunks);
        Ok(sums.map(|(bytes, len)| sums_of(bytes, *len)).collect())
    }

    fn hash(&mut self, bytes: &[u8], first: usize, values: &mut [u8]) -> Result<(), Trouble> {
        let room = self.regions.out.len.min(self.regions.answer.len);
        if bytes.is_empty() || bytes.len() > self.regions.base.len || values.len() > room {
            return Err(Trouble::Unsupported);
        }
        if values.len() != bytes.len().div_ceil(digest::PIECE) * 32 {
            return Err(Trouble::Unsupported);
        }
        self.card.gpu.bind()?;
        let start = Instant::now();
        self.input.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        self.stages.read += start.elapsed().as_secs_f64();
        let enqueued = self.enqueue_hash(bytes.len(), first, values.len());
        // As in `run`.
        let waited = self.stream.wait();
        enqueued?;
        waited?;
        values.copy_from_slice(&self.answer.bytes()[..values.len()]);
        Ok(self.time()?)
    }

    fn stages(&self) -> Stages {
        self.stages
    }
}

/// Bytes that `count` values, whole blocks, are encoded as.
fn bytes_of(encoding: &Encoding<'_>, count: usize) -> usize {
    count / encoding.kind.block_len() * encoding.kind.block_bytes()
}

/// The lengths of the chunks of `count` values: the first has `first`, unless that is 0, and every other `chunk`.
fn chunks(count: usize, first: usize, chunk: usize) -> Vec<usize> {
    let first = first.min(count);
    let (rest, chunk) = (count - first, chunk.max(1));
    let starts = (0..rest).step_by(chunk);
    (first > 0).then_some(first).into_iter().chain(starts.map(|at| chunk.min(rest - at))).collect()
}

/// The sums in `bytes`, as measure.cu writes them.
fn sums_of(bytes: &[u8], len: usize) -> ErrorSums {
    let mut sums = [0.0; 4];
    for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *sum = f64::from_le_bytes(*bytes);
    }
    let largest = bytes[32..].first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
    ErrorSums::from_parts(len as u64, sums, largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_values() {
        assert_eq!(chunks(10, 3, 4), [3, 4, 3]);
        assert_eq!(chunks(10, 0, 4), [4, 4, 2]);
        assert_eq!(chunks(10, 12, 4), [10]);
        assert_eq!(chunks(8, 8, 4), [8]);
        assert!(chunks(0, 3, 4).is_empty());
        assert_eq!(chunks(3, 0, 0), [1, 1, 1]);
    }

    #[test]
    fn sums_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        [1.5f64, 2.5, -3.5, 4.5].iter().for_each(|sum| bytes.extend(sum.to_le_bytes()));
        bytes.extend(0.25f32.to_le_bytes());
        bytes.extend([0; 4]);
        assert_eq!(bytes.len(), SUMS);
        assert_eq!(sums_of(&bytes, 7), ErrorSums::from_parts(7, [1.5, 2.5, -3.5, 4.5], 0.25));
    }
}
