//! The workers. Segments are filled in any order and written by writers of their own, while each digest is fed in the
//! order of its bytes. Memory is bounded by the segments in flight; the bytes don't depend on the number of workers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Work;
use super::sink::{Buffer, Sink};
use crate::digest::{Hasher, Hex};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Bytes that are worked on at once: a segment of a file. Several fit the last-level cache.
pub(crate) const BLOCK_LEN: usize = 2 << 20;

/// Most segments in flight, whatever the number of workers: bounds their memory at 192 MiB.
const MAX_IN_FLIGHT: usize = 96;
/// Most bytes of widened factors that open files may hold.
const MAX_FACTORS: usize = 128 << 20;
/// Threads that do nothing but write: they wait for the disk, so that the workers need not.
const WRITERS: usize = 4;
/// Bytes of an input that one step digests.
const INPUT_STEP: usize = 4 << 20;
/// How far the digests of inputs may lag behind the segments made from them, so that their pages are read once.
const MAX_LAG: u64 = 64 << 20;

/// Segments in flight with that many workers.
pub(crate) fn in_flight(jobs: usize) -> usize {
    MAX_IN_FLIGHT.min(2 * jobs + 2 + WRITERS)
}

/// How many files of one output are in the making at once: as many as there are workers, fewer where the largest of
/// their factors has many bytes.
pub(crate) fn open_files(largest_factor: usize, jobs: usize) -> usize {
    jobs.min((MAX_FACTORS / 2).checked_div(largest_factor).unwrap_or(jobs)).max(1)
}

/// Number of segments: at least one, so that an empty file is written too.
fn segments(work: &dyn Work) -> usize {
    (work.len() as usize).div_ceil(BLOCK_LEN).max(1)
}

/// The bytes of a segment, as a range of the file.
fn range(work: &dyn Work, segment: usize) -> Range<usize> {
    let start = segment * BLOCK_LEN;
    start..(work.len() as usize).min(start + BLOCK_LEN)
}

/// Bytes to digest as they stream past, beside the files.
pub(crate) struct Input<'a> {
    pub(crate) bytes: &'a [u8],
    /// Makes the digest.
    pub(crate) hasher: fn() -> Hasher,
}

/// What to write and how.
pub(super) struct Job<'a> {
    /// The files to write, each with its part of the progress.
    pub(super) works: Vec<(usize, &'a dyn Work)>,
    /// Inputs to digest as they stream past, in about the order in which the files use them.
    pub(super) inputs: &'a [Input<'a>],
    pub(super) directory: &'a Path,
    pub(super) jobs: usize,
    pub(super) cancel: &'a AtomicBool,
    pub(super) progress: &'a dyn Progress,
    /// Called with each file's place in `works` and its digest, once it is complete and on disk.
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
    /// Digest of each file, in the order of the job.
    pub(super) files: Vec<Hex>,
    /// Digest of each input, likewise.
    pub(super) inputs: Vec<Hex>,
    pub(super) timings: Timings,
}

/// One digest that is fed in order. The hasher is away while a worker feeds it.
struct Chain {
    /// How much of it is fed: segments of a file, bytes of an input.
    at: usize,
    hasher: Option<Hasher>,
    digest: Option<Hex>,
}

impl Chain {
    fn new(hasher: Hasher) -> Self {
        Self { at: 0, hasher: Some(hasher), digest: None }
    }
}

/// A file in the making.
struct FileState {
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
    files: Vec<FileState>,
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
    Fill { file: usize, segment: usize, buffer: Option<Buffer> },
    Digest { file: usize, filled: Vec<Arc<Buffer>>, hasher: Hasher },
    Input { input: usize, range: Range<usize>, hasher: Hasher },
}

struct Stream<'j, 'a> {
    job: &'j Job<'a>,
    /// Open files; each from its first segment to its last.
    sinks: Vec<Mutex<Option<Arc<Sink>>>>,
    /// Segments of each output, and the most of its files that are in the making at once.
    outputs: BTreeMap<usize, (usize, usize)>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Runs the job to its end or its first error.
pub(super) fn run(job: &Job<'_>) -> Result<Streamed> {
    let file_state = |_: &(usize, &dyn Work)| FileState {
        next: 0,
        filled: BTreeMap::new(),
        chain: Chain::new(Hasher::sha256()),
        written: 0,
        finished: false,
    };
    let state = State {
        files: job.works.iter().map(file_state).collect(),
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
        sinks: job.works.iter().map(|_| Mutex::new(None)).collect(),
        outputs: outputs(job),
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
            files: state.files.into_iter().filter_map(|s| s.chain.digest).collect(),
            inputs: state.inputs.into_iter().filter_map(|chain| chain.digest).collect(),
            timings: state.timings,
        }),
    }
}

