//! The workers. Segments are filled in any order and written by writers of their own, while each digest is fed in the
//! order of its bytes. Memory is bounded by the segments in flight; the bytes don't depend on the number of workers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::block::{BLOCK_LEN, ShardWork};
use super::shard::{PlacedTensor, Shard};
use super::sink::{Buffer, Sink};
use crate::digest::{Hasher, Hex};
use crate::error::{Error, Result};
use crate::merge::{Overflow, Vector};
use crate::progress::Progress;

/// Most segments in flight, whatever the number of workers: bounds their memory at 192 MiB.
pub(super) const MAX_IN_FLIGHT: usize = 96;
/// Most bytes of widened factors that open shards may hold.
const MAX_FACTORS: usize = 128 << 20;
/// Threads that do nothing but write: they wait for the disk, so that the workers need not.
const WRITERS: usize = 4;
/// Bytes of an input that one step digests.
const INPUT_STEP: usize = 4 << 20;
/// How far the digests of inputs may lag behind the segments made from them, so that their pages are read once.
const MAX_LAG: u64 = 64 << 20;

/// Segments in flight with that many workers.
pub(super) fn in_flight(jobs: usize) -> usize {
    MAX_IN_FLIGHT.min(2 * jobs + 2 + WRITERS)
}

/// Bytes of the largest widened factor of a shard's tensors.
pub(super) fn largest_factor(shard: &Shard) -> usize {
    let bytes = |tensor: &PlacedTensor| {
        let columns = tensor.source.matrix().1;
        let terms = tensor.source.low_rank.iter();
        terms.map(|term| term.rank.saturating_mul(columns).saturating_mul(4)).max().unwrap_or(0)
    };
    shard.tensors.iter().map(bytes).max().unwrap_or(0)
}

/// How many shards are in the making at once: as many as there are workers, fewer where factors are large.
pub(super) fn open_shards<'s>(shards: impl Iterator<Item = &'s Shard>, jobs: usize) -> usize {
    let largest = shards.map(largest_factor).max().unwrap_or(0);
    jobs.min((MAX_FACTORS / 2).checked_div(largest).unwrap_or(jobs)).max(1)
}

/// Bytes to digest as they stream past, beside the shards.
pub(super) struct Input<'a> {
    pub(super) bytes: &'a [u8],
    /// Makes the digest.
    pub(super) hasher: fn() -> Hasher,
}

/// What to write and how.
pub(super) struct Job<'a> {
    /// The shards to write: the progress's part, and the shard.
    pub(super) shards: Vec<(usize, &'a Shard)>,
    /// Inputs to digest as they stream past, in about the order in which the shards use them.
    pub(super) inputs: Vec<Input<'a>>,
    pub(super) directory: &'a Path,
    pub(super) jobs: usize,
    pub(super) overflow: Overflow,
    pub(super) vector: Vector,
    pub(super) cancel: &'a AtomicBool,
    pub(super) progress: &'a dyn Progress,
    /// Called with each shard's place in `shards` and its digest, once the file is complete and on disk.
    pub(super) finished: &'a (dyn Fn(usize, &Hex) -> Result<()> + Sync),
}

/// Seconds of all threads, by stage.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Timings {
    /// Reading the base and copying, merging or casting.
    pub fill: f64,
    /// Digests of outputs.
    pub digest: f64,
    /// Digests of inputs.
    pub input_digest: f64,
    /// Waiting of workers for each other and for writers.
    pub idle: f64,
    /// Writing, in threads of its own.
    pub write: f64,
    /// Making sure that the disk has it.
    pub sync: f64,
}

/// What came out.
pub(super) struct Streamed {
    /// Digest of each shard, in the order of the job.
    pub(super) shards: Vec<Hex>,
    /// Digest of each input, likewise.
    pub(super) inputs: Vec<Hex>,
    pub(super) timings: Timings,
}

/// One digest that is fed in order. The hasher is away while a worker feeds it.
struct Chain {
    /// How much of it is fed: segments of a shard, bytes of an input.
    at: usize,
    hasher: Option<Hasher>,
    digest: Option<Hex>,
}

impl Chain {
    fn new(hasher: Hasher) -> Self {
        Self { at: 0, hasher: Some(hasher), digest: None }
    }
}

