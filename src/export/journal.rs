//! The journal of a staging directory: which shards of which plan are finished, for `--resume`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::digest::{Hex, sha256};
use super::plan::ExportPlan;
use super::publish::Staging;
use crate::checkpoint::{Mapping, read_small};
use crate::error::{Error, Result};

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
    /// Starts the journal of `plan`, taking over the shards of `finished`.
    pub(super) fn start(staging: &'a Staging, plan: &ExportPlan, finished: &BTreeMap<String, Hex>) -> Result<Self> {
        let entries = Entries { plan: identity(plan)?, shards: finished.clone() };
        let journal = Self { staging, entries: Mutex::new(entries) };
        journal.save(&journal.entries.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(journal)
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
pub(super) fn finished_shards(staging: &Staging, plan: &ExportPlan) -> BTreeMap<String, Hex> {
    let read = || -> Option<Entries> { serde_json::from_slice(&read_small(&staging.dir.join(JOURNAL)).ok()?).ok() };
    let Some(entries) = read().filter(|entries| identity(plan).is_ok_and(|id| id == entries.plan)) else {
        return BTreeMap::new();
    };
    std::thread::scope(|scope| {
        let check = |shard: &super::shard::Shard| {
            let recorded = entries.shards.get(&shard.name)?;
            let file = Mapping::open(&staging.dir.join(&shard.name)).ok()?;
            let intact = file.bytes().len() as u64 == shard.len() && sha256(file.bytes()) == *recorded;
            intact.then(|| (shard.name.clone(), recorded.clone()))
        };
        let threads: Vec<_> = plan.shards.iter().map(|shard| scope.spawn(move || check(shard))).collect();
        threads.into_iter().filter_map(|t| t.join().ok().flatten()).collect()
    })
}

/// A digest of all that decides the bytes of the shards: their headers and sources, the adapters' settings, and size,
/// time and inode of every input file.
fn identity(plan: &ExportPlan) -> Result<Hex> {
    let file = |path: &Path| -> Result<Value> {
        let meta = fs::metadata(path).map_err(Error::io("look at", path))?;
        Ok(json!([path, meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()]))
    };
    let mut inputs = Vec::new();
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
