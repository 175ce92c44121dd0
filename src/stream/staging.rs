//! Staging and publishing: output is written beside its destination, synced, and put in place by one rename. Nothing
//! here knows what the files hold.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::foreign::{Overwrite, foreign};
use crate::checkpoint::open_regular;
use crate::digest::{Hasher, Hex};
use crate::error::{Error, Result, escaped, shown};

/// File name of the journal: what a staging directory holds that its destination will not.
pub(super) const JOURNAL: &str = "qft-journal.json";

/// The directory that an export writes to until it is published. Holds an exclusive lock while it lives.
#[derive(Debug)]
pub(crate) struct Staging {
    /// The directory.
    dir: PathBuf,
    destination: PathBuf,
    /// The lock: on the directory itself, so that a crash leaves none behind.
    _lock: File,
}

/// Files that a refusal lists; the rest is counted.
const LISTED: usize = 8;

/// Refuses destinations that would lose something: files, directories with content (unless `overwrite`, and even then
/// those that hold an input or do not look like a model, and by it alone those that hold more than a model). Returns what
/// is deleted that is no part of a model.
pub(crate) fn check_destination(out: &Path, inputs: &[&Path], overwrite: Overwrite) -> Result<Vec<String>> {
    let refuse = |problem: String, remedy: &str| Err(Error::refused(problem, remedy));
    let nothing = Ok(Vec::new());
    let other = "choose another destination with --out";
    if out.file_name().is_none() {
        return refuse(format!("{} can't be a destination", shown(out)), other);
    }
    let real = resolved(out);
    for input in inputs {
        let input = resolved(input);
        if input.starts_with(&real) {
            return refuse(format!("the destination {} holds the input {}", shown(out), shown(&input)), other);
        }
    }
    match fs::metadata(out) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(out).is_ok() => {
            refuse(format!("{} is a link to nothing", shown(out)), "remove the link, or choose another --out")
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => nothing,
        Err(e) => Err(Error::io("look at", out)(e)),
        Ok(meta) if !meta.is_dir() => refuse(format!("{} is there, and is no directory", shown(out)), other),
        Ok(_) if is_empty(out)? => nothing,
        Ok(_) if !looks_like_model(out) => refuse(
            format!("{} is there, is not empty, and does not look like a model, so it is not exchanged", shown(out)),
            other,
        ),
        Ok(_) if !overwrite.is_allowed() => refuse(
            format!("{} is there and not empty", shown(out)),
            "choose another --out, or exchange it with --overwrite",
        ),
        Ok(_) => {
            let others = foreign(out)?;
            if others.is_empty() || overwrite == Overwrite::All {
                return Ok(others.into_iter().collect());
            }
            let mut listed = others.iter().take(LISTED).map(|name| escaped(name)).collect::<Vec<_>>().join(", ");
            if others.len() > LISTED {
                listed += &format!(" and {} more", others.len() - LISTED);
            }
            refuse(
                format!("{} holds what is no part of the model there: {listed}", shown(out)),
                "move it away, choose another --out, or delete it with the model by --overwrite --delete-others",
            )
        }
    }
}

/// Whether `dir` holds a file that a model has: what may be deleted when it is exchanged.
fn looks_like_model(dir: &Path) -> bool {
    let signs = ["config.json", "qft-manifest.json", "model.safetensors", "model.safetensors.index.json"];
    signs.iter().any(|name| dir.join(name).exists())
}

/// Refuses a destination file that is there, unless `overwrite`, and even then one that is an input or no file.
pub(crate) fn check_file(out: &Path, inputs: &[&Path], overwrite: bool) -> Result<()> {
    check_file_of("--out", out, inputs, overwrite)
}

/// [`check_file`] for a destination that `flag` names.
pub(crate) fn check_file_of(flag: &str, out: &Path, inputs: &[&Path], overwrite: bool) -> Result<()> {
    let refuse = |problem: String, remedy: &str| Err(Error::refused(problem, remedy));
    let other = &format!("choose another destination with {flag}");
    if out.file_name().is_none() {
        return refuse(format!("{} can't be a destination", shown(out)), other);
    }
    let real = resolved(out);
    if inputs.iter().any(|input| resolved(input).starts_with(&real)) {
        return refuse(format!("the destination {} is an input, or holds it", shown(out)), other);
    }
    match fs::symlink_metadata(out) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", out)(e)),
        Ok(meta) if !meta.is_file() => refuse(format!("{} is there, and is no file", shown(out)), other),
        Ok(_) if overwrite => Ok(()),
        Ok(_) => refuse(
            format!("{} is there", shown(out)),
            &format!("choose another {flag}, or replace it with --overwrite"),
        ),
    }
}

/// `path` with links resolved as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => resolved(parent).join(name),
        (_, Some(name)) => fs::canonicalize(".").map_or_else(|_| path.to_owned(), |dir| dir.join(name)),
        _ => path.to_owned(),
    }
}

