//! SHA-256 of many files at once: one file a thread, stoppable, with progress.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::checkpoint::Mapping;
use crate::error::{Error, Result};
use crate::export::{Hex, hex};
use crate::progress::Progress;

/// Bytes that are digested between two looks at `cancel`.
const STEP: usize = 8 << 20;

/// Digests `files`, each given with its size, with at most `jobs` threads. The result has their order, and an error in
/// the place of a file that can't be read. An error of the whole is [`Error::Interrupted`]. Starts `progress` with one
/// part a file.
pub(crate) fn digest_files(
    files: &[(PathBuf, u64)],
    jobs: usize,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<Vec<Result<Hex>>> {
    progress.start(&files.iter().map(|(path, len)| (file_name(path), *len)).collect::<Vec<_>>());
    // The largest first: each is one chain, and the longest should not start last.
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(files[*i].1));
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::with_capacity(files.len()));
    let work = || {
        while let Some(part) = order.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let Some(digest) = digest_file(&files[part].0, part, cancel, progress).transpose() else { return };
            progress.finish(part);
            found.lock().unwrap_or_else(PoisonError::into_inner).push((part, digest));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.min(files.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if found.len() < files.len() {
        return Err(Error::Interrupted { kept: None, finished: 0, shards: 0 });
    }
    found.sort_by_key(|(part, _)| *part);
    Ok(found.into_iter().map(|(_, digest)| digest).collect())
}

/// The digest of one file, or `None` if it was cancelled.
fn digest_file(path: &Path, part: usize, cancel: &AtomicBool, progress: &dyn Progress) -> Result<Option<Hex>> {
    let file = Mapping::open(path)?;
    let mut hasher = Sha256::new();
    for chunk in file.bytes().chunks(STEP) {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        hasher.update(chunk);
        progress.advance(part, chunk.len() as u64);
    }
    Ok(Some(hex(&hasher.finalize())))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::sha256;
    use crate::progress::Silent;

    #[test]
    fn digests_come_in_order_and_a_missing_file_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            std::fs::write(dir.path().join(name), content).unwrap();
            (dir.path().join(name), content.len() as u64)
        };
        let files = [file("small", b"a"), (dir.path().join("none"), 7), file("empty", b""), file("large", b"abc")];
        for jobs in [0, 1, 9] {
            let found = digest_files(&files, jobs, &AtomicBool::new(false), &Silent).unwrap();
            let found: Vec<Option<Hex>> = found.into_iter().map(Result::ok).collect();
            assert_eq!(found, [Some(sha256(b"a")), None, Some(sha256(b"")), Some(sha256(b"abc"))], "{jobs} jobs");
        }
        let stopped = digest_files(&files, 2, &AtomicBool::new(true), &Silent);
        assert!(matches!(stopped, Err(Error::Interrupted { .. })), "{stopped:?}");
        assert!(digest_files(&[], 2, &AtomicBool::new(false), &Silent).unwrap().is_empty());
    }
}
