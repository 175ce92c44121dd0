//! Putting what is staged in place: a directory by one rename or exchange; several files by renames that are taken back if
//! one of them fails, or, by the next run, if a crash came between them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::staging::{JOURNAL, Staging, name_beside, parent, sync_dir};
use crate::error::{Error, Result, shown};
use crate::files::read_small;

/// File name of the record of files that are being put in place.
pub(super) const RECORD: &str = "qft-publishing.json";
/// Where in the staging directory the old files lie until the new ones are in place.
pub(super) const DISPLACED: &str = "qft-displaced";

/// What a file is known by beside its name, wherever it lies: its length, and when it was written (seconds and
/// nanoseconds). A rename keeps both, and so do filesystems whose inodes have other numbers after they were mounted
/// again.
type Identity = (u64, i64, i64);

/// Files that are being put in place, the first of them last: once it is there, all are.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    files: Vec<(String, Identity)>,
}

impl Record {
    /// The record in a staging directory; an empty one if there is none, or if it is not qft's: that names files alone.
    fn of(dir: &Path) -> Self {
        let read = || -> Option<Self> { serde_json::from_slice(&read_small(&dir.join(RECORD)).ok()?).ok() };
        let is_name = |name: &str| Path::new(name).file_name().is_some_and(|last| last == name);
        read().filter(|record| record.files.iter().all(|(name, _)| is_name(name))).unwrap_or_default()
    }

    /// Whether the files were not all put in place in `parent`: the first is not there.
    fn is_halfway(&self, parent: &Path) -> bool {
        self.files.first().is_some_and(|file| !is_in_place(parent, file))
    }

    /// Those that are in place in `parent`.
    fn placed(&self, parent: &Path) -> impl Iterator<Item = &str> {
        self.files.iter().filter(|file| is_in_place(parent, file)).map(|(name, _)| name.as_str())
    }
}

fn is_in_place(parent: &Path, (name, id): &(String, Identity)) -> bool {
    identity(&parent.join(name)).ok() == Some(*id)
}

/// What an interrupted run left of several files that were being put in place: the next one takes it back.
#[derive(Debug, Default)]
pub(super) struct Halfway {
    /// New files that are there, and will not be.
    pub(super) placed: BTreeSet<String>,
    /// Old files that are not there, and will be.
    pub(super) displaced: BTreeSet<String>,
}

impl Halfway {
    /// What there is of it beside the file `out`.
    pub(super) fn beside(out: &Path) -> Self {
        let dir = name_beside(out, "staging");
        let record = Record::of(&dir);
        if !record.is_halfway(parent(out)) {
            return Self::default();
        }
        let placed = record.placed(parent(out)).map(str::to_owned).collect();
        Self { placed, displaced: names_in(&dir.join(DISPLACED)).unwrap_or_default() }
    }
}

/// Where a directory lies while another takes its place, on filesystems that can't exchange the two in one step.
pub(super) fn aside(destination: &Path) -> PathBuf {
    name_beside(destination, "old")
}

