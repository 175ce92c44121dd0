//! The layout of the Hugging Face cache, as `huggingface_hub` has it: blobs by their `ETag`, snapshots of links into them
//! by commit, refs by revision, locks apart from all repositories.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::failure::Failure;
use super::{Id, is_part};

/// How often a lock is tried.
const LOCK_TRIES: usize = 6;

/// What the cache holds of one repository.
#[derive(Debug, Clone)]
pub(super) struct RepoCache {
    root: PathBuf,
    folder: String,
}

/// Keeps other processes from the download of one blob until it is dropped.
pub(super) struct Lock(#[allow(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl RepoCache {
    /// The part of the cache at `root` that belongs to `id`.
    pub(super) fn new(root: &Path, id: &Id) -> Self {
        Self { root: root.to_owned(), folder: format!("models--{}", id.name().replace('/', "--")) }
    }

    fn dir(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// The directory of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir().join("snapshots").join(commit)
    }

    /// The bytes of a file.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir().join("blobs").join(etag)
    }

    /// The bytes of a file that is not yet complete.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.dir().join("blobs").join(format!("{etag}.incomplete"))
    }

    fn ref_path(&self, revision: &str) -> PathBuf {
        self.dir().join("refs").join(revision)
    }

    /// The commit that `revision` stood for when it was last asked for, and the directory of its files.
    pub(super) fn find(&self, id: &Id) -> Option<(PathBuf, String)> {
        let named = fs::read_to_string(self.ref_path(id.revision())).ok().map(|commit| commit.trim().to_owned());
        let commit = match (named, id.asked()) {
            (Some(commit), _) => commit,
            (None, Some(revision)) => revision.to_owned(),
            (None, None) => only_entry(&self.dir().join("snapshots"))?,
        };
        let dir = self.snapshot(&commit);
        (is_part(&commit) && dir.is_dir()).then_some((dir, commit))
    }

    /// Takes the lock that `huggingface_hub` takes for this blob. Waits for another process, `pause`
    /// at a time.
    pub(super) fn lock(&self, etag: &str, pause: Duration) -> Result<Lock, Failure> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        let broken = Failure::disk(&path);
        let file = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| File::options().create(true).append(true).open(&path))
            .map_err(broken)?;
        for attempt in 0..LOCK_TRIES {
            if attempt > 0 {
                std::thread::sleep(pause);
            }
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) => {}
                // Some network file systems have no locks. What comes is checked in any case.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => return Ok(Lock(file)),
                Err(TryLockError::Error(e)) => return Err(Failure::disk(&path)(e)),
            }
        }
        Err(Failure::Locked)
    }

    /// Puts the blob into the snapshot of `commit` under the file's name.
    pub(super) fn link(&self, etag: &str, commit: &str, name: &str) -> Result<(), Failure> {
        let link = self.snapshot(commit).join(name);
        let up = "../".repeat(2 + name.matches('/').count());
        let made = link.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            // A link into pruned blobs would be in the way.
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &link)
        });
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && link.exists() => Ok(()),
            made => made.map_err(Failure::disk(&link)),
        }
    }

    /// Notes that `revision` stands for `commit`.
    pub(super) fn note_ref(&self, revision: &str, commit: &str) -> io::Result<()> {
        let path = self.ref_path(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|noted| noted == commit) {
            return Ok(());
        }
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        // By rename, so that nobody reads half a commit.
        let staged = path.with_file_name(format!("{commit}.{}.tmp", std::process::id()));
        fs::write(&staged, commit)?;
        fs::rename(&staged, &path)
    }
}

fn only_entry(dir: &Path) -> Option<String> {
    let mut entries = fs::read_dir(dir).ok()?.flatten();
    let (only, None) = (entries.next()?, entries.next()) else { return None };
    only.file_name().into_string().ok()
}
