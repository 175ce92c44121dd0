//! The journal of a staging directory: which files of which production are finished, for `--resume`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::staging::{JOURNAL, Staging};
use super::{Production, Run, Work};
use crate::checkpoint::read_small;
use crate::digest::{Hex, digest_files};
use crate::error::Result;
use crate::progress::Silent;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Entries {
    /// Digest of the plan and of the identity of every input file.
    plan: Hex,
    /// Finished files, by name.
    shards: BTreeMap<String, Hex>,
}

/// Records finished files as they come.
pub(super) struct Journal<'a> {
    staging: &'a Staging,
    entries: Mutex<Entries>,
}

impl<'a> Journal<'a> {
    /// The journal of a production, with the files of `finished`; not on disk before [`Self::start`].
    pub(super) fn new(staging: &'a Staging, identity: &Hex, finished: &BTreeMap<String, Hex>) -> Self {
        let entries = Entries { plan: identity.clone(), shards: finished.clone() };
        Self { staging, entries: Mutex::new(entries) }
    }

    /// Writes the journal, over the one that was there.
    pub(super) fn start(&self) -> Result<()> {
        self.save(&self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a file that is complete and synced.
    pub(super) fn finished(&self, file: &str, digest: &Hex) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.shards.insert(file.to_owned(), digest.clone());
        self.save(&entries)
    }

    /// How many files are recorded.
    pub(super) fn count(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).shards.len()
    }

    fn save(&self, entries: &Entries) -> Result<()> {
        self.staging.replace(JOURNAL, json!(entries).to_string().as_bytes())
    }
}

/// The files that a former run of the same production finished, by name with their digest, each checked by reading it.
/// Empty if there is no journal, or if it is of another plan or other inputs.
pub(super) fn finished_files(
    staging: &Staging,
    production: &Production<'_>,
    how: &Run<'_>,
) -> Result<BTreeMap<String, Hex>> {
    let read = || -> Option<Entries> { serde_json::from_slice(&read_small(&staging.dir().join(JOURNAL)).ok()?).ok() };
    let Some(entries) = read().filter(|entries| production.identity == entries.plan) else {
        return Ok(BTreeMap::new());
    };
    let recorded: Vec<(&dyn Work, &Hex)> = production
        .works
        .iter()
        .filter_map(|work| Some((work.as_ref(), entries.shards.get(work.name())?)))
        .filter(|(work, _)| fs::metadata(staging.dir().join(work.name())).is_ok_and(|m| m.len() == work.len()))
        .collect();
    let files: Vec<(PathBuf, u64)> =
        recorded.iter().map(|(work, _)| (staging.dir().join(work.name()), work.len())).collect();
    let found = digest_files(&files, how.jobs, how.cancel, &Silent)?;
    let intact =
        recorded.into_iter().zip(found).filter(|((_, recorded), found)| found.as_ref().ok() == Some(*recorded));
    Ok(intact.map(|((work, digest), _)| (work.name().to_owned(), digest.clone())).collect())
}