impl Staging {
    /// Removes the journal and syncs what is left.
    fn seal(&self) -> Result<()> {
        let journal = self.dir.join(JOURNAL);
        match fs::remove_file(&journal) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &journal)(e)),
            _ => self.sync(),
        }
    }

    /// Puts the directory in place of its destination, without the journal: by a rename, or, where something is there and
    /// may be overwritten, by an exchange after which the old content is deleted.
    pub(crate) fn publish(&self, overwrite: bool) -> Result<()> {
        self.seal()?;
        match fs::rename(&self.dir, &self.destination) {
            Ok(()) => self.settled(&self.dir, |_| Ok(())),
            Err(e)
                if overwrite && matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) =>
            {
                let old = self.exchange()?;
                self.settled(&old, |old| fs::remove_dir_all(old))
            }
            Err(e) => Err(Error::io("publish", &self.destination)(e)),
        }
    }

    /// Exchanges the directory and its destination, and says where the old one lies then. Where the system can't in one
    /// step, moves the old one aside first: if a crash comes before the new one is there, the next run puts it back.
    fn exchange(&self) -> Result<PathBuf> {
        let (new, destination) = (&self.dir, &self.destination);
        let failed = || Error::io("publish", destination);
        #[cfg(any(target_os = "linux", target_os = "macos"))]
        {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            match renameat_with(CWD, new, CWD, destination, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(new.clone()),
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
                Err(e) => return Err(failed()(e.into())),
            }
        }
        let aside = aside(destination);
        fs::rename(destination, &aside).map_err(failed())?;
        match fs::rename(new, destination).map_err(failed()) {
            Ok(()) => Ok(aside),
            Err(error) => match fs::rename(&aside, destination) {
                Ok(()) => Err(error),
                Err(second) => Err(self.halfway(&error, &second.to_string(), aside)),
            },
        }
    }

    /// Puts the files `names` beside each other where the destination, the path of one of them, is to be; the first one
    /// last, since that is the one that a reader opens. With `overwrite`, what is there of them and of `older`, which are
    /// names of files too, goes: it is moved aside first, and deleted once all are in place. A reader never meets a model
    /// of old and new parts. On an error, and by the next run after a crash, all is moved back.
    pub(crate) fn publish_files(&self, names: &[&str], older: &[String], overwrite: bool) -> Result<()> {
        self.sync()?;
        let parent = parent(&self.destination);
        let replaced = names.iter().copied().chain(older.iter().map(String::as_str)).filter(|_| overwrite);
        let replaced: BTreeSet<&str> =
            replaced.filter(|name| fs::symlink_metadata(parent.join(name)).is_ok()).collect();
        match names {
            [name] if replaced.iter().all(|old| old == name) => {
                let (from, to) = (self.dir.join(name), parent.join(name));
                let moved = if overwrite { fs::rename(from, &to) } else { move_new(&from, &to) };
                moved.map_err(Error::io("publish", &to))?;
            }
            _ => {
                self.record(names)?;
                if let Err(error) = self.move_all(names, &replaced) {
                    return Err(match self.take_back() {
                        Ok(()) => error,
                        Err(second) => self.halfway(&error, &second.split().0, self.dir.clone()),
                    });
                }
            }
        }
        self.settled(&self.dir, |dir| fs::remove_dir_all(dir))
    }

    /// Writes down which files will be moved: from here on a crash is told from files of others.
    fn record(&self, names: &[&str]) -> Result<()> {
        let of = |name: &&str| {
            let path = self.dir.join(name);
            Ok(((*name).to_owned(), identity(&path).map_err(Error::io("look at", &path))?))
        };
        let record = Record { files: names.iter().map(of).collect::<Result<_>>()? };
        let aside = self.dir.join(DISPLACED);
        fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
        self.replace(RECORD, json!(record).to_string().as_bytes())?;
        sync_dir(&self.dir)
    }

    /// Moves the old files aside, the first parts of models before others, and the new ones in place.
    fn move_all(&self, names: &[&str], replaced: &BTreeSet<&str>) -> Result<()> {
        let parent = parent(&self.destination);
        for name in replaced {
            let place = parent.join(name);
            match fs::rename(&place, self.dir.join(DISPLACED).join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("move aside", &place)(e)),
                _ => {}
            }
        }
        for (before, name) in names.iter().enumerate().rev() {
            // Whoever meets the first meets all.
            if before == 0 {
                sync_dir(parent)?;
            }
            let to = parent.join(name);
            move_new(&self.dir.join(name), &to).map_err(Error::io("publish", &to))?;
        }
        Ok(())
    }

    /// Takes back what was moved by a run that did not come to its end, this one or one before: first the new files, then
    /// the old ones, the first parts of models last. What others have put there since stays.
    pub(super) fn take_back(&self) -> Result<()> {
        let parent = parent(&self.destination);
        let aside = aside(&self.destination);
        if fs::symlink_metadata(&aside).is_ok_and(|meta| meta.is_dir()) {
            match fs::symlink_metadata(&self.destination) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    fs::rename(&aside, &self.destination).map_err(Error::io("move back", &aside))?;
                }
                _ => fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?,
            }
        }
        let record = Record::of(&self.dir);
        if !record.is_halfway(parent) {
            return Ok(());
        }
        for name in record.placed(parent) {
            let place = parent.join(name);
            fs::rename(&place, self.dir.join(name)).map_err(Error::io("move back", &place))?;
        }
        let displaced = self.dir.join(DISPLACED);
        for name in names_in(&displaced).map_err(Error::io("list", &displaced))?.iter().rev() {
            let old = displaced.join(name);
            match move_new(&old, &parent.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("move back", &old)(e)),
                _ => {}
            }
        }
        // All is where it was. The record stays until the disk knows.
        if sync_dir(parent).is_ok() {
            let _ = fs::remove_file(self.dir.join(RECORD));
        }
        // What others' files keep from its place stays in it, and goes with the staging directory.
        let _ = fs::remove_dir(displaced);
        Ok(())
    }

    /// `error` came while files were moved, and `second` while they were moved back; those that were not lie in `kept`.
    fn halfway(&self, error: &Error, second: &str, kept: PathBuf) -> Error {
        Error::Halfway { out: self.destination.clone(), problem: error.split().0, second: second.to_owned(), kept }
    }

    /// What follows once the output is in place, where an error is none of the output: syncing its parent, and `clear`,
    /// which deletes what is left in `rest`.
    fn settled(&self, rest: &Path, clear: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        let in_place = |problem, remedy: &str| {
            Err(Error::InPlace { out: self.destination.clone(), problem, remedy: remedy.to_owned() })
        };
        if let Err(Error::Io { path, cause, .. }) = sync_dir(parent(&self.destination)) {
            // Until the disk has the new names, the old content stays.
            let remedy = match fs::symlink_metadata(rest) {
                Ok(_) => format!("check the disk, then the output, then delete {}", shown(rest)),
                Err(_) => "check the disk, then the output".to_owned(),
            };
            return in_place(format!("{} can't be synced: {cause}", shown(&path)), &remedy);
        }
        match clear(rest) {
            Ok(()) => Ok(()),
            Err(e) => in_place(
                format!("the leftovers in {} can't be deleted: {e}", shown(rest)),
                "delete that directory; no command has to be run again",
            ),
        }
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::symlink_metadata(path).map(|meta| (meta.len(), meta.mtime(), meta.mtime_nsec()))
}