/// The segments of each output and the number of its files that may be open.
fn outputs(job: &Job<'_>) -> BTreeMap<usize, (usize, usize)> {
    let mut outputs: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (_, work) in &job.works {
        let (total, factor) = outputs.entry(work.output()).or_default();
        *total += segments(*work);
        *factor = work.factor_bytes().max(*factor);
    }
    let factors: usize = outputs.values().map(|(_, factor)| factor).sum();
    outputs.into_iter().map(|(output, (total, _))| (output, (total, open_files(factors, job.jobs)))).collect()
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
        let (file, segment, buffer) = state.to_write.pop_front()?;
        Some(Box::new(move |timings| self.write(file, segment, buffer, timings)))
    }

    fn next_work<'s>(&'s self, state: &mut State) -> Option<Step<'s>> {
        Some(match self.next_task(state)? {
            Task::Fill { file, segment, buffer } => Box::new(move |timings| self.fill(file, segment, buffer, timings)),
            Task::Digest { file, filled, hasher } => {
                Box::new(move |timings| self.digest(file, filled, hasher, timings))
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
        let ready = |s: &FileState| s.chain.hasher.is_some() && s.filled.contains_key(&s.chain.at);
        let left = |i: usize, s: &FileState| segments(self.job.works[i].1) - s.chain.at;
        let candidates = state.files.iter().enumerate().filter(|(_, s)| ready(s));
        let (file, _) = candidates.max_by_key(|(i, s)| (left(*i, s), usize::MAX - i))?;
        let s = &mut state.files[file];
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
    fn next_segment(&self, state: &mut State) -> Option<Task> {
        if state.in_flight >= in_flight(self.job.jobs) {
            return None;
        }
        let output = |file: usize| self.job.works[file].1.output();
        let left = |file: usize, s: &FileState| segments(self.job.works[file].1) - s.next;
        let mut unfilled: BTreeMap<usize, usize> = BTreeMap::new();
        for (i, s) in state.files.iter().enumerate() {
            *unfilled.entry(output(i)).or_default() += left(i, s);
        }
        // Of two outputs, the one with the larger part left.
        let part = |(output, left): &(usize, usize)| *left as f64 / self.outputs[output].0 as f64;
        let mut outputs: Vec<(usize, usize)> = unfilled.into_iter().filter(|(_, left)| *left > 0).collect();
        outputs.sort_by(|a, b| part(b).total_cmp(&part(a)));
        let file = outputs.into_iter().find_map(|(behind, _)| {
            let own = state.files.iter().enumerate().filter(|(i, s)| output(*i) == behind && !s.finished);
            let open = own.take(self.outputs[&behind].1).filter(|(i, s)| left(*i, s) > 0);
            open.max_by_key(|(i, s)| (left(*i, s), usize::MAX - i)).map(|(i, _)| i)
        })?;
        let segment = state.files[file].next;
        state.files[file].next += 1;
        state.in_flight += 1;
        Some(Task::Fill { file, segment, buffer: state.spare.pop() })
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

    fn fill(&self, file: usize, segment: usize, buffer: Option<Buffer>, timings: &mut Timings) -> Result<()> {
        let started = Instant::now();
        let work = self.job.works[file].1;
        let range = range(work, segment);
        let len = range.len();
        let mut buffer = buffer.unwrap_or_else(|| Buffer::new(BLOCK_LEN));
        work.fill(range, buffer.resize(len))?;
        timings.fill += started.elapsed().as_secs_f64();
        let buffer = Arc::new(buffer);
        let mut state = self.lock();
        state.filled_bytes += len as u64;
        state.to_write.push_back((file, segment, Arc::clone(&buffer)));
        state.files[file].filled.insert(segment, buffer);
        Ok(())
    }

    fn digest(&self, file: usize, filled: Vec<Arc<Buffer>>, mut hasher: Hasher, timings: &mut Timings) -> Result<()> {
        for buffer in filled {
            let started = Instant::now();
            hasher.update(buffer.bytes());
            timings.digest += started.elapsed().as_secs_f64();
            let mut state = self.lock();
            state.files[file].chain.at += 1;
            state.release(buffer);
            self.changed.notify_all();
        }
        let mut state = self.lock();
        let chain = &mut state.files[file].chain;
        if chain.at < segments(self.job.works[file].1) {
            chain.hasher = Some(hasher);
        } else {
            chain.digest = Some(hasher.finish());
        }
        self.finish(file, state, timings)
    }

    fn write(&self, file: usize, segment: usize, buffer: Arc<Buffer>, timings: &mut Timings) -> Result<()> {
        let started = Instant::now();
        let range = range(self.job.works[file].1, segment);
        self.sink(file)?.write(&buffer, range.start as u64)?;
        timings.write += started.elapsed().as_secs_f64();
        self.job.progress.advance(self.job.works[file].0, range.len() as u64);
        let mut state = self.lock();
        state.release(buffer);
        state.files[file].written += 1;
        self.finish(file, state, timings)
    }

    /// Finishes a file if its last segment is both digested and written.
    fn finish(&self, file: usize, mut state: MutexGuard<'_, State>, timings: &mut Timings) -> Result<()> {
        let s = &mut state.files[file];
        let Some(digest) = s.chain.digest.clone().filter(|_| s.written == segments(self.job.works[file].1)) else {
            return Ok(());
        };
        drop(state);
        let started = Instant::now();
        self.sink(file)?.finish()?;
        *self.sinks[file].lock().unwrap_or_else(PoisonError::into_inner) = None;
        timings.sync += started.elapsed().as_secs_f64();
        (self.job.finished)(file, &digest)?;
        self.job.progress.finish(self.job.works[file].0);
        self.lock().files[file].finished = true;
        Ok(())
    }

    /// The file of a file, created when it is first asked for.
    fn sink(&self, file: usize) -> Result<Arc<Sink>> {
        let mut slot = self.sinks[file].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = &*slot {
            return Ok(Arc::clone(sink));
        }
        let work = self.job.works[file].1;
        let sink = Arc::new(Sink::create(self.job.directory.join(work.name()), work.len())?);
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
        self.files.iter().all(|s| s.finished) && self.inputs.iter().all(|chain| chain.digest.is_some())
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