struct ShardState {
    /// The next segment to fill.
    next: usize,
    /// Segments filled and not yet digested.
    filled: BTreeMap<usize, Arc<Buffer>>,
    chain: Chain,
    /// Segments written.
    written: usize,
    finished: bool,
}

struct State {
    shards: Vec<ShardState>,
    inputs: Vec<Chain>,
    /// Inputs before this one are digested.
    first_input: usize,
    to_write: VecDeque<(usize, usize, Arc<Buffer>)>,
    in_flight: usize,
    spare: Vec<Buffer>,
    filled_bytes: u64,
    input_bytes: u64,
    error: Option<Error>,
    timings: Timings,
}

enum Task {
    Fill { shard: usize, segment: usize, buffer: Option<Buffer> },
    Digest { shard: usize, filled: Vec<Arc<Buffer>>, hasher: Hasher },
    Input { input: usize, range: Range<usize>, hasher: Hasher },
}

struct Stream<'j, 'a> {
    job: &'j Job<'a>,
    works: Vec<ShardWork<'a>>,
    /// Open files; each from its first segment to its last.
    sinks: Vec<Mutex<Option<Arc<Sink>>>>,
    /// Most shards in the making at once.
    open: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// Runs the job to its end or its first error.
pub(super) fn run(job: &Job<'_>) -> Result<Streamed> {
    let shard_state = |_: &(usize, &Shard)| ShardState {
        next: 0,
        filled: BTreeMap::new(),
        chain: Chain::new(Hasher::sha256()),
        written: 0,
        finished: false,
    };
    let state = State {
        shards: job.shards.iter().map(shard_state).collect(),
        inputs: job.inputs.iter().map(|input| Chain::new((input.hasher)())).collect(),
        first_input: 0,
        to_write: VecDeque::new(),
        in_flight: 0,
        spare: Vec::new(),
        filled_bytes: 0,
        input_bytes: 0,
        error: None,
        timings: Timings::default(),
    };
    let stream = Stream {
        job,
        works: job.shards.iter().map(|(_, shard)| ShardWork::new(shard, job.overflow, job.vector)).collect(),
        sinks: job.shards.iter().map(|_| Mutex::new(None)).collect(),
        open: open_shards(job.shards.iter().map(|(_, shard)| *shard), job.jobs),
        state: Mutex::new(state),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| stream.run_thread(Stream::next_write, false));
        }
        for _ in 1..job.jobs.max(1) {
            scope.spawn(|| stream.run_thread(Stream::next_work, true));
        }
        stream.run_thread(Stream::next_work, true);
    });
    let state = stream.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.error {
        Some(error) => Err(error),
        None => Ok(Streamed {
            shards: state.shards.into_iter().filter_map(|s| s.chain.digest).collect(),
            inputs: state.inputs.into_iter().filter_map(|chain| chain.digest).collect(),
            timings: state.timings,
        }),
    }
}

/// A step that a thread has decided on, to be done without the lock.
type Step<'s> = Box<dyn FnOnce(&mut Timings) -> Result<()> + 's>;

