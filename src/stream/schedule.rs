//! What is to be done next: which segment to fill, which digest to feed. All of it is decided under one lock, here; the
//! work itself is in `workers`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::inputs::{InputDigest, Inputs, Step};
use super::job::{CardUse, Job, Timings};
use super::sink::Buffer;
use super::{BLOCK_LEN, Work, in_flight};
use crate::digest::{Hasher, Hex};
use crate::error::Error;

/// How far the digests of inputs may lag behind the segments that are filled, so that pages are read about once.
const MAX_LAG: u64 = 64 << 20;
/// So many segments in a row a lane, and the workers fill beside the lanes, until a GPU helps again.
const MISSED: usize = 2;
/// Segments in flight beyond those of the workers for each lane of a GPU: one being made, one waiting.
const IN_FLIGHT_PER_LANE: usize = 2;

/// Number of segments: at least one, so that an empty file is written too.
pub(super) fn segments(work: &dyn Work) -> usize {
    (work.len() as usize).div_ceil(BLOCK_LEN).max(1)
}

/// The bytes of a segment, as a range of the file.
pub(super) fn range(work: &dyn Work, segment: usize) -> Range<usize> {
    let start = segment * BLOCK_LEN;
    start..(work.len() as usize).min(start + BLOCK_LEN)
}

/// A file's digest, which is fed in order. The hasher is away while a worker feeds it.
pub(super) struct Chain {
    /// Segments that it was fed.
    pub(super) at: usize,
    pub(super) hasher: Option<Hasher>,
    pub(super) digest: Option<Hex>,
}

impl Chain {
    fn new(hasher: Hasher) -> Self {
        Self { at: 0, hasher: Some(hasher), digest: None }
    }
}

/// A file in the making.
pub(super) struct FileState {
    /// The next segment to fill.
    next: usize,
    /// Segments filled and not yet digested.
    filled: BTreeMap<usize, Arc<Buffer>>,
    pub(super) chain: Chain,
    /// Threads that are writing to it.
    pub(super) writers: usize,
    /// Segments written.
    pub(super) written: usize,
    pub(super) finished: bool,
}

/// Everything that the threads share.
pub(super) struct State {
    pub(super) files: Vec<FileState>,
    pub(super) inputs: Inputs,
    to_write: VecDeque<Segment>,
    in_flight: usize,
    spare: Vec<Buffer>,
    filled_bytes: u64,
    /// Lanes of GPUs at work: while there are any, they fill the segments and hash the inputs that are trees.
    pub(super) lanes: usize,
    /// Whether the workers leave that to lanes which are still to come.
    pub(super) lanes_awaited: bool,
    /// Segments in a row that lanes filled without their GPUs: copied, or not for a GPU.
    missed: usize,
    pub(super) error: Option<Error>,
    pub(super) timings: Timings,
    pub(super) cards: CardUse,
    /// Segments of each output, and the most of its files that are in the making at once.
    outputs: BTreeMap<usize, (usize, usize)>,
}

/// A filled segment.
pub(super) struct Segment {
    pub(super) file: usize,
    pub(super) number: usize,
    pub(super) buffer: Arc<Buffer>,
}

/// A segment to fill.
pub(super) struct Unfilled {
    pub(super) file: usize,
    pub(super) number: usize,
    /// Memory to reuse.
    pub(super) buffer: Option<Buffer>,
}

/// What a worker does next.
pub(super) enum Task {
    Fill(Unfilled),
    Digest { file: usize, filled: Vec<Arc<Buffer>>, hasher: Hasher },
    Input(Step),
}

/// What a lane does next.
pub(super) enum LaneTask {
    Fill(Unfilled),
    Input(Step),
}

