//! Deleting checkpoints beyond `--save_total_limit`: those that the run has abandoned and the oldest first, never the
//! newest or the best, never what qft did not write.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::runs::{checkpoint_dir, step_of};
use super::{ARGS, CARD, OPTIMIZER, PROGRESS, SCHEDULER, TRAINER_STATE};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Place};
use crate::error::{Error, Result, escaped, shown};

/// Everything that a checkpoint holds.
const FILES: [&str; 8] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, ARGS, CARD, OPTIMIZER, PROGRESS, SCHEDULER, TRAINER_STATE];
/// Ending of the name that a checkpoint has while it is deleted.
const GONE: &str = ".qft-gone";
/// Ending of the name that a checkpoint has while it is written; see [`crate::stream::Staging`].
const STAGING: &str = ".qft-staging";
/// Ending of the name that one has while another takes its place, where the two can't be exchanged in one step.
const OLD: &str = ".qft-old";

/// Keeps `limit` checkpoints of the run, among them the newest and the one of step `best`, as the HF Trainer does:
/// where these two are more than the limit, both stay. `None` and 0 delete nothing. Also deletes what a crash left of a
/// checkpoint that was being written or deleted. Gives a note for each that is kept because it holds files of others.
pub fn prune(run: &Path, limit: Option<u64>, best: Option<u64>) -> Result<Vec<String>> {
    let entries: Vec<PathBuf> =
        fs::read_dir(run).map_err(Error::io("list", run))?.flatten().map(|entry| entry.path()).collect();
    entries.iter().filter(|path| is_left_over(path)).for_each(|path| drop(fs::remove_dir_all(path)));
    let Some(limit) = limit.filter(|limit| *limit > 0) else { return Ok(Vec::new()) };
    let mut steps: Vec<u64> = entries
        .iter()
        .filter(|path| is_dir(path) && path.join(PROGRESS).is_file())
        .filter_map(|path| step_of(path))
        .collect();
    let places: Vec<Place> = steps.iter().map(|step| Place::of(&checkpoint_dir(run, *step))).collect();
    let mut order: Vec<(bool, u64)> =
        steps.iter().zip(&places).map(|(step, place)| (!place.is_left(*step, &places), *step)).collect();
    order.sort_unstable();
    steps = order.into_iter().map(|(_, step)| step).collect();
    let newest = steps.last().copied();
    let kept = |step: &u64| Some(*step) == newest || Some(*step) == best;
    let stay = (limit as usize).max(steps.iter().filter(|step| kept(step)).count());
    let surplus = steps.len().saturating_sub(stay);
    let mut notes = Vec::new();
    for step in steps.iter().filter(|step| !kept(step)).take(surplus) {
        let dir = checkpoint_dir(run, *step);
        match stranger(&dir)? {
            None => delete(run, &dir, *step)?,
            Some(name) => {
                notes.push(format!("{} is not deleted: qft did not write {} in it", shown(&dir), escaped(&name)));
            }
        }
    }
    Ok(notes)
}

/// Whether the path is a directory itself, not a link to one.
fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// The name of something in a checkpoint that qft did not write.
fn stranger(dir: &Path) -> Result<Option<String>> {
    let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?.flatten();
    let ours = |entry: &fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|name| FILES.contains(&name))
            && entry.file_type().is_ok_and(|t| t.is_file())
    };
    Ok(entries.into_iter().find(|entry| !ours(entry)).map(|entry| entry.file_name().to_string_lossy().into_owned()))
}

/// Hides the checkpoint by a rename, then deletes it: a crash leaves no half one under its name.
fn delete(run: &Path, dir: &Path, step: u64) -> Result<()> {
    let hidden = run.join(format!(".checkpoint-{step}{GONE}"));
    fs::rename(dir, &hidden).map_err(Error::io("rename", dir))?;
    fs::remove_dir_all(&hidden).map_err(Error::io("delete", &hidden))
}

