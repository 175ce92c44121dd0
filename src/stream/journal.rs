//! The journal of a staging directory: which files of which production are finished, for `--resume`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::staging::{JOURNAL, Staging};
use super::{Production, Run, Work};
use crate::digest::{Hex, digest_files};
use crate::error::Result;
use crate::files::read_small;
use crate::progress::Silent;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Entries {
    /// Digest of the plan and of the identity of every input file.
    plan: Hex,
    /// Finished files, by name.
    files: BTreeMap<String, Finished>,
}

/// A file that is complete and on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) digest: Hex,
    /// See [`Work::record`].
    pub(super) record: Value,
}

/// Records finished files as they come.
pub(super) struct Journal<'a> {
    staging: &'a Staging,
    entries: Mutex<Entries>,
}

impl<'a> Journal<'a> {
    /// The journal of a production, with the files of `finished`; not on disk before [`Self::start`].
    pub(super) fn new(staging: &'a Staging, identity: &Hex, finished: &BTreeMap<String, Finished>) -> Self {
        let entries = Entries { plan: identity.clone(), files: finished.clone() };
        Self { staging, entries: Mutex::new(entries) }
    }

    /// Writes the journal, over the one that was there.
    pub(super) fn start(&self) -> Result<()> {
        self.save(&self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a file that is complete and synced.
    pub(super) fn finished(&self, work: &dyn Work, digest: &Hex) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = Finished { digest: digest.clone(), record: work.record() };
        entries.files.insert(work.name().to_owned(), finished);
        self.save(&entries)
    }

    /// How many files are recorded.
    pub(super) fn count(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).files.len()
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
) -> Result<BTreeMap<String, Finished>> {
    let read = || -> Option<Entries> { serde_json::from_slice(&read_small(&staging.dir().join(JOURNAL)).ok()?).ok() };
    let Some(entries) = read().filter(|entries| production.identity == entries.plan) else {
        return Ok(BTreeMap::new());
    };
    let recorded: Vec<(&dyn Work, &Finished)> = production
        .works
        .iter()
        .filter_map(|work| Some((work.as_ref(), entries.files.get(work.name())?)))
        .filter(|(work, _)| fs::metadata(staging.dir().join(work.name())).is_ok_and(|m| m.len() == work.len()))
        .collect();
    let files: Vec<(PathBuf, u64)> =
        recorded.iter().map(|(work, _)| (staging.dir().join(work.name()), work.len())).collect();
    let found = digest_files(&files, how.jobs, how.cancel, &Silent)?;
    let intact =
        recorded.into_iter().zip(found).filter(|((_, recorded), found)| found.as_ref().ok() == Some(&recorded.digest));
    Ok(intact.map(|((work, finished), _)| (work.name().to_owned(), finished.clone())).collect())
}
