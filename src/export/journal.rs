//! The journal of a staging directory: which shards of which plan are finished, for `--resume`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Run;
use super::plan::ExportPlan;
use super::publish::Staging;
use super::shard::Shard;
use crate::checkpoint::read_small;
use crate::digest::{Hex, digest_files, sha256};
use crate::error::{Error, Result};
use crate::progress::Silent;

/// File name of the journal.
pub(super) const JOURNAL: &str = "qft-journal.json";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Entries {
    /// Digest of the plan and of the identity of every input file.
    plan: Hex,
    /// Finished shards, by name.
    shards: BTreeMap<String, Hex>,
}

/// Records finished shards as they come.
pub(super) struct Journal<'a> {
    staging: &'a Staging,
    entries: Mutex<Entries>,
}

impl<'a> Journal<'a> {
    /// The journal of `plan`, with the shards of `finished`; not on disk before [`Self::start`].
    pub(super) fn new(staging: &'a Staging, plan: &ExportPlan, finished: &BTreeMap<String, Hex>) -> Result<Self> {
        let entries = Entries { plan: identity(plan)?, shards: finished.clone() };
        Ok(Self { staging, entries: Mutex::new(entries) })
    }

    /// Writes the journal, over the one that was there.
    pub(super) fn start(&self) -> Result<()> {
        self.save(&self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a shard that is complete and synced.
    pub(super) fn finished(&self, shard: &str, digest: &Hex) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.shards.insert(shard.to_owned(), digest.clone());
        self.save(&entries)
    }

    /// How many shards are recorded.
    pub(super) fn count(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).shards.len()
    }

    fn save(&self, entries: &Entries) -> Result<()> {
        self.staging.replace(JOURNAL, json!(entries).to_string().as_bytes())
    }
}

/// The shards that a former run of the same plan finished, by name with their digest, each checked by reading it.
/// Empty if there is no journal, or if it is of another plan or other inputs.
pub(super) fn finished_shards(staging: &Staging, plan: &ExportPlan, how: &Run<'_>) -> Result<BTreeMap<String, Hex>> {
    let read = || -> Option<Entries> { serde_json::from_slice(&read_small(&staging.dir.join(JOURNAL)).ok()?).ok() };
    let identity = identity(plan)?;
    let Some(entries) = read().filter(|entries| identity == entries.plan) else { return Ok(BTreeMap::new()) };
    let recorded: Vec<(&Shard, &Hex)> = plan
        .shards
        .iter()
        .filter_map(|shard| Some((shard, entries.shards.get(&shard.name)?)))
        .filter(|(shard, _)| fs::metadata(staging.dir.join(&shard.name)).is_ok_and(|m| m.len() == shard.len()))
        .collect();
    let files: Vec<(PathBuf, u64)> = recorded.iter().map(|(s, _)| (staging.dir.join(&s.name), s.len())).collect();
    let found = digest_files(&files, how.jobs, how.cancel, &Silent)?;
    let intact =
        recorded.into_iter().zip(found).filter(|((_, recorded), found)| found.as_ref().ok() == Some(*recorded));
    Ok(intact.map(|((shard, digest), _)| (shard.name.clone(), digest.clone())).collect())
}

/// A digest of all that decides the bytes of the shards: their headers, the settings of base and adapters, and device,
/// inode, size and time of every weight file.
fn identity(plan: &ExportPlan) -> Result<Hex> {
    let file = |path: &Path| -> Result<Value> {
        let meta = fs::metadata(path).map_err(Error::io("look at", path))?;
        Ok(json!([meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()]))
    };
    let mut inputs = vec![json!(plan.base.config.as_ref().map(|config| sha256(config.text().as_bytes())))];
    for weights in &plan.base.files {
        inputs.push(file(weights.path())?);
    }
    for adapter in &plan.adapters {
        inputs.push(file(adapter.file.path())?);
        inputs.push(file(&adapter.dir.join(crate::adapter::ADAPTER_CONFIG))?);
        inputs.push(json!(adapter.weight));
    }
    let headers: Vec<Hex> = plan.shards.iter().map(|shard| sha256(&shard.header)).collect();
    let options = json!([plan.options.overflow, env!("CARGO_PKG_VERSION")]);
    Ok(sha256(json!([inputs, headers, options]).to_string().as_bytes()))
}
