//! The checkpoints that training leaves below its output directory, and which of them is the newest.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use serde::Deserialize;

use super::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH, WHOLE_MODEL, is_whole_model};
use crate::error::{Error, Result, shown};
use crate::files::read_text;

/// Where a run of qft stands, in each of its checkpoints.
pub(crate) const RUN_STATE: &str = "qft_state.json";

/// The place of a checkpoint among those of its run, which may have gone on from an earlier one than its newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Place {
    /// How often the run has done that; 0 for what is not qft's.
    #[serde(default)]
    pub(crate) branch: u64,
    /// The step that it last went on from.
    #[serde(default)]
    pub(crate) branched_at: u64,
}

impl Place {
    /// That of a checkpoint.
    pub(crate) fn of(checkpoint: &Path) -> Self {
        let text = read_text(&checkpoint.join(RUN_STATE)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Whether the run has abandoned this checkpoint, of step `step`: one of `others` is of a later branch, which
    /// began before that step.
    pub(crate) fn is_left(self, step: u64, others: &[Self]) -> bool {
        others.iter().any(|other| other.branch > self.branch && other.branched_at < step)
    }
}

/// The newest checkpoint below a training's output directory: of the run whose newest checkpoint was written last, the
/// one of its last branch with the highest number that is a complete adapter. Runs lie at most two directories below
/// `output`.
pub fn newest_checkpoint(output: &Path) -> Result<PathBuf> {
    let newest = |written: Written| -> Result<Option<PathBuf>> {
        let runs = if output.is_dir() {
            runs_below(output, 2, written).map_err(Error::io("list", output))?
        } else {
            Vec::new()
        };
        Ok(runs.into_iter().max().map(|(_, checkpoint)| checkpoint))
    };
    if let Some(checkpoint) = newest(adapter_written)? {
        return Ok(checkpoint);
    }
    let problem = format!("{} holds no checkpoint-N with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}", shown(output));
    Err(match newest(model_written)? {
        Some(model) => Error::invalid(format!("{problem}, but {}", shown(&model)), WHOLE_MODEL),
        None => Error::not_found(problem, "train first, or name the adapter with ⟦adapter⟧"),
    })
}

/// When a checkpoint was written, if it is one.
type Written = fn(&Path) -> Option<SystemTime>;

/// The newest checkpoint of each run, with the time it was written.
fn runs_below(dir: &Path, depth: usize, written: Written) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let dirs = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let (checkpoints, others): (Vec<_>, Vec<_>) = dirs.partition(|path| step(path).is_some());
    let place = |path: PathBuf| Some((Place::of(&path).branch, step(&path)?, written(&path)?, path));
    let newest = checkpoints.into_iter().filter_map(place).max();
    let mut runs: Vec<_> = newest.map(|(_, _, time, path)| (time, path)).into_iter().collect();
    if depth > 0 {
        // A directory that can't be listed, such as lost+found, holds no run of this user.
        runs.extend(others.iter().flat_map(|path| runs_below(path, depth - 1, written).unwrap_or_default()));
    }
    Ok(runs)
}

fn step(checkpoint: &Path) -> Option<u64> {
    let digits = checkpoint.file_name()?.to_str()?.strip_prefix("checkpoint-")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// When the checkpoint of a training of all weights was written.
fn model_written(checkpoint: &Path) -> Option<SystemTime> {
    is_whole_model(checkpoint).then(|| fs::metadata(checkpoint).ok()?.modified().ok())?
}

fn adapter_written(checkpoint: &Path) -> Option<SystemTime> {
    let file = |name: &str| fs::metadata(checkpoint.join(name)).ok().filter(fs::Metadata::is_file);
    let weights = file(ADAPTER_WEIGHTS).or_else(|| file(ADAPTER_WEIGHTS_TORCH))?;
    checkpoint.join(ADAPTER_CONFIG).is_file().then(|| weights.modified().ok())?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Makes a checkpoint whose weights are `age` seconds old.
    fn checkpoint(root: &Path, place: &str, age: u64) {
        let dir = root.join(place);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(ADAPTER_CONFIG), "{}").unwrap();
        let weights = dir.join(ADAPTER_WEIGHTS);
        fs::write(&weights, "").unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 - age);
        fs::File::options().write(true).open(weights).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn runs_are_chosen_by_time_and_checkpoints_by_number() {
        let root = tempfile::tempdir().unwrap();
        let newest = || newest_checkpoint(root.path()).unwrap().strip_prefix(root.path()).unwrap().to_owned();
        checkpoint(root.path(), "v9-20250101-000000/checkpoint-900", 500);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-20", 90);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-100", 100);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-100-merged", 0);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-+200", 0);
        fs::create_dir_all(root.path().join("v10-20250102-000000/checkpoint-110")).unwrap();
        fs::create_dir_all(root.path().join("v11-20250103-000000/runs")).unwrap();
        assert_eq!(newest(), Path::new("v10-20250102-000000/checkpoint-100"));
        checkpoint(root.path(), "Qwen3-8B/v0-20250104-000000/checkpoint-5", 80);
        assert_eq!(newest(), Path::new("Qwen3-8B/v0-20250104-000000/checkpoint-5"));
        checkpoint(root.path(), "checkpoint-3", 70);
        assert_eq!(newest(), Path::new("checkpoint-3"));
        checkpoint(root.path(), "a/b/c/checkpoint-9", 0);
        assert_eq!(newest(), Path::new("checkpoint-3"), "too deep to be a run of this output");
    }

    /// A run went on from checkpoint-20 although it had later ones: what it writes then is newer, whatever its number.
    #[test]
    fn what_a_run_has_left_behind_is_not_its_newest() {
        let root = tempfile::tempdir().unwrap();
        for (step, state) in
            [(20, "{}"), (30, "{\"branch\": 0}"), (40, "no JSON"), (25, "{\"branch\":1,\"branched_at\":20}")]
        {
            let place = format!("v0/checkpoint-{step}");
            // Copied in whatever order: their times say nothing.
            checkpoint(root.path(), &place, 100 - step);
            fs::write(root.path().join(place).join(RUN_STATE), state).unwrap();
        }
        assert!(newest_checkpoint(root.path()).unwrap().ends_with("v0/checkpoint-25"));
        fs::remove_dir_all(root.path().join("v0/checkpoint-25")).unwrap();
        assert!(newest_checkpoint(root.path()).unwrap().ends_with("v0/checkpoint-40"));
        let (old, new) = (Place::default(), Place { branch: 1, branched_at: 20 });
        assert_eq!([20, 21].map(|step| old.is_left(step, &[old, new])), [false, true]);
        assert!(!new.is_left(40, &[old, new]));
    }

    #[test]
    fn runs_of_one_age_are_ordered_by_name() {
        let root = tempfile::tempdir().unwrap();
        checkpoint(root.path(), "v1/checkpoint-9", 5);
        checkpoint(root.path(), "v2/checkpoint-1", 5);
        assert!(newest_checkpoint(root.path()).unwrap().ends_with("v2/checkpoint-1"));
    }

    #[test]
    fn no_checkpoint_is_refused_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("v0/checkpoint-1");
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join(ADAPTER_CONFIG), "{}").unwrap();
        for output in [root.path(), &root.path().join("none")] {
            let text = newest_checkpoint(output).unwrap_err().to_string();
            assert!(text.contains("train first, or name the adapter with ⟦adapter"), "{text}");
        }
    }
}
