//! The main job: plan an export, stream it to a staging directory, publish it. Prints nothing.

mod audit;
mod block;
mod describe;
mod journal;
mod manifest;
mod plan;
mod publish;
mod shard;
mod sink;
mod stream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub use audit::{Audit, Difference, audit};
pub use describe::describe_plan;
pub use manifest::{CHECKSUMS, FORMAT, MANIFEST};
pub use plan::{ExportPlan, Options, Provenance};
pub use shard::{PlacedTensor, Shard};
pub use stream::Timings;

pub(crate) use manifest::dtype_name;

use crate::adapter::{ADAPTER_CONFIG, Adapter};
use crate::checkpoint::read_small;
use crate::digest::{Hasher, Hex, sha256};
use crate::error::{Error, Result};
use crate::merge::Vector;
use crate::progress::Progress;
use journal::{JOURNAL, Journal};
use manifest::Digests;
use publish::Staging;
use stream::{Input, Job};

/// How to run a plan: nothing here changes a byte of the output.
pub struct Run<'a> {
    /// Worker threads.
    pub jobs: usize,
    /// Vector instructions.
    pub vector: Vector,
    /// Whether to take over shards that an interrupted run finished.
    pub resume: bool,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Who listens.
    pub progress: &'a dyn Progress,
}

/// What an export did.
#[derive(Debug)]
pub struct Report {
    /// Where the output is.
    pub out: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Its files, with size and digest.
    pub files: BTreeMap<String, (u64, Hex)>,
    /// Shards taken over from an interrupted run.
    pub resumed: usize,
    /// Seconds from start to publication.
    pub seconds: f64,
    /// Seconds of all workers, by stage.
    pub timings: Timings,
}

/// Runs `plan`. On any error the destination is as it was.
pub fn run(plan: &ExportPlan, how: &Run<'_>) -> Result<Report> {
    let started = Instant::now();
    let staging = Staging::open(&plan.out)?;
    how.progress.start(&plan.shards.iter().map(|s| (s.name.clone(), s.len())).collect::<Vec<_>>());
    let finished = if how.resume {
        how.progress.phase("checking finished shards");
        journal::finished_shards(&staging, plan, how)?
    } else {
        BTreeMap::new()
    };
    let journal = Journal::new(&staging, plan, &finished)?;
    match fill(plan, how, &staging, &journal, &finished) {
        Ok((files, timings)) => {
            let bytes = files.values().map(|(size, _)| size).sum();
            let (out, seconds) = (plan.out.clone(), started.elapsed().as_secs_f64());
            Ok(Report { out, bytes, files, resumed: finished.len(), seconds, timings })
        }
        Err(error) => Err(abandon(error, &staging, &journal, plan)),
    }
}

/// Removes the staging directory, unless the run can be resumed: it was stopped, or the disk failed it.
fn abandon(error: Error, staging: &Staging, journal: &Journal<'_>, plan: &ExportPlan) -> Error {
    let (finished, shards) = (journal.count(), plan.shards.len());
    let kept = || staging.dir.clone();
    // Publishing takes the journal away first; if that failed, it is wanted back.
    if finished > 0 && staging.dir.exists() {
        let _ = journal.start();
    }
    match error {
        Error::Interrupted { .. } if finished > 0 => Error::Interrupted { kept: Some(kept()), finished, shards },
        Error::Io { .. } if finished > 0 => Error::Stopped { cause: Box::new(error), kept: kept(), finished, shards },
        error => {
            staging.remove();
            error
        }
    }
}

type Files = BTreeMap<String, (u64, Hex)>;