/// The names in a directory; none if it is not there.
pub(super) fn names_in(dir: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        entries => entries?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(out: &Path, files: &[(&str, &str)]) -> Staging {
        let staging = Staging::open_file(out).unwrap();
        staging.clear(|_| false).unwrap();
        files.iter().for_each(|(name, text)| staging.write(name, text.as_bytes()).unwrap());
        staging
    }

    /// Name and text of every file, hidden ones too.
    fn files(dir: &Path) -> Vec<(String, String)> {
        let names = names_in(dir).unwrap();
        names.into_iter().map(|name| (name.clone(), fs::read_to_string(dir.join(name)).unwrap_or_default())).collect()
    }

    fn texts(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
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

    /// No reader may miss a finished output, or continue with what it replaced.
    #[test]
    fn what_fails_once_the_output_is_in_place_says_so() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("out");
        let open = |text: &str| {
            let staging = Staging::open(&out).unwrap();
            staging.write("config.json", text.as_bytes()).unwrap();
            staging
        };
        open("old").publish(false).unwrap();
        let staging = open("new");
        let old = staging.exchange().unwrap();
        let error = staging.settled(&old, |_| Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert!(matches!(error, Error::InPlace { .. }));
        let text = error.to_string();
        for part in
            ["out is complete and in place", ".out.qft-staging can't be deleted", "no command has to be run again"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn publishes_files_beside_each_other() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("a.gguf");
        let publish = |text: &str, older: &[String], overwrite| {
            staged(&out, &[("a.gguf", text), ("b.gguf", text)]).publish_files(&["a.gguf", "b.gguf"], older, overwrite)
        };
        publish("1", &[], false).unwrap();
        assert!(publish("2", &[], false).is_err(), "something appeared after the plan was made");
        assert_eq!(files(tmp.path())[1..], texts(&[("a.gguf", "1"), ("b.gguf", "1")]));
        publish("3", &[], true).unwrap();
        assert_eq!(files(tmp.path()), texts(&[("a.gguf", "3"), ("b.gguf", "3")]), "nothing else is left");
        fs::write(tmp.path().join("c.gguf"), "0").unwrap();
        publish("4", &["c.gguf".to_owned(), "none".to_owned()], true).unwrap();
        assert_eq!(files(tmp.path()), texts(&[("a.gguf", "4"), ("b.gguf", "4")]), "what is older goes");
    }

    /// A part whose place is taken by a directory can't be put there: all is as it was.
    #[test]
    fn files_that_can_not_be_published_are_taken_back() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("a.gguf");
        let old = [("a.gguf", "old"), ("b.gguf", "old"), ("old.gguf", "old")];
        old.iter().for_each(|(name, text)| fs::write(tmp.path().join(name), text).unwrap());
        let staging = staged(&out, &[("a.gguf", "new"), ("b.gguf", "new")]);
        let names = ["a.gguf", "b.gguf"];
        // What appears where the first was, between the move of the others and its own.
        staging.record(&names).unwrap();
        let replaced = BTreeSet::from(["a.gguf", "b.gguf", "old.gguf"]);
        fs::remove_file(staging.dir().join("a.gguf")).unwrap();
        let error = staging.move_all(&names, &replaced).unwrap_err();
        assert!(matches!(error, Error::Io { operation: "publish", .. }), "{error}");
        assert_eq!(files(tmp.path())[1..], texts(&[("b.gguf", "new")]), "it failed halfway");
        // Where even that fails, it is told, and the next run takes it back.
        fs::create_dir(staging.dir().join("b.gguf")).unwrap();
        let second = staging.take_back().unwrap_err();
        let text = staging.halfway(&error, &second.split().0, staging.dir.clone()).to_string();
        for part in [
            "a.gguf is neither the old one nor the new one: cannot publish",
            "not in place are in",
            ".a.gguf.qft-staging",
        ] {
            assert!(text.contains(part) && !text.contains("untouched"), "{text}");
        }
        fs::remove_dir(staging.dir().join("b.gguf")).unwrap();
        staging.take_back().unwrap();
        assert_eq!(files(tmp.path())[1..], texts(&old));
        assert_eq!(files(staging.dir()), texts(&[("b.gguf", "new")]));
    }

    /// As a crash leaves it: known to a plan, and taken back when the next run begins.
    #[test]
    fn the_next_run_takes_back_what_a_crash_left_halfway() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("a.gguf");
        fs::write(tmp.path().join("c.gguf"), "old").unwrap();
        let names = ["a.gguf", "b.gguf"];
        let staging = staged(&out, &[("a.gguf", "new"), ("b.gguf", "new")]);
        staging.record(&names).unwrap();
        fs::rename(tmp.path().join("c.gguf"), staging.dir().join(DISPLACED).join("c.gguf")).unwrap();
        fs::rename(staging.dir().join("b.gguf"), tmp.path().join("b.gguf")).unwrap();
        drop(staging);
        let left = Halfway::beside(&out);
        assert_eq!((left.placed.len(), left.displaced.len()), (1, 1));
        assert!(left.placed.contains("b.gguf") && left.displaced.contains("c.gguf"));
        // Somebody's own file is not ours, whatever its name.
        let mine = tempfile::tempdir().unwrap();
        fs::rename(tmp.path().join("b.gguf"), mine.path().join("b.gguf")).unwrap();
        fs::write(tmp.path().join("b.gguf"), "mine").unwrap();
        assert!(Halfway::beside(&out).placed.is_empty());
        fs::rename(mine.path().join("b.gguf"), tmp.path().join("b.gguf")).unwrap();
        let staging = Staging::open_file(&out).unwrap();
        assert_eq!(files(tmp.path())[1..], texts(&[("c.gguf", "old")]));
        assert_eq!(files(staging.dir()), texts(&[("a.gguf", "new"), ("b.gguf", "new")]));
        // Nor is it by a name that leads elsewhere.
        let elsewhere = mine.path().join("b.gguf");
        fs::write(&elsewhere, "mine").unwrap();
        let record =
            Record { files: ["a.gguf", "../b.gguf"].map(|n| (n.to_owned(), identity(&elsewhere).unwrap())).into() };
        fs::write(staging.dir().join(RECORD), json!(record).to_string()).unwrap();
        assert!(Record::of(staging.dir()).files.is_empty());
        // Once the first is there, all are, and nothing comes back, at whatever moment its remains were deleted.
        staging.record(&names).unwrap();
        staging.move_all(&names, &BTreeSet::from(["c.gguf"])).unwrap();
        drop(staging);
        assert!(Halfway::beside(&out).displaced.is_empty());
        fs::remove_file(tmp.path().join(".a.gguf.qft-staging").join(RECORD)).unwrap();
        assert!(Halfway::beside(&out).displaced.is_empty());
        let staging = Staging::open_file(&out).unwrap();
        assert_eq!(files(tmp.path())[1..], texts(&[("a.gguf", "new"), ("b.gguf", "new")]));
        staging.remove();
    }

    /// Where two directories can't be exchanged in one step.
    #[test]
    fn a_directory_that_was_moved_aside_comes_back() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("out");
        let old = aside(&out);
        fs::create_dir(&old).unwrap();
        fs::write(old.join("config.json"), "old").unwrap();
        drop(Staging::open(&out).unwrap());
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "old");
        // Beside a new one, it is what was left to delete.
        fs::create_dir(&old).unwrap();
        Staging::open(&out).unwrap().remove();
        assert_eq!(files(tmp.path()), texts(&[("out", "")]));
    }
}
