//! What is to be done next: which segment to fill, which digest to feed. All of it is decided under one lock, here; the
//! work itself is in `workers`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::sink::Buffer;
use super::workers::{CardUse, Job, Timings};
use super::{BLOCK_LEN, Work, in_flight};
use crate::digest::{Hasher, Hex};
use crate::error::Error;

/// Bytes of an input that one step digests.
const INPUT_STEP: usize = 4 << 20;
/// How far the digests of inputs may lag behind the segments made from them, so that their pages are read once.
const MAX_LAG: u64 = 64 << 20;
/// Segments in flight beyond those of the workers for each lane of a card: one being made, one waiting.
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

/// One digest that is fed in order. The hasher is away while a worker feeds it.
pub(super) struct Chain {
    /// How much of it is fed: segments of a file, bytes of an input.
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
    pub(super) inputs: Vec<Chain>,
    /// Inputs before this one are digested.
    first_input: usize,
    to_write: VecDeque<Segment>,
    in_flight: usize,
    spare: Vec<Buffer>,
    filled_bytes: u64,
    pub(super) input_bytes: u64,
    /// Lanes of cards at work: while there are any, they fill the segments.
    pub(super) lanes: usize,
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
    Input { input: usize, range: Range<usize>, hasher: Hasher },
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
            inputs: job.inputs.iter().map(|input| Chain::new((input.hasher)())).collect(),
            first_input: 0,
            to_write: VecDeque::new(),
            in_flight: 0,
            spare: Vec::new(),
            filled_bytes: 0,
            input_bytes: 0,
            lanes: 0,
            error: None,
            timings: Timings::default(),
            cards: CardUse::default(),
            outputs,
        }
    }

    pub(super) fn describe(&self) -> String {
        format!("in flight {} towrite {} pending {} chains out {} filled {:.2} inputs {:.2} done {}", self.in_flight, self.to_write.len(), self.files.iter().map(|f| f.filled.len()).sum::<usize>(), self.files.iter().filter(|f| f.chain.hasher.is_none() && f.chain.digest.is_none()).count(), self.filled_bytes as f64/1e9, self.input_bytes as f64/1e9, self.files.iter().filter(|f| f.finished).count())
    }

    pub(super) fn is_done(&self) -> bool {
        self.files.iter().all(|s| s.finished) && self.inputs.iter().all(|chain| chain.digest.is_some())
    }

    /// The next task of a worker, in the order of what holds others up: digests of outputs, since each is one chain of
    /// its whole file; digests of inputs that lag; segments, unless lanes fill them; digests of inputs.
    pub(super) fn next_task(&mut self, job: &Job<'_>) -> Option<Task> {
        if let Some(task) = self.next_digest(job) {
            return Some(task);
        }
        if self.filled_bytes > self.input_bytes + MAX_LAG
            && let Some(task) = self.next_input(job)
        {
            return Some(task);
        }
        let segment = if self.lanes == 0 { self.next_segment(job) } else { None };
        segment.map(Task::Fill).or_else(|| self.next_input(job))
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

    fn next_input(&mut self, job: &Job<'_>) -> Option<Task> {
        while self.inputs.get(self.first_input).is_some_and(|chain| chain.digest.is_some()) {
            self.first_input += 1;
        }
        let first = self.first_input;
        let (input, chain) = self.inputs.iter_mut().enumerate().skip(first).find(|(_, c)| c.hasher.is_some())?;
        let range = chain.at..job.inputs[input].bytes.len().min(chain.at + INPUT_STEP);
        let hasher = chain.hasher.take()?;
        Some(Task::Input { input, range, hasher })
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
