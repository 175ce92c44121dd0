//! The threads of a job: workers fill segments and feed digests, each in the order of its bytes; lanes of GPUs fill
//! segments in their place; writers write. Memory is bounded by the segments in flight; the bytes don't depend on who
//! fills them. What each does next is decided in `schedule`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::inputs::{How, Step as InputStep};
use super::job::{BLOCK_LEN, CardUse, Job, Timings};
use super::schedule::{LaneTask, Segment, State, Task, Unfilled, range, segments};
use super::sink::{Buffer, Sink};
use super::{open_files, writers};
use crate::digest::{Hasher, Hex, PIECE};
use crate::error::{Error, Result};
use crate::gpu::{Assist, Card, Tally};

/// Lanes of all GPUs that are opened even where there are fewer workers.
const LEAST_LANES: usize = 6;

/// What came out.
pub(super) struct Streamed {
    /// Digest of each file, in the order of the job.
    pub(super) files: Vec<Hex>,
    /// Digest of each input, likewise.
    pub(super) inputs: Vec<Hex>,
    pub(super) timings: Timings,
    pub(super) cards: CardUse,
}

/// The kinds of threads. Each waits for its own bell.
#[derive(Clone, Copy)]
enum Crew {
    Worker,
    Writer,
    Lane,
}

struct Stream<'j, 'a> {
    job: &'j Job<'a>,
    /// Open files; each from its first segment to its last.
    sinks: Vec<Mutex<Option<Arc<Sink>>>>,
    state: Mutex<State>,
    bells: [Condvar; 3],
}

