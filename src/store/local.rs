//! Directories of this machine that were named by their paths.

use std::path::Path;

use super::{Located, is_part};

/// The directory at `path`, if there is one. If it is a snapshot of a Hugging Face cache, it knows its id and its commit.
pub fn directory(path: &Path) -> Option<Located> {
    path.is_dir().then(|| {
        let (repo, revision) = snapshot_of(path).unzip();
        Located { dir: path.to_owned(), repo, revision }
    })
}

/// The Hub id and the commit, if `dir` is `.../models--ORG--NAME/snapshots/COMMIT`.
fn snapshot_of(dir: &Path) -> Option<(String, String)> {
    let real = dir.canonicalize().ok()?;
    let snapshots = real.parent().filter(|p| p.ends_with("snapshots"))?;
    let repo = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    let commit = real.file_name()?.to_str().filter(|commit| is_part(commit))?;
    Some((repo.replacen("--", "/", 1), commit.to_owned()))
}