impl State {
    pub(super) fn new(job: &Job<'_>, outputs: BTreeMap<usize, (usize, usize)>) -> Self {
        let file = |_: &(usize, &dyn Work)| FileState {
            next: 0,
            filled: BTreeMap::new(),
            chain: Chain::new(Hasher::sha256()),
            writers: 0,
            written: 0,
            finished: false,
        };
        Self {
            files: job.works.iter().map(file).collect(),
            inputs: Inputs::new(job.inputs),
            to_write: VecDeque::new(),
            in_flight: 0,
            spare: Vec::new(),
            filled_bytes: 0,
            lanes: 0,
            lanes_awaited: job.cards.work_alone(),
            missed: 0,
            error: None,
            timings: Timings::default(),
            cards: CardUse::default(),
            outputs,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.inputs.is_done() && self.files.iter().all(|s| s.finished)
    }

    /// The next task of a worker, in the order of what holds others up: digests of outputs, since each is one chain of
    /// its whole file; digests of inputs that lag; and what lanes do where there are some: segments, and the digests of
    /// all other inputs.
    pub(super) fn next_task(&mut self, job: &Job<'_>) -> Option<Task> {
        if let Some(task) = self.next_digest(job) {
            return Some(task);
        }
        if self.filled_bytes > self.inputs.digested() + MAX_LAG
            && let Some(step) = self.inputs.next(None)
        {
            return Some(Task::Input(step));
        }
        let lanes_fill = self.lanes_awaited || (self.lanes > 0 && self.missed < MISSED * self.lanes);
        if lanes_fill && self.is_unfilled(job) {
            return self.inputs.next(Some(InputDigest::Sha256)).map(Task::Input);
        }
        self.next_segment(job).map(Task::Fill).or_else(|| self.inputs.next(None).map(Task::Input))
    }

    /// Whether there are segments left to fill.
    fn is_unfilled(&self, job: &Job<'_>) -> bool {
        self.files.iter().zip(&job.works).any(|(file, (_, work))| file.next < segments(*work))
    }

    /// A lane filled a segment, with the help of its GPU or without.
    pub(super) fn lane_filled(&mut self, helped: bool) {
        self.missed = if helped { 0 } else { self.missed + 1 };
    }

    /// The next task of a lane: a segment, or pieces of an input while enough segments are in flight.
    pub(super) fn next_lane_task(&mut self, job: &Job<'_>) -> Option<LaneTask> {
        let segment = self.next_segment(job).map(LaneTask::Fill);
        segment.or_else(|| self.inputs.next(Some(InputDigest::Blake3)).map(LaneTask::Input))
    }

    fn next_digest(&mut self, job: &Job<'_>) -> Option<Task> {
        let ready = |s: &FileState| s.chain.hasher.is_some() && s.filled.contains_key(&s.chain.at);
        let left = |i: usize, s: &FileState| segments(job.works[i].1) - s.chain.at;
        let candidates = self.files.iter().enumerate().filter(|(_, s)| ready(s));
        let (file, _) = candidates.max_by_key(|(i, s)| (left(*i, s), usize::MAX - i))?;
        let s = &mut self.files[file];
        let mut filled = Vec::new();
        while let Some(buffer) = s.filled.remove(&(s.chain.at + filled.len())) {
            filled.push(buffer);
        }
        let hasher = s.chain.hasher.take()?;
        Some(Task::Digest { file, filled, hasher })
    }

    /// A segment of the output that has advanced least, and there of the file that is furthest from its end, among the
    /// unfinished ones that may be open at once: files finish one after another, and their digests, one chain each, run
    /// side by side.
    pub(super) fn next_segment(&mut self, job: &Job<'_>) -> Option<Unfilled> {
        if self.in_flight >= in_flight(job.jobs) + IN_FLIGHT_PER_LANE * self.lanes {
            return None;
        }
        let output = |file: usize| job.works[file].1.output();
        let left = |file: usize, s: &FileState| segments(job.works[file].1) - s.next;
        let mut unfilled: BTreeMap<usize, usize> = BTreeMap::new();
        for (i, s) in self.files.iter().enumerate() {
            *unfilled.entry(output(i)).or_default() += left(i, s);
        }
        // Of two outputs, the one with the larger part left.
        let part = |(output, left): &(usize, usize)| *left as f64 / self.outputs[output].0 as f64;
        let mut outputs: Vec<(usize, usize)> = unfilled.into_iter().filter(|(_, left)| *left > 0).collect();
        outputs.sort_by(|a, b| part(b).total_cmp(&part(a)));
        let file = outputs.into_iter().find_map(|(behind, _)| {
            let own = self.files.iter().enumerate().filter(|(i, s)| output(*i) == behind && !s.finished);
            let open = own.take(self.outputs[&behind].1).filter(|(i, s)| left(*i, s) > 0);
            open.max_by_key(|(i, s)| (left(*i, s), usize::MAX - i)).map(|(i, _)| i)
        })?;
        let number = self.files[file].next;
        self.files[file].next += 1;
        self.in_flight += 1;
        Some(Unfilled { file, number, buffer: self.spare.pop() })
    }

    /// A segment was filled: it is to be written and digested.
    pub(super) fn filled(&mut self, file: usize, number: usize, buffer: Buffer) {
        let buffer = Arc::new(buffer);
        self.filled_bytes += buffer.bytes().len() as u64;
        self.to_write.push_back(Segment { file, number, buffer: Arc::clone(&buffer) });
        self.files[file].filled.insert(number, buffer);
    }

    /// A segment to write, the oldest of those whose file has the fewest writers: filesystems let one write at a time, or
    /// few, to a file.
    pub(super) fn next_write(&mut self) -> Option<Segment> {
        let writers = |segment: &Segment| self.files[segment.file].writers;
        let (at, _) = self.to_write.iter().enumerate().min_by_key(|(at, segment)| (writers(segment), *at))?;
        let segment = self.to_write.remove(at)?;
        self.files[segment.file].writers += 1;
        Some(segment)
    }

    /// Takes a buffer back from the second of its two readers; whether this was the second.
    pub(super) fn release(&mut self, buffer: Arc<Buffer>) -> bool {
        let Some(buffer) = Arc::into_inner(buffer) else { return false };
        self.spare.push(buffer);
        self.in_flight -= 1;
        true
    }
}