/// Runs the job to its end or its first error.
pub(super) fn run(job: &Job<'_>) -> Result<Streamed> {
    let stream = Stream {
        job,
        sinks: job.works.iter().map(|_| Mutex::new(None)).collect(),
        state: Mutex::new(State::new(job, outputs(job))),
        bells: Default::default(),
    };
    std::thread::scope(|scope| {
        for _ in 0..writers(job.jobs) {
            scope.spawn(|| stream.run_thread(Crew::Writer, Stream::next_write));
        }
        scope.spawn(|| stream.open_lanes(scope));
        for _ in 1..job.jobs.max(1) {
            scope.spawn(|| stream.run_thread(Crew::Worker, Stream::next_work));
        }
        stream.run_thread(Crew::Worker, Stream::next_work);
    });
    let state = stream.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.error {
        Some(error) => Err(error),
        None => Ok(Streamed {
            files: state.files.into_iter().filter_map(|s| s.chain.digest).collect(),
            inputs: state.inputs.digests(),
            timings: state.timings,
            cards: state.cards,
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

    /// Wakes one thread of a crew: there may be something for it to do.
    fn ring(&self, crew: Crew) {
        self.bells[crew as usize].notify_one();
    }

    /// Wakes every thread.
    fn ring_all(&self) {
        self.bells.iter().for_each(Condvar::notify_all);
    }

    /// A segment less is in flight: whoever fills may fill another.
    fn ring_fillers(&self, state: &State) {
        self.ring(if state.lanes > 0 { Crew::Lane } else { Crew::Worker });
    }

    /// Waits until there is something to do for a thread of `crew`: `None` if there will be nothing more.
    fn wait_for<T>(
        &self,
        crew: Crew,
        timings: &mut Timings,
        mut next: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.lock();
        loop {
            if self.job.cancel.load(Ordering::Relaxed) && state.error.is_none() {
                state.error = Some(Error::Interrupted { kept: None, finished: 0, shards: 0 });
            }
            if state.error.is_some() || state.is_done() {
                return None;
            }
            if let Some(found) = next(&mut state) {
                // Whatever there is besides is for the next one of the crew.
                self.ring(crew);
                return Some(found);
            }
            let waited = Instant::now();
            // The time-out is for `cancel`, which rings no bell.
            let wait = self.bells[crew as usize].wait_timeout(state, Duration::from_millis(100));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
            match crew {
                Crew::Worker => timings.idle += waited.elapsed().as_secs_f64(),
                Crew::Lane => timings.lane_idle += waited.elapsed().as_secs_f64(),
                Crew::Writer => {}
            }
        }
    }

    /// Whether there is nothing more to do: a GPU that is still being opened is opened for nothing.
    fn is_over(&self) -> bool {
        let state = self.lock();
        state.error.is_some() || state.is_done() || self.job.cancel.load(Ordering::Relaxed)
    }

    /// Ends the job if `result` is an error.
    fn end_on(&self, result: Result<()>) {
        if let Err(error) = result {
            self.lock().error.get_or_insert(error);
            self.ring_all();
        }
    }

    /// One thread: takes steps until there are none left or something failed.
    fn run_thread<'s>(&'s self, crew: Crew, next: impl Fn(&'s Self, &mut State) -> Option<Step<'s>>) {
        let _guard = PanicGuard(self);
        let mut timings = Timings::default();
        while let Some(step) = self.wait_for(crew, &mut timings, |state| next(self, state)) {
            self.end_on(step(&mut timings));
        }
        self.lock().timings.add(timings);
        self.ring_all();
    }

    /// Waits for the GPUs, and starts their lanes.
    fn open_lanes<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let _guard = PanicGuard(self);
        let Ok(cards) = self.job.cards.wait() else { return self.expect_no_lanes() };
        // Lanes are threads that read: more of them than there are workers would only get in each other's way.
        let most = self.job.jobs.max(LEAST_LANES).div_ceil(cards.len().max(1));
        for (number, card) in cards.iter().enumerate().take_while(|_| !self.is_over()) {
            scope.spawn(move || {
                let _guard = PanicGuard(self);
                // Until its kernels are compiled, the workers fill.
                card.prepare(self.job.encoders);
                for _ in 0..card.lanes().min(most) {
                    scope.spawn(move || self.run_lane(number, card));
                }
            });
        }
    }

    /// One lane of GPU `number` of those that are used: fills segments until there are none left, something failed, or its GPU is lost.
    fn run_lane(&self, number: usize, card: &Card) {
        let _guard = PanicGuard(self);
        if self.is_over() {
            return;
        }
        let mut assist = match card.lane() {
            Ok(lane) => Assist::by(lane),
            Err(trouble) => return self.lose(card, &trouble.to_string(), false),
        };
        let mut state = self.lock();
        state.lanes += 1;
        card.name().clone_into(&mut state.cards.cards.entry(number).or_default().name);
        drop(state);
        let mut timings = Timings::default();
        while assist.lost().is_none() {
            let task = self.wait_for(Crew::Lane, &mut timings, |state| state.next_lane_task(self.job));
            let started = Instant::now();
            match task {
                None => break,
                Some(LaneTask::Input(step)) => self.digest_input(step, &mut assist),
                Some(LaneTask::Fill(mut segment)) => {
                    let mut buffer = segment.buffer.take().unwrap_or_else(|| Buffer::new(BLOCK_LEN));
                    card.pin(&mut buffer.memory);
                    segment.buffer = Some(buffer);
                    let made = assist.tally().made;
                    self.end_on(self.fill(segment, &mut assist));
                    self.lock().lane_filled(assist.tally().made > made);
                }
            }
            timings.lanes += started.elapsed().as_secs_f64();
        }
        let Tally { made, left, stages } = assist.tally();
        timings.read += stages.read;
        timings.upload += stages.upload;
        timings.kernel += stages.kernel;
        timings.download += stages.download;
        let mut state = self.lock();
        state.cards.made += made;
        state.cards.cards.entry(number).or_default().made += made;
        state.cards.left += left;
        state.timings.add(timings);
        drop(state);
        match assist.lost() {
            Some(said) => self.lose(card, said, true),
            None => self.ring_all(),
        }
    }

    /// A lane is lost: its segments go to the other lanes, or to the workers after the last of them. Where a GPU was
    /// demanded, that is an error.
    fn lose(&self, card: &Card, said: &str, opened: bool) {
        let mut state = self.lock();
        state.lanes -= usize::from(opened);
        state.lanes_awaited &= state.lanes > 0;
        let warning = format!("{}: {said}", card.name());
        if self.job.cards.device().demands_card() {
            state.error.get_or_insert(Error::Card { problem: warning });
        } else if !state.cards.warnings.contains(&warning) {
            state.cards.warnings.push(warning);
        }
        drop(state);
        self.ring_all();
    }

    /// There will be no lanes: the workers do all.
    fn expect_no_lanes(&self) {
        self.lock().lanes_awaited = false;
        self.ring_all();
    }

    fn next_write<'s>(&'s self, state: &mut State) -> Option<Step<'s>> {
        let segment = state.next_write()?;
        Some(Box::new(move |timings| self.write(segment, timings)))
    }

    fn next_work<'s>(&'s self, state: &mut State) -> Option<Step<'s>> {
        Some(match state.next_task(self.job)? {
            Task::Fill(segment) => Box::new(move |timings| {
                let started = Instant::now();
                self.fill(segment, &mut Assist::none())?;
                timings.fill += started.elapsed().as_secs_f64();
                Ok(())
            }),
            Task::Digest { file, filled, hasher } => {
                Box::new(move |timings| self.digest(file, filled, hasher, timings))
            }
            Task::Input(step) => Box::new(move |timings| {
                let started = Instant::now();
                self.digest_input(step, &mut Assist::none());
                timings.input_digest += started.elapsed().as_secs_f64();
                Ok(())
            }),
        })
    }

    fn fill(&self, segment: Unfilled, assist: &mut Assist<'_>) -> Result<()> {
        let Unfilled { file, number, buffer } = segment;
        let work = self.job.works[file].1;
        let range = range(work, number);
        let len = range.len();
        let mut buffer = buffer.unwrap_or_else(|| Buffer::new(BLOCK_LEN));
        work.fill(range, buffer.resize(len), assist)?;
        // Where a GPU is demanded, nothing is finished without it: `lose` says why.
        if assist.lost().is_some() && self.job.cards.device().demands_card() {
            return Ok(());
        }
        self.lock().filled(file, number, buffer);
        self.ring(Crew::Writer);
        self.ring(Crew::Worker);
        Ok(())
    }

    fn digest(&self, file: usize, filled: Vec<Arc<Buffer>>, mut hasher: Hasher, timings: &mut Timings) -> Result<()> {
        for buffer in filled {
            let started = Instant::now();
            hasher.update(buffer.bytes());
            timings.digest += started.elapsed().as_secs_f64();
            let mut state = self.lock();
            state.files[file].chain.at += 1;
            if state.release(buffer) {
                self.ring_fillers(&state);
            }
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

    fn write(&self, segment: Segment, timings: &mut Timings) -> Result<()> {
        let Segment { file, number, buffer } = segment;
        let started = Instant::now();
        let range = range(self.job.works[file].1, number);
        self.sink(file)?.write(&buffer, range.start as u64)?;
        timings.write += started.elapsed().as_secs_f64();
        self.job.progress.advance(self.job.works[file].0, range.len() as u64);
        let mut state = self.lock();
        if state.release(buffer) {
            self.ring_fillers(&state);
        }
        state.files[file].writers -= 1;
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
        // Another file may be begun, or all is done.
        self.ring_all();
        Ok(())
    }

    /// Where a file is written, created when it is first asked for.
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

    fn digest_input(&self, mut step: InputStep, assist: &mut Assist<'_>) {
        let bytes: &'a [u8] = &self.job.inputs[step.input].bytes[step.range.clone()];
        match &mut step.how {
            How::Feed(hasher) => hasher.update(bytes),
            How::Add(tree) => {
                let first = step.range.start / PIECE;
                let mut values = vec![0; bytes.len().div_ceil(PIECE) * 32];
                if tree.takes_values() && assist.hash(bytes, first, &mut values) {
                    tree.add_values(first, &values);
                } else {
                    tree.add_bytes(first, bytes);
                }
            }
        }
        let mut state = self.lock();
        if state.inputs.done(step) {
            self.ring_all();
        }
    }
}

/// Stops the other threads if this one panics: they would wait for its work for ever.
struct PanicGuard<'s, 'j, 'a>(&'s Stream<'j, 'a>);

impl Drop for PanicGuard<'_, '_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let bug = || Error::bug("a worker failed", "report this: it is a bug");
            self.0.lock().error.get_or_insert_with(bug);
            self.0.ring_all();
        }
    }
}

impl Timings {
    fn add(&mut self, other: Self) {
        self.fill += other.fill;
        self.read += other.read;
        self.upload += other.upload;
        self.kernel += other.kernel;
        self.download += other.download;
        self.lanes += other.lanes;
        self.lane_idle += other.lane_idle;
        self.digest += other.digest;
        self.input_digest += other.input_digest;
        self.idle += other.idle;
        self.write += other.write;
        self.sync += other.sync;
    }
}