impl<'a> Stream<'_, 'a> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread: takes steps until there are none left or something failed. The waiting of a worker is counted as
    /// idle, that of a writer is its job.
    fn run_thread<'s>(&'s self, next: impl Fn(&'s Self, &mut State) -> Option<Step<'s>>, worker: bool) {
        let _guard = PanicGuard(self);
        let mut timings = Timings::default();
        let mut state = self.lock();
        loop {
            if self.job.cancel.load(Ordering::Relaxed) && state.error.is_none() {
                state.error = Some(Error::Interrupted { kept: None, finished: 0, shards: 0 });
            }
            if state.error.is_some() || state.is_done() {
                break;
            }
            let Some(step) = next(self, &mut state) else {
                let waited = Instant::now();
                // The time-out is for `cancel`, which rings no bell.
                let wait = self.changed.wait_timeout(state, Duration::from_millis(100));
                state = wait.unwrap_or_else(PoisonError::into_inner).0;
                if worker {
                    timings.idle += waited.elapsed().as_secs_f64();
                }
                continue;
            };
            drop(state);
            let result = step(&mut timings);
            state = self.lock();
            if let Err(error) = result
                && state.error.is_none()
            {
                state.error = Some(error);
            }
            self.changed.notify_all();
        }
        state.timings.add(timings);
        self.changed.notify_all();
    }

    fn next_write<'s>(&'s self, state: &mut State) -> Option<Step<'s>> {
        let (shard, segment, buffer) = state.to_write.pop_front()?;
        Some(Box::new(move |timings| self.write(shard, segment, buffer, timings)))
    }

    fn next_work<'s>(&'s self, state: &mut State) -> Option<Step<'s>> {
        Some(match self.next_task(state)? {
            Task::Fill { shard, segment, buffer } => {
                Box::new(move |timings| self.fill(shard, segment, buffer, timings))
            }
            Task::Digest { shard, filled, hasher } => {
                Box::new(move |timings| self.digest(shard, filled, hasher, timings))
            }
            Task::Input { input, range, hasher } => Box::new(move |timings| {
                self.digest_input(input, range, hasher, timings);
                Ok(())
            }),
        })
    }

    /// The next task, in the order of what holds others up: digests of outputs, since each is one chain of its whole
    /// file; digests of inputs that lag; segments; digests of inputs.
    fn next_task(&self, state: &mut State) -> Option<Task> {
        if let Some(task) = self.next_digest(state) {
            return Some(task);
        }
        if state.filled_bytes > state.input_bytes + MAX_LAG
            && let Some(task) = self.next_input(state)
        {
            return Some(task);
        }
        self.next_segment(state).or_else(|| self.next_input(state))
    }

    fn next_digest(&self, state: &mut State) -> Option<Task> {
        let ready = |s: &ShardState| s.chain.hasher.is_some() && s.filled.contains_key(&s.chain.at);
        let left = |i: usize, s: &ShardState| self.works[i].segments() - s.chain.at;
        let candidates = state.shards.iter().enumerate().filter(|(_, s)| ready(s));
        let (shard, _) = candidates.max_by_key(|(i, s)| (left(*i, s), usize::MAX - i))?;
        let s = &mut state.shards[shard];
        let mut filled = Vec::new();
        while let Some(buffer) = s.filled.remove(&(s.chain.at + filled.len())) {
            filled.push(buffer);
        }
        let hasher = s.chain.hasher.take()?;
        Some(Task::Digest { shard, filled, hasher })
    }

    /// A segment of the shard that is furthest from its end, among the unfinished ones that may be open at once: shards
    /// finish one after another, and their digests, one chain each, run side by side.
    fn next_segment(&self, state: &mut State) -> Option<Task> {
        if state.in_flight >= in_flight(self.job.jobs) {
            return None;
        }
        let left = |i: usize, s: &ShardState| self.works[i].segments() - s.next;
        let open = state.shards.iter().enumerate().filter(|(_, s)| !s.finished).take(self.open);
        let (shard, _) = open.filter(|(i, s)| left(*i, s) > 0).max_by_key(|(i, s)| (left(*i, s), usize::MAX - i))?;
        let segment = state.shards[shard].next;
        state.shards[shard].next += 1;
        state.in_flight += 1;
        Some(Task::Fill { shard, segment, buffer: state.spare.pop() })
    }

    fn next_input(&self, state: &mut State) -> Option<Task> {
        while state.inputs.get(state.first_input).is_some_and(|chain| chain.digest.is_some()) {
            state.first_input += 1;
        }
        let first = state.first_input;
        let (input, chain) = state.inputs.iter_mut().enumerate().skip(first).find(|(_, c)| c.hasher.is_some())?;
        let range = chain.at..self.job.inputs[input].bytes.len().min(chain.at + INPUT_STEP);
        let hasher = chain.hasher.take()?;
        Some(Task::Input { input, range, hasher })
    }

    fn fill(&self, shard: usize, segment: usize, buffer: Option<Buffer>, timings: &mut Timings) -> Result<()> {
        let started = Instant::now();
        let work = &self.works[shard];
        let len = work.range(segment).len();
        let mut buffer = buffer.unwrap_or_else(|| Buffer::new(BLOCK_LEN));
        work.fill(segment, buffer.resize(len))?;
        timings.fill += started.elapsed().as_secs_f64();
        let buffer = Arc::new(buffer);
        let mut state = self.lock();
        state.filled_bytes += len as u64;
        state.to_write.push_back((shard, segment, Arc::clone(&buffer)));
        state.shards[shard].filled.insert(segment, buffer);
        Ok(())
    }

    fn digest(&self, shard: usize, filled: Vec<Arc<Buffer>>, mut hasher: Hasher, timings: &mut Timings) -> Result<()> {
        for buffer in filled {
            let started = Instant::now();
            hasher.update(buffer.bytes());
            timings.digest += started.elapsed().as_secs_f64();
            let mut state = self.lock();
            state.shards[shard].chain.at += 1;
            state.release(buffer);
            self.changed.notify_all();
        }
        let mut state = self.lock();
        let chain = &mut state.shards[shard].chain;
        if chain.at < self.works[shard].segments() {
            chain.hasher = Some(hasher);
        } else {
            chain.digest = Some(hasher.finish());
        }
        self.finish(shard, state, timings)
    }

    fn write(&self, shard: usize, segment: usize, buffer: Arc<Buffer>, timings: &mut Timings) -> Result<()> {
        let started = Instant::now();
        let range = self.works[shard].range(segment);
        self.sink(shard)?.write(&buffer, range.start as u64)?;
        timings.write += started.elapsed().as_secs_f64();
        self.job.progress.advance(self.job.shards[shard].0, range.len() as u64);
        let mut state = self.lock();
        state.release(buffer);
        state.shards[shard].written += 1;
        self.finish(shard, state, timings)
    }

    /// Finishes a shard if its last segment is both digested and written.
    fn finish(&self, shard: usize, mut state: MutexGuard<'_, State>, timings: &mut Timings) -> Result<()> {
        let s = &mut state.shards[shard];
        let Some(digest) = s.chain.digest.clone().filter(|_| s.written == self.works[shard].segments()) else {
            return Ok(());
        };
        drop(state);
        let started = Instant::now();
        self.sink(shard)?.finish()?;
        *self.sinks[shard].lock().unwrap_or_else(PoisonError::into_inner) = None;
        timings.sync += started.elapsed().as_secs_f64();
        (self.job.finished)(shard, &digest)?;
        self.job.progress.finish(self.job.shards[shard].0);
        self.lock().shards[shard].finished = true;
        Ok(())
    }

    /// The file of a shard, created when it is first asked for.
    fn sink(&self, shard: usize) -> Result<Arc<Sink>> {
        let mut slot = self.sinks[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = &*slot {
            return Ok(Arc::clone(sink));
        }
        let planned = self.job.shards[shard].1;
        let sink = Arc::new(Sink::create(self.job.directory.join(&planned.name), planned.len())?);
        *slot = Some(Arc::clone(&sink));
        Ok(sink)
    }

    fn digest_input(&self, input: usize, range: Range<usize>, mut hasher: Hasher, timings: &mut Timings) {
        let started = Instant::now();
        let bytes: &'a [u8] = self.job.inputs[input].bytes;
        hasher.update(&bytes[range.clone()]);
        timings.input_digest += started.elapsed().as_secs_f64();
        let mut state = self.lock();
        state.input_bytes += range.len() as u64;
        let chain = &mut state.inputs[input];
        chain.at = range.end;
        if range.end == bytes.len() {
            chain.digest = Some(hasher.finish());
        } else {
            chain.hasher = Some(hasher);
        }
    }
}

/// Stops the other threads if this one panics: they would wait for its work for ever.
struct PanicGuard<'s, 'j, 'a>(&'s Stream<'j, 'a>);

impl Drop for PanicGuard<'_, '_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let bug = || Error::refused("a worker failed", "report this: it is a bug");
            self.0.lock().error.get_or_insert_with(bug);
            self.0.changed.notify_all();
        }
    }
}

impl State {
    fn is_done(&self) -> bool {
        self.shards.iter().all(|s| s.finished) && self.inputs.iter().all(|chain| chain.digest.is_some())
    }

    /// Takes a buffer back from the second of its two readers.
    fn release(&mut self, buffer: Arc<Buffer>) {
        if let Some(buffer) = Arc::into_inner(buffer) {
            self.spare.push(buffer);
            self.in_flight -= 1;
        }
    }
}

impl Timings {
    fn add(&mut self, other: Self) {
        self.fill += other.fill;
        self.digest += other.digest;
        self.input_digest += other.input_digest;
        self.idle += other.idle;
        self.write += other.write;
        self.sync += other.sync;
    }
}
