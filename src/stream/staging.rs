//! The staging directory: output is written beside its destination and synced there; `publish` puts it in place. Nothing
//! here knows what the files hold.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::digest::{Hasher, Hex};
use crate::error::{Error, Result, shown};
use crate::files::open_regular;
use crate::size::ByteSize;

/// File name of the journal: what a staging directory holds that its destination will not.
pub(super) const JOURNAL: &str = "qft-journal.json";

/// The directory that an export writes to until it is published. Holds an exclusive lock while it lives.
#[derive(Debug)]
pub(crate) struct Staging {
    /// The directory.
    pub(super) dir: PathBuf,
    pub(super) destination: PathBuf,
    /// The lock: on the directory itself, so that a crash leaves none behind.
    _lock: File,
}

impl Staging {
    /// The directory to write to.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the staging directory of `destination`, new or left over; its content is the caller's to judge. What a crash
    /// left halfway of putting it in place is taken back.
    pub(crate) fn open(destination: &Path) -> Result<Self> {
        // A link to a directory stays a link: the directory that it names is exchanged.
        Self::at(fs::canonicalize(destination).unwrap_or_else(|_| destination.to_owned()))
    }

    /// Opens the staging directory of the file `destination` and of those beside it; a link there is replaced.
    pub(crate) fn open_file(destination: &Path) -> Result<Self> {
        Self::at(destination.to_owned())
    }

    fn at(destination: PathBuf) -> Result<Self> {
        let parent = parent(&destination);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let dir = name_beside(&destination, "staging");
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create", &dir)(e)),
            _ => {}
        }
        if fs::symlink_metadata(&dir).map_err(Error::io("look at", &dir))?.file_type().is_symlink() {
            return Err(Error::exists(format!("{} is a link", shown(&dir)), "remove it, then run again"));
        }
        let lock = File::open(&dir).map_err(Error::io("open", &dir))?;
        // A filesystem without locks is no reason to refuse.
        if matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Err(Error::busy(
                format!("another qft is writing to {}", shown(&destination)),
                "wait for it, or choose another destination",
            ));
        }
        let staging = Self { dir, destination, _lock: lock };
        staging.take_back()?;
        Ok(staging)
    }

    /// Deletes what a former run left here, but for the files that `keep` names.
    pub(crate) fn clear(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            if keep(&entry.file_name().to_string_lossy()) {
                continue;
            }
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// Deletes the whole directory. Best effort: it is called on the way out of an error.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Refuses if the disk has less than `needed` bytes free.
    pub(crate) fn check_space(&self, needed: u64) -> Result<()> {
        let free = free_space(&self.dir)?;
        if free >= needed {
            return Ok(());
        }
        let (out, size, rest) = (shown(&self.destination), ByteSize(needed), ByteSize(free));
        Err(Error::NoSpace {
            problem: format!("{out} requires {size}, and its disk has {rest} free"),
            remedy: "free some space, or give a destination on another disk with ⟦out⟧".to_owned(),
            needed: Some(needed),
            free: Some(free),
        })
    }

    /// Copies a file into the directory, syncs it, and returns its size and digest.
    pub(crate) fn copy(&self, from: &Path, name: &str) -> Result<(u64, Hex)> {
        let path = self.dir.join(name);
        let parent = parent(&path);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let (mut source, _) = open_regular(from)?;
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        let (mut hasher, mut size, mut buffer) = (Hasher::sha256(), 0, vec![0; 1 << 16]);
        loop {
            let read = source.read(&mut buffer).map_err(Error::io("read", from))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            size += read as u64;
            file.write_all(&buffer[..read]).map_err(Error::io("write", &path))?;
        }
        file.sync_all().map_err(Error::io("sync", &path))?;
        Ok((size, hasher.finish()))
    }

    /// Writes a small file, in a directory of its own if the name has one, and syncs it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let parent = parent(&path);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }

    /// Replaces a small file so that a crash leaves either the old one or the new one.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = format!("{name}.new");
        self.write(&temporary, bytes)?;
        fs::rename(self.dir.join(temporary), self.dir.join(name)).map_err(Error::io("rename", &self.dir.join(name)))
    }

    /// Syncs the directory and those in it; their files are synced as they are written.
    pub(super) fn sync(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let path = entry.map_err(Error::io("list", &self.dir))?.path();
            if path.is_dir() {
                sync_dir(&path)?;
            }
        }
        sync_dir(&self.dir)
    }
}

/// The hidden name beside `path` that qft uses for a purpose: `.NAME.qft-PURPOSE`.
pub(super) fn name_beside(path: &Path, purpose: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parent(path).join(format!(".{name}.qft-{purpose}"))
}

/// The directory that `path` lies in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes that are free on the disk of `path`, or of the nearest directory above it that is there.
pub(crate) fn free_space(path: &Path) -> Result<u64> {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = whole.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there).map_err(|e| Error::io("ask for the free space of", there)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Brings the names in a directory to the disk.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_export_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("out");
        let first = Staging::open(&out).unwrap();
        assert!(Staging::open(&out).unwrap_err().to_string().contains("another qft"));
        drop(first);
        Staging::open(&out).unwrap().remove();
    }
}
