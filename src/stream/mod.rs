//! Streaming planned files to disk: workers fill segments in any order, digests are fed in order, finished files are
//! recorded, and all is published by rename. Knows no format: a file is a [`Work`] that can fill any range of itself.

mod bounds;
mod destination;
mod foreign;
mod inputs;
mod job;
mod journal;
mod publish;
mod schedule;
mod sink;
mod staging;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

pub(crate) use bounds::{in_flight, open_files, writers};
pub(crate) use destination::{check_destination, check_file, check_files};
pub use foreign::Overwrite;
pub(crate) use foreign::{check_finished, files_of_model};
pub(crate) use inputs::{Input, InputDigest};
pub(crate) use job::BLOCK_LEN;
pub use job::{CardShare, CardUse, Timings};
pub(crate) use staging::{Staging, free_space};

use crate::digest::Hex;
use crate::error::{Error, Result};
use crate::gpu::{Assist, Cards, EncoderKind};
use crate::merge::Vector;
use crate::progress::{Progress, Silent};
use job::Job;
use journal::{Finished, Journal};
use staging::JOURNAL;

/// How to run a plan: nothing here changes a byte of the output. By default: a thread a core, no GPUs, all from the start, in
/// silence and to the end.
///
/// ```
/// let how = qft::export::Run { jobs: 2, ..Default::default() };
/// ```
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Worker threads.
    pub jobs: usize,
    /// Vector instructions.
    pub vector: Vector,
    /// GPUs that help; [`Cards::none`] for none.
    pub cards: &'a Cards,
    /// Whether to take over files that an interrupted run finished.
    pub resume: bool,
    /// Set from outside to stop: the run ends with [`Error::Interrupted`].
    pub cancel: &'a AtomicBool,
    /// Who listens, from many threads.
    pub progress: &'a dyn Progress,
}

impl Default for Run<'_> {
    fn default() -> Self {
        static NO_CARDS: LazyLock<Cards> = LazyLock::new(Cards::none);
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self {
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            vector: Vector::detect(),
            cards: &NO_CARDS,
            resume: false,
            cancel: &NEVER,
            progress: &Silent,
        }
    }
}

impl Run<'_> {
    /// Refuses where a GPU is demanded and there is none. To be called before anything is touched.
    pub(crate) fn check_cards(&self) -> Result<()> {
        let demanded = self.cards.device().demands_card();
        match if demanded { self.cards.unavailable() } else { None } {
            Some(why) => {
                let (problem, remedy) = why.parts();
                let auto = "use ⟦device auto⟧, which works on the processor if there is no GPU";
                Err(Error::new(why.kind(), problem, format!("{auto}; or {remedy}")))
            }
            None => Ok(()),
        }
    }
}

/// A planned file.
pub(crate) trait Work: Sync {
    /// Its name in the output directory.
    fn name(&self) -> &str;

    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Writes its bytes `range` to `out`, which is as long, with the help of a GPU if there is one. Called from many
    /// threads, for ranges that rise slowly.
    fn fill(&self, range: Range<usize>, out: &mut [u8], assist: &mut Assist<'_>) -> Result<()>;

    /// Which of several outputs it belongs to. Outputs of one job advance side by side, so that the pages of the input
    /// that they are all made of are read once.
    fn output(&self) -> usize;

    /// Most bytes of widened factors that it holds while it is being written.
    fn factor_bytes(&self) -> usize;

    /// What is worth knowing of it once every range was filled; kept for a run that takes the file over.
    fn record(&self) -> Value {
        Value::Null
    }
}

/// Everything that is streamed into one staging directory.
pub(crate) struct Production<'a> {
    /// The files to write.
    pub(crate) works: Vec<Box<dyn Work + 'a>>,
    /// Inputs to digest as they stream past, in about the order in which the files use them.
    pub(crate) inputs: Vec<Input<'a>>,
    /// Types that tensors are encoded as, each with or without importance.
    pub(crate) encoders: Vec<EncoderKind>,
    /// Digest of all that decides the bytes of the files.
    pub(crate) identity: Hex,
    /// Bytes that the whole output will need on disk.
    pub(crate) disk_bytes: u64,
}

