//! Directories of runs, `v<N>-<time>` as ms-swift names them, and of checkpoints in them.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result, shown};

/// The directory of the checkpoint after step `step` of a run.
pub fn checkpoint_dir(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoint-{step}"))
}

/// The step of a checkpoint's directory, if its name is one.
pub fn step_of(checkpoint: &Path) -> Option<u64> {
    let digits = checkpoint.file_name()?.to_str()?.strip_prefix("checkpoint-")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The directory of the run that a checkpoint belongs to, also where it was named from within: `checkpoint-20`, `.`.
pub fn run_of(checkpoint: &Path) -> Result<PathBuf> {
    if checkpoint.file_name().is_some() {
        match checkpoint.parent() {
            Some(run) if !run.as_os_str().is_empty() => return Ok(run.to_owned()),
            _ => return Ok(PathBuf::from(".")),
        }
    }
    let whole = checkpoint.canonicalize().map_err(Error::io("look for", checkpoint))?;
    Ok(whole.parent().unwrap_or(&whole).to_owned())
}

/// The steps of a run's checkpoints, in order.
pub(super) fn steps(run: &Path) -> Vec<u64> {
    let entries = fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut steps: Vec<u64> = entries.filter(|path| path.is_dir()).filter_map(|path| step_of(&path)).collect();
    steps.sort_unstable();
    steps
}

/// Locks the directory of a run against other processes, as long as the file lives: two that write checkpoints and records
/// there would spoil both runs.
pub fn lock(run: &Path) -> Result<File> {
    let dir = File::open(run).map_err(Error::io("open", run))?;
    // A filesystem without locks is no reason to refuse.
    if matches!(dir.try_lock(), Err(TryLockError::WouldBlock)) {
        return Err(Error::busy(
            format!("another process trains in {}", shown(run)),
            "wait until it ends, or start a separate run with another ⟦output_dir⟧",
        ));
    }
    Ok(dir)
}

/// Most runs that begin at the same time in one directory.
const ATTEMPTS: u64 = 1000;

/// Makes the directory of a new run below `output`: `v<N>-<time>`, with a number above those that are there and the
/// time in UTC, or `output` itself unless `add_version`.
pub fn new_run(output: &Path, add_version: bool, now: SystemTime) -> Result<PathBuf> {
    fs::create_dir_all(output).map_err(Error::io("create", output))?;
    if !add_version {
        return Ok(output.to_owned());
    }
    let names = fs::read_dir(output).map_err(Error::io("list", output))?.flatten();
    let newest = names.filter_map(|entry| version(entry.file_name().to_str()?)).max();
    let first = newest.map_or(0, |newest| newest.saturating_add(1));
    let time = stamp(now);
    for version in (0..ATTEMPTS).map(|more| first.saturating_add(more)) {
        let run = output.join(format!("v{version}-{time}"));
        match fs::create_dir(&run) {
            Ok(()) => return Ok(run),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create", &run)(e)),
        }
    }
    Err(Error::io("create a run in", output)(io::ErrorKind::AlreadyExists.into()))
}

/// Refuses to begin a run in `output` itself where another has left checkpoints: their steps would be mixed, and the
/// newest, which is what is kept, resumed and exported, would be the other's.
pub fn check_new(output: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(output) else { return Ok(()) };
    let Some(checkpoint) = entries.flatten().map(|entry| entry.path()).find(|path| step_of(path).is_some()) else {
        return Ok(());
    };
    Err(Error::exists(
        format!("{} exists already: a new run would mix its checkpoints with those of another", shown(&checkpoint)),
        "resume it with ⟦resume_from_checkpoint true⟧, name another ⟦output_dir⟧, or drop ⟦add_version false⟧",
    ))
}

/// The number in `v12-20250820-093000`; what follows it doesn't matter, as in ms-swift.
fn version(name: &str) -> Option<u64> {
    let rest = name.strip_prefix('v')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

/// `20250820-093000`, in UTC.
fn stamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days to dates: Hinnant, "chrono-compatible low-level date algorithms", civil_from_days. Years begin in March.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{date:02}-{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| stamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_782_399), "20000228-235959");
        assert_eq!(at(951_782_400), "20000229-000000");
        assert_eq!(at(1_755_682_200), "20250820-093000");
        assert_eq!(at(4_107_542_399), "21000228-235959");
        assert_eq!(at(4_107_542_400), "21000301-000000", "2100 has no leap day");
    }

    #[test]
    fn a_checkpoint_may_be_named_from_within_its_run() {
        assert_eq!(run_of(Path::new("a/v0/checkpoint-20/")).unwrap(), Path::new("a/v0"));
        assert_eq!(run_of(Path::new("checkpoint-20")).unwrap(), Path::new("."));
        let here = std::env::current_dir().unwrap();
        assert_eq!(run_of(Path::new(".")).unwrap(), here.canonicalize().unwrap().parent().unwrap());
    }

    #[test]
    fn each_run_has_the_next_number() {
        let output = tempfile::tempdir().unwrap();
        let out = output.path().join("a/b");
        let now = UNIX_EPOCH + Duration::from_mins(29_261_370);
        let name = |run: PathBuf| run.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name(new_run(&out, true, now).unwrap()), "v0-20250820-093000");
        assert_eq!(name(new_run(&out, true, now).unwrap()), "v1-20250820-093000");
        fs::create_dir(out.join("v41-old")).unwrap();
        fs::create_dir(out.join("values")).unwrap();
        assert_eq!(name(new_run(&out, true, now).unwrap()), "v42-20250820-093000");
        assert_eq!(new_run(&out, false, now).unwrap(), out);
        assert!(check_new(&out).is_ok() && check_new(&out.join("none")).is_ok());
        fs::create_dir(out.join("checkpoint-3")).unwrap();
        assert!(check_new(&out).unwrap_err().to_string().contains("checkpoint-3"));
    }

    #[test]
    fn a_run_is_locked_against_others_as_long_as_it_lives() {
        let run = tempfile::tempdir().unwrap();
        let held = lock(run.path()).unwrap();
        let error = lock(run.path()).unwrap_err().to_string();
        assert!(error.contains("another process trains in") && error.contains("⟦output_dir"), "{error}");
        drop(held);
        lock(run.path()).unwrap();
    }

    #[test]
    fn checkpoints_are_told_by_their_names() {
        assert_eq!(step_of(&checkpoint_dir(Path::new("run"), 20)), Some(20));
        for other in ["checkpoint-+2", "checkpoint-2-merged", ".checkpoint-2", "checkpoint-99999999999999999999"] {
            let step = step_of(Path::new(other));
            assert!(step.is_none(), "{other}");
        }
    }
}
