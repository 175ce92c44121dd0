//! Digests: SHA-256 of files, which anyone can check with sha256sum, and BLAKE3 of the base's tensors, which costs less
//! than half and has no such tool to please; and many files at once. `tree` joins a BLAKE3 digest from pieces.

mod tree;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::Mapping;
use crate::progress::Progress;

pub(crate) use tree::chaining_value;
pub use tree::{PIECE, PieceTree};

/// A digest as lower-case hex.
pub type Hex = String;

/// The digest in hex.
pub fn hex(digest: &[u8]) -> Hex {
    use std::fmt::Write;
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of `bytes` in hex.
pub fn sha256(bytes: &[u8]) -> Hex {
    hex(&Sha256::digest(bytes))
}

/// A digest that is being fed.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    pub(crate) fn blake3() -> Self {
        Self::Blake3(Box::default())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    pub(crate) fn finish(self) -> Hex {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Blake3(hasher) => hex(hasher.finalize().as_bytes()),
        }
    }
}

/// The digest of a model: BLAKE3 over one line `<BLAKE3 of the tensor's bytes>  <dtype> <shape> <name>` a tensor,
/// sorted by name. It does not depend on how the model is sharded.
pub(crate) fn of_model<'a>(tensors: impl Iterator<Item = (&'a str, String, &'a [usize], &'a str)>) -> Hex {
    let mut lines: Vec<(&str, String)> =
        tensors.map(|(name, dtype, shape, digest)| (name, format!("{digest}  {dtype} {shape:?} {name}\n"))).collect();
    lines.sort();
    let mut hasher = Hasher::blake3();
    for (_, line) in lines {
        hasher.update(line.as_bytes());
    }
    hasher.finish()
}

/// Bytes that are digested between two checks of `cancel`.
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
    let mut hasher = Hasher::sha256();
    for chunk in file.bytes().chunks(STEP) {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        hasher.update(chunk);
        progress.advance(part, chunk.len() as u64);
    }
    Ok(Some(hasher.finish()))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    /// The test vectors of FIPS 180 and of BLAKE3's paper for the empty input, fed in pieces.
    #[test]
    fn are_the_algorithms_that_they_say() {
        let of = |mut hasher: Hasher, pieces: &[&[u8]]| {
            pieces.iter().for_each(|piece| hasher.update(piece));
            hasher.finish()
        };
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(Hasher::sha256(), &[b"a", b"", b"bc"]), sha);
        assert_eq!(sha256(b"abc"), sha);
        let blake = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(of(Hasher::blake3(), &[b"", b""]), blake);
    }

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