/// Fills the staging directory with every file of the output, and publishes it.
fn fill(
    plan: &ExportPlan,
    how: &Run<'_>,
    staging: &Staging,
    journal: &Journal<'_>,
    finished: &BTreeMap<String, Hex>,
) -> Result<(Files, Timings)> {
    staging.clear(|name| finished.contains_key(name) || (name == JOURNAL && !finished.is_empty()))?;
    let done: u64 = plan.shards.iter().filter(|s| finished.contains_key(&s.name)).map(Shard::len).sum();
    staging.check_space(plan.disk_bytes().saturating_sub(done))?;
    journal.start()?;
    for (part, _) in plan.shards.iter().enumerate().filter(|(_, s)| finished.contains_key(&s.name)) {
        how.progress.advance(part, plan.shards[part].len());
        how.progress.finish(part);
    }
    how.progress.phase("writing");
    let shards: Vec<(usize, &Shard)> =
        plan.shards.iter().enumerate().filter(|(_, s)| !finished.contains_key(&s.name)).collect();
    let names = inputs_in_order(plan);
    let tensors = names.iter().map(|name| plan.base.tensors[*name].bytes());
    let mut inputs: Vec<Input<'_>> = tensors.map(|bytes| Input { bytes, hasher: Hasher::blake3 }).collect();
    inputs.extend(plan.adapters.iter().map(|a| Input { bytes: a.file.bytes(), hasher: Hasher::sha256 }));
    let job = Job {
        shards: shards.clone(),
        inputs,
        directory: &staging.dir,
        jobs: how.jobs,
        overflow: plan.options.overflow,
        vector: how.vector,
        cancel: how.cancel,
        progress: how.progress,
        finished: &|shard, digest| journal.finished(&shards[shard].1.name, digest),
    };
    let streamed = stream::run(&job)?;
    for file in plan.base.files.iter().chain(plan.adapters.iter().map(|adapter| &adapter.file)) {
        file.check_unchanged()?;
    }
    let mut files = Files::new();
    let fresh = shards.iter().map(|(_, s)| *s).zip(streamed.shards);
    let kept = plan.shards.iter().filter_map(|s| Some((s, finished.get(&s.name)?.clone())));
    files.extend(fresh.chain(kept).map(|(shard, digest)| (shard.name.clone(), (shard.len(), digest))));
    write_companions(plan, staging, &mut files)?;
    let (base, weights) = streamed.inputs.split_at(names.len());
    let digests = Digests {
        files: files.clone(),
        base: names.iter().map(|name| (*name).to_owned()).zip(base.iter().cloned()).collect(),
        base_config: plan.base.config.as_ref().map(|config| sha256(config.text().as_bytes())),
        adapters: digest_adapters(plan, weights)?,
    };
    let text = manifest::manifest(plan, &digests);
    staging.write(MANIFEST, text.as_bytes())?;
    files.insert(MANIFEST.to_owned(), (text.len() as u64, sha256(text.as_bytes())));
    let sums = manifest::checksums(&files);
    staging.write(CHECKSUMS, sums.as_bytes())?;
    files.insert(CHECKSUMS.to_owned(), (sums.len() as u64, sha256(sums.as_bytes())));
    how.progress.phase("publishing");
    staging.publish(plan.options.overwrite, JOURNAL)?;
    Ok((files, streamed.timings))
}

/// The names of all base tensors: first those that the output is made of, in its order, so that their pages are read
/// once; then those that an adapter replaces.
fn inputs_in_order(plan: &ExportPlan) -> Vec<&str> {
    let mut seen = std::collections::BTreeSet::new();
    let used = plan.shards.iter().flat_map(|s| &s.tensors).filter(|t| t.source.replaced_by.is_none());
    let used = used.map(|t| t.source.source.name());
    used.chain(plan.base.tensors.keys().map(String::as_str)).filter(|name| seen.insert(*name)).collect()
}

/// Writes config, index and the companions, and records their digests.
fn write_companions(plan: &ExportPlan, staging: &Staging, files: &mut Files) -> Result<()> {
    for companion in &plan.companions {
        files.insert(companion.name.clone(), staging.copy(&companion.path, &companion.name)?);
    }
    for (name, text) in &plan.texts {
        staging.write(name, text.as_bytes())?;
        files.insert(name.clone(), (text.len() as u64, sha256(text.as_bytes())));
    }
    Ok(())
}

fn digest_adapters(plan: &ExportPlan, weights: &[Hex]) -> Result<Vec<(Hex, Hex)>> {
    let config = |adapter: &Adapter| Ok(sha256(&read_small(&adapter.dir.join(ADAPTER_CONFIG))?));
    plan.adapters.iter().zip(weights).map(|(adapter, weights)| Ok((config(adapter)?, weights.clone()))).collect()
}