/// What came out of a production, before it is published.
pub(crate) struct Produced {
    /// Size and digest of each file, by name.
    pub(crate) files: BTreeMap<String, (u64, Hex)>,
    /// See [`Work::record`], by name.
    pub(crate) records: BTreeMap<String, Value>,
    /// Digest of each input, in their order.
    pub(crate) inputs: Vec<Hex>,
    /// Files taken over from an interrupted run.
    pub(crate) resumed: usize,
    pub(crate) timings: Timings,
    pub(crate) cards: CardUse,
}

/// Streams `production` into the staging directory of `staging`, then calls `publish`. On any error but those that say that
/// something was moved the destination is as it was, and the staging directory is removed, unless finished files in it
/// are worth keeping.
pub(crate) fn produce<T>(
    production: &Production<'_>,
    staging: &Staging,
    how: &Run<'_>,
    publish: impl FnOnce(Produced) -> Result<T>,
) -> Result<T> {
    let works = &production.works;
    how.progress.start(&works.iter().map(|w| (w.name().to_owned(), w.len())).collect::<Vec<_>>());
    let finished = if how.resume {
        how.progress.phase("checking finished files");
        journal::finished_files(staging, production, how)?
    } else {
        BTreeMap::new()
    };
    let journal = Journal::new(staging, &production.identity, &finished);
    let done = fill(production, how, staging, &journal, &finished).and_then(|produced| {
        how.progress.phase("publishing");
        publish(produced)
    });
    done.map_err(|error| abandon(error, staging, &journal, works.len()))
}

fn fill(
    production: &Production<'_>,
    how: &Run<'_>,
    staging: &Staging,
    journal: &Journal<'_>,
    finished: &BTreeMap<String, Finished>,
) -> Result<Produced> {
    staging.clear(|name| finished.contains_key(name) || (name == JOURNAL && !finished.is_empty()))?;
    let parts = || production.works.iter().map(AsRef::as_ref).enumerate();
    let (kept, fresh): (Vec<_>, Vec<_>) = parts().partition(|(_, work)| finished.contains_key(work.name()));
    let done: u64 = kept.iter().map(|(_, work)| work.len()).sum();
    staging.check_space(production.disk_bytes.saturating_sub(done))?;
    journal.start()?;
    for (part, work) in &kept {
        how.progress.advance(*part, work.len());
        how.progress.finish(*part);
    }
    how.progress.phase("writing");
    let job = Job {
        works: fresh.clone(),
        inputs: &production.inputs,
        directory: staging.dir(),
        jobs: how.jobs,
        cards: how.cards,
        encoders: &production.encoders,
        cancel: how.cancel,
        progress: how.progress,
        finished: &|work, digest| journal.finished(fresh[work].1, digest),
    };
    let streamed = workers::run(&job)?;
    let mut files = BTreeMap::new();
    let mut records = BTreeMap::new();
    let fresh = fresh.iter().zip(streamed.files).map(|((_, work), digest)| (*work, digest, work.record()));
    let kept = kept.iter().filter_map(|(_, work)| {
        let Finished { digest, record } = finished.get(work.name())?.clone();
        Some((*work, digest, record))
    });
    for (work, digest, record) in fresh.chain(kept) {
        files.insert(work.name().to_owned(), (work.len(), digest));
        records.insert(work.name().to_owned(), record);
    }
    Ok(Produced {
        files,
        records,
        inputs: streamed.inputs,
        resumed: finished.len(),
        timings: streamed.timings,
        cards: streamed.cards,
    })
}

/// Removes the staging directory, unless the run can be resumed: it was stopped, or the disk or a GPU failed it.
fn abandon(error: Error, staging: &Staging, journal: &Journal<'_>, files: usize) -> Error {
    // What the staging directory holds by now is no part of the output, or all that is left of it.
    if error.has_moved() {
        return error;
    }
    let finished = journal.count();
    let kept = || staging.dir().to_owned();
    // Publishing takes the journal away first; if that failed, it is wanted back.
    if finished > 0 && staging.dir().exists() {
        let _ = journal.start();
    }
    match error {
        Error::Interrupted { .. } if finished > 0 => Error::Interrupted { kept: Some(kept()), finished, shards: files },
        // A disk without room, most of all: what is finished must be there when it has some.
        error if finished > 0 && (matches!(error, Error::Io { .. }) || error.kind().is_transient()) => {
            Error::Stopped { cause: Box::new(error), kept: kept(), finished, shards: files }
        }
        error => {
            staging.remove();
            error
        }
    }
}