/// Whether a crash left this: `.checkpoint-N.qft-gone`, `.checkpoint-N.qft-staging` that nobody is writing, or
/// `.checkpoint-N.qft-old` beside the one that took its place.
fn is_left_over(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let of = |ending: &str| name.strip_suffix(ending).and_then(|name| name.strip_prefix('.'));
    let is_ours = |name: &str| step_of(Path::new(name)).is_some();
    let replaced = |name: &str| is_ours(name) && path.with_file_name(name).is_dir();
    let unlocked = || File::open(path).is_ok_and(|dir| dir.try_lock().is_ok());
    is_dir(path)
        && (of(GONE).is_some_and(is_ours)
            || of(OLD).is_some_and(replaced)
            || (of(STAGING).is_some_and(is_ours) && unlocked()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Staging;

    fn make(run: &Path, steps: &[u64]) {
        for step in steps {
            let dir = checkpoint_dir(run, *step);
            fs::create_dir_all(&dir).unwrap();
            FILES.iter().for_each(|name| fs::write(dir.join(name), "").unwrap());
        }
    }

    fn left(run: &Path) -> Vec<u64> {
        let mut steps: Vec<u64> =
            fs::read_dir(run).unwrap().filter_map(|entry| step_of(&entry.unwrap().path())).collect();
        steps.sort_unstable();
        steps
    }

    #[test]
    fn the_newest_and_the_best_stay() {
        let run = tempfile::tempdir().unwrap();
        let pruned = |steps: &[u64], limit: Option<u64>, best: Option<u64>| {
            make(run.path(), steps);
            assert_eq!(prune(run.path(), limit, best).unwrap(), Vec::<String>::new());
            let left = left(run.path());
            left.iter().for_each(|step| fs::remove_dir_all(checkpoint_dir(run.path(), *step)).unwrap());
            left
        };
        assert_eq!(pruned(&[5, 10, 100, 20], Some(2), None), [20, 100], "by number, not by name");
        assert_eq!(pruned(&[5, 10, 15, 20], Some(2), Some(5)), [5, 20]);
        assert_eq!(pruned(&[5, 10, 15, 20], Some(3), Some(5)), [5, 15, 20]);
        assert_eq!(pruned(&[5, 10, 15, 20], Some(1), Some(5)), [5, 20], "the limit yields to the two");
        assert_eq!(pruned(&[5, 10, 15, 20], Some(1), Some(20)), [20]);
        assert_eq!(pruned(&[5, 10], Some(1), Some(7)), [10], "the best may be gone");
        assert_eq!(pruned(&[5, 10], None, None), [5, 10]);
        assert_eq!(pruned(&[5, 10], Some(0), None), [5, 10]);
    }

    #[test]
    fn what_the_run_has_left_behind_goes_first() {
        let run = tempfile::tempdir().unwrap();
        make(run.path(), &[10, 20, 25, 30, 40]);
        let state = checkpoint_dir(run.path(), 25).join(PROGRESS);
        fs::write(state, "{\"branch\": 1, \"branched_at\": 20}").unwrap();
        prune(run.path(), Some(4), None).unwrap();
        assert_eq!(left(run.path()), [10, 20, 25, 40]);
        prune(run.path(), Some(2), None).unwrap();
        assert_eq!(left(run.path()), [20, 25]);
        prune(run.path(), Some(1), None).unwrap();
        assert_eq!(left(run.path()), [25]);
    }

    #[test]
    fn what_qft_did_not_write_stays() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path();
        make(path, &[5, 10, 15, 20]);
        fs::write(path.join("checkpoint-5/notes.txt"), "mine").unwrap();
        fs::create_dir_all(path.join("checkpoint-10/merged")).unwrap();
        fs::create_dir(path.join("checkpoint-1")).unwrap();
        fs::write(path.join("checkpoint-1").join(ADAPTER_WEIGHTS), "PEFT's").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        make(elsewhere.path(), &[3]);
        std::os::unix::fs::symlink(elsewhere.path().join("checkpoint-3"), path.join("checkpoint-3")).unwrap();
        let notes = prune(path, Some(1), None).unwrap();
        assert_eq!(left(path), [1, 3, 5, 10, 20]);
        assert!(notes.len() == 2 && notes[0].contains("notes.txt") && notes[1].contains("merged"), "{notes:?}");
        assert_eq!(left(elsewhere.path()), [3]);
    }

    #[test]
    fn what_a_crash_left_is_deleted_unless_it_is_being_written() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path();
        for name in
            [".checkpoint-5.qft-gone", ".checkpoint-6.qft-staging", ".mine.qft-gone", ".checkpoint-x.qft-staging"]
        {
            fs::create_dir_all(path.join(name).join("inside")).unwrap();
        }
        [".checkpoint-8.qft-old", ".checkpoint-9.qft-old", "checkpoint-9"]
            .iter()
            .for_each(|name| fs::create_dir(path.join(name)).unwrap());
        let busy = Staging::open(&checkpoint_dir(path, 7)).unwrap();
        prune(path, None, None).unwrap();
        let mut names: Vec<String> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        // The old one whose place is empty is all that there is of it.
        let stay = [
            ".checkpoint-7.qft-staging",
            ".checkpoint-8.qft-old",
            ".checkpoint-x.qft-staging",
            ".mine.qft-gone",
            "checkpoint-9",
        ];
        assert_eq!(names, stay);
        drop(busy);
    }
}