fn is_empty(dir: &Path) -> Result<bool> {
    Ok(fs::read_dir(dir).map_err(Error::io("list", dir))?.next().is_none())
}

impl Staging {
    /// The directory to write to.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the staging directory of `destination`, new or left over; its content is the caller's to judge.
    pub(crate) fn open(destination: &Path) -> Result<Self> {
        // A link to a directory stays a link: the directory that it names is exchanged.
        Self::at(fs::canonicalize(destination).unwrap_or_else(|_| destination.to_owned()))
    }

    /// Opens the staging directory of the file `destination` and of those beside it; a link there is replaced.
    pub(crate) fn open_file(destination: &Path) -> Result<Self> {
        Self::at(destination.to_owned())
    }

    fn at(destination: PathBuf) -> Result<Self> {
        let name = destination.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let parent = parent(&destination);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let dir = parent.join(format!(".{name}.qft-staging"));
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create", &dir)(e)),
            _ => {}
        }
        if fs::symlink_metadata(&dir).map_err(Error::io("look at", &dir))?.file_type().is_symlink() {
            return Err(Error::refused(format!("{} is a link", shown(&dir)), "remove it, then run again"));
        }
        let lock = File::open(&dir).map_err(Error::io("open", &dir))?;
        // A filesystem without locks is no reason to refuse.
        if matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Err(Error::refused(
                format!("another qft is writing to {}", shown(&destination)),
                "wait for it, or choose another destination",
            ));
        }
        Ok(Self { dir, destination, _lock: lock })
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
        let stat =
            rustix::fs::statvfs(&self.dir).map_err(|e| Error::io("ask for the free space of", &self.dir)(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= needed {
            return Ok(());
        }
        Err(Error::refused(
            format!(
                "{} needs {} and its disk has {} free",
                shown(&self.destination),
                crate::size::ByteSize(needed),
                crate::size::ByteSize(free)
            ),
            "free some space, or give a destination on another disk with --out",
        ))
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
    fn sync(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let path = entry.map_err(Error::io("list", &self.dir))?.path();
            if path.is_dir() {
                sync_dir(&path)?;
            }
        }
        sync_dir(&self.dir)
    }

    /// Removes the journal and syncs what is left.
    fn seal(&self) -> Result<()> {
        let journal = self.dir.join(JOURNAL);
        match fs::remove_file(&journal) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &journal)(e)),
            _ => self.sync(),
        }
    }

    /// Puts the files `names` beside each other where the destination, the path of one of them, is to be; one by one, the
    /// first one last, since that is the one that a reader opens. Replaces what is there only with `overwrite`; an error
    /// then takes back what was put in place. Of several, the old first one goes before all: a crash in between leaves a
    /// model that lacks its first part, never one of old and new parts.
    pub(crate) fn publish_files(&self, names: &[&str], overwrite: bool) -> Result<()> {
        self.sync()?;
        let parent = parent(&self.destination);
        if let (true, [first, _, ..]) = (overwrite, names) {
            match fs::remove_file(parent.join(first)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &parent.join(first))(e));
                }
                _ => sync_dir(parent)?,
            }
        }
        for (done, name) in names.iter().rev().enumerate() {
            let (from, to) = (self.dir.join(name), parent.join(name));
            let moved = if overwrite { fs::rename(from, &to) } else { move_new(&from, &to) };
            if let Err(error) = moved {
                if !overwrite {
                    let back = |name: &&str| fs::rename(parent.join(name), self.dir.join(name));
                    let _ = names.iter().rev().take(done).try_for_each(back);
                }
                return Err(Error::io("publish", &to)(error));
            }
        }
        self.settled(|| fs::remove_dir_all(&self.dir))
    }

    /// Puts the directory in place of its destination, without the journal: by a rename, or, where something is there and
    /// may be overwritten, by an exchange after which the old content is deleted.
    pub(crate) fn publish(&self, overwrite: bool) -> Result<()> {
        self.seal()?;
        let io_error = || Error::io("publish", &self.destination);
        match fs::rename(&self.dir, &self.destination) {
            Ok(()) => self.settled(|| Ok(())),
            Err(e)
                if overwrite && matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) =>
            {
                exchange(&self.dir, &self.destination).map_err(io_error())?;
                self.settled(|| fs::remove_dir_all(&self.dir))
            }
            Err(e) => Err(io_error()(e)),
        }
    }

    /// What follows once the output is in place, where an error is none of the output: syncing its parent, and `clear`,
    /// which deletes what the staging directory still holds.
    fn settled(&self, clear: impl FnOnce() -> io::Result<()>) -> Result<()> {
        let in_place = |problem, remedy: &str| {
            Err(Error::InPlace { out: self.destination.clone(), problem, remedy: remedy.to_owned() })
        };
        if let Err(Error::Io { path, cause, .. }) = sync_dir(parent(&self.destination)) {
            return in_place(format!("{} can't be synced: {cause}", shown(&path)), "check the disk, then the output");
        }
        match clear() {
            Ok(()) => Ok(()),
            Err(e) => in_place(
                format!("the leftovers in {} can't be deleted: {e}", shown(&self.dir)),
                "delete that directory; nothing has to be run again",
            ),
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

/// Renames a file where nothing is.
fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Exchanges two directories in one step. Where the system can't, moves the old one aside first: then a crash between
/// the two renames leaves the old content at `<destination>.qft-old`.
fn exchange(new: &Path, destination: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, new, CWD, destination, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut aside = destination.as_os_str().to_owned();
    aside.push(".qft-old");
    let aside = PathBuf::from(aside);
    fs::rename(destination, &aside)?;
    if let Err(error) = fs::rename(new, destination) {
        fs::rename(&aside, destination)?;
        return Err(error);
    }
    fs::rename(&aside, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(dir: &Path, name: &str, content: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), content).unwrap();
        path
    }

    #[test]
    fn refuses_what_would_lose_something() {
        let tmp = tempfile::tempdir().unwrap();
        let base = model(tmp.path(), "base", "{}");
        let check = |out: &Path, overwrite| {
            let overwrite = if overwrite { Overwrite::Model } else { Overwrite::No };
            check_destination(out, &[&base], overwrite).map_err(|e| e.to_string())
        };
        let nothing = Ok(Vec::new());
        assert_eq!(check(&tmp.path().join("new/deeper"), false), nothing);
        for overwrite in [false, true] {
            assert!(check(&base, overwrite).unwrap_err().contains("holds the input"));
            assert!(check(tmp.path(), overwrite).unwrap_err().contains("holds the input"));
            assert!(check(&base.join("config.json"), overwrite).unwrap_err().contains("no directory"));
        }
        let other = model(tmp.path(), "other", "old");
        assert!(check(&other, false).unwrap_err().contains("--overwrite"));
        assert_eq!(check(&other, true), nothing);
        fs::write(other.join("README.md"), "a card").unwrap();
        let refused = check(&other, true).unwrap_err();
        assert!(refused.contains("README.md") && refused.contains("--delete-others"), "{refused}");
        assert_eq!(check_destination(&other, &[], Overwrite::All).unwrap(), ["README.md"]);
        let home = tmp.path().join("home");
        fs::create_dir(&home).unwrap();
        assert_eq!(check(&home, false), nothing, "an empty directory is as good as none");
        fs::write(home.join("thesis.tex"), "").unwrap();
        assert!(check(&home, true).unwrap_err().contains("does not look like a model"));
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&base, &link).unwrap();
        assert!(check(&link, true).unwrap_err().contains("holds the input"));
    }

    #[test]
    fn publishes_by_rename_and_by_exchange() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("out");
        let publish = |text: &str, overwrite| {
            let staging = Staging::open(&out).unwrap();
            staging.write("config.json", text.as_bytes()).unwrap();
            staging.publish(overwrite)
        };
        publish("1", false).unwrap();
        assert!(publish("2", false).is_err(), "something appeared after the plan was made");
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "1");
        publish("3", true).unwrap();
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "3");
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    /// Nobody may take a finished output for none, or go on with what it replaced.
    #[test]
    fn what_fails_once_the_output_is_in_place_says_so() {
        let tmp = tempfile::tempdir().unwrap();
        let out = model(tmp.path(), "out", "old");
        let staging = Staging::open(&out).unwrap();
        staging.write("config.json", b"new").unwrap();
        exchange(staging.dir(), &out).unwrap();
        let error = staging.settled(|| Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert!(matches!(error, Error::InPlace { .. }));
        let text = error.to_string();
        for part in ["out is complete and in place", ".out.qft-staging can't be deleted", "nothing has to be run again"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn publishes_files_beside_each_other() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("a.gguf");
        let publish = |text: &str, overwrite| {
            let staging = Staging::open(&out).unwrap();
            ["a.gguf", "b.gguf"].iter().for_each(|name| staging.write(name, text.as_bytes()).unwrap());
            staging.publish_files(&["a.gguf", "b.gguf"], overwrite)
        };
        assert_eq!(check_file(&out, &[], false).map_err(|e| e.to_string()), Ok(()));
        publish("1", false).unwrap();
        assert!(publish("2", false).is_err(), "something appeared after the plan was made");
        assert!(check_file(&out, &[], false).is_err() && check_file(&out, &[&out], true).is_err());
        assert!(check_file(tmp.path(), &[], true).is_err(), "no file");
        publish("3", true).unwrap();
        assert_eq!(fs::read_to_string(tmp.path().join("b.gguf")).unwrap(), "3");
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2, "nothing else is left");
    }

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
