//! Writing a checkpoint: all files beside their place, synced, then put there by one rename. A crash leaves no half
//! one.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::adapter::{card, config, entries};
use super::runs::checkpoint_dir;
use super::space::{SLACK, checkpoint_bytes};
use super::state::{Progress, SchedulerState, layout_digest, trainer_state};
use super::tensors::{self, Entry};
use super::{ARGS, CARD, OPTIMIZER, PROGRESS, SCHEDULER, TRAINER_STATE};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::digest::Hex;
use crate::error::{Error, Result, shown};
use crate::stream::Staging;
use crate::train::lora::Layout;
use crate::train::settings::Settings;

/// What a checkpoint is made of. The vectors are laid out as `layout` says.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// What was asked.
    pub settings: &'a Settings,
    /// Where each factor lies.
    pub layout: &'a Layout,
    /// Factors and magnitudes.
    pub parameters: &'a [f32],
    /// First and second moments of the optimizer; left out with `--save_only_model`.
    pub moments: Option<[&'a [f32]; 2]>,
    /// Where the run stands.
    pub progress: &'a Progress,
    /// The schedule.
    pub scheduler: &'a SchedulerState,
    /// Records of the log, as the HF Trainer writes them.
    pub history: &'a [Map<String, Value>],
}

/// What to do about a full disk. A run that is resumed goes on in its own directory, whatever the destination.
const MORE_SPACE: &str = "free some space, and resume with ⟦resume_from_checkpoint true⟧; or copy the newest \
                          checkpoint to another disk, and resume there with ⟦resume_from_checkpoint COPY⟧; for a new \
                          run, give another ⟦output_dir⟧";

/// Where the moments lie in one vector of both.
pub(super) fn moment_entries(len: usize) -> [Entry; 2] {
    [("exp_avg", 0..len), ("exp_avg_sq", len..2 * len)].map(|(name, at)| Entry {
        name: name.to_owned(),
        shape: vec![len],
        at,
    })
}

/// Writes `run/checkpoint-N/`, N being the step; one that is there is exchanged in one step. Gives its path.
pub fn write(run: &Path, snapshot: &Snapshot) -> Result<PathBuf> {
    let staging = stage(run, snapshot)?;
    staging.publish(true).inspect_err(|error| {
        if !error.has_moved() {
            staging.remove();
        }
    })?;
    Ok(checkpoint_dir(run, snapshot.progress.global_step))
}

/// `error`, where it is a full disk's, told for a run.
fn without_space(error: Error) -> Error {
    let (problem, needed, free) = match error {
        Error::NoSpace { problem, needed, free, .. } => (problem, needed, free),
        Error::Io { operation, path, cause }
            if matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            (format!("cannot {operation} {}: {cause}", shown(&path)), None, None)
        }
        error => return error,
    };
    Error::NoSpace { problem, remedy: MORE_SPACE.to_owned(), needed, free }
}

/// Writes every file beside its place.
fn stage(run: &Path, snapshot: &Snapshot) -> Result<Staging> {
    let Snapshot { settings, layout, parameters, progress, .. } = *snapshot;
    let sizes = [Some(parameters), snapshot.moments.map(|m| m[0]), snapshot.moments.map(|m| m[1])];
    if sizes.into_iter().flatten().any(|values| values.len() != layout.len) {
        return Err(Error::bug("a checkpoint's vectors don't fit its layout", "report this as a bug in qft"));
    }
    let staging = Staging::open(&checkpoint_dir(run, progress.global_step))?;
    let fill = || {
        staging.clear(|_| false)?;
        let bytes = checkpoint_bytes(layout.len, snapshot.moments.is_some());
        staging.check_space(bytes.saturating_add(SLACK))?;
        let weights = staging.dir().join(ADAPTER_WEIGHTS);
        let mut digests = BTreeMap::new();
        let digest = tensors::write(&weights, &entries(layout), parameters, &[("format", "pt")])?;
        digests.insert(ADAPTER_WEIGHTS.to_owned(), digest);
        if let Some([first, second]) = snapshot.moments {
            let digest = write_moments(&staging.dir().join(OPTIMIZER), layout, first, second)?;
            digests.insert(OPTIMIZER.to_owned(), digest);
        }
        staging.write(ADAPTER_CONFIG, config(settings, layout)?.as_bytes())?;
        staging.write(SCHEDULER, &json(snapshot.scheduler)?)?;
        let record = Record { layout: layout_digest(layout), digests, progress: progress.clone() };
        staging.write(PROGRESS, &json(&record)?)?;
        staging.write(TRAINER_STATE, trainer_state(run, settings, progress, snapshot.history).as_bytes())?;
        staging.write(ARGS, &json(&settings.args_json())?)?;
        staging.write(CARD, card(settings, progress.global_step, progress.best_metric).as_bytes())
    };
    fill().inspect_err(|_| staging.remove()).map_err(without_space)?;
    Ok(staging)
}

/// `qft_state.json`.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
pub(super) struct Record {
    /// The layout's digest.
    pub(super) layout: String,
    /// SHA-256 of the files of tensors. Checkpoints of before hold none.
    #[serde(default)]
    pub(super) digests: BTreeMap<String, Hex>,
    /// The rest.
    #[serde(flatten)]
    pub(super) progress: Progress,
}

fn write_moments(path: &Path, layout: &Layout, first: &[f32], second: &[f32]) -> Result<Hex> {
    let metadata = [("format", "pt"), ("layout", &layout_digest(layout))];
    let [one, two] = moment_entries(layout.len);
    tensors::write_parts(path, &[(&one, first), (&two, second)], &metadata)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| {
        Error::bug(format!("a checkpoint's state can't be written: {e}"), "report this as a bug in qft")
    })?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;
    use crate::adapter::Adapter;
    use crate::train::checkpoint::{Resume, load_factors};
    use crate::train::lora::LoraSpec;
    use crate::train::schedule::ScheduleKind;

    /// A run of two modules after step 20.
    pub(crate) struct Case {
        pub(crate) settings: Settings,
        pub(crate) layout: Layout,
        pub(crate) parameters: Vec<f32>,
        pub(crate) progress: Progress,
        pub(crate) scheduler: SchedulerState,
        pub(crate) history: Vec<Map<String, Value>>,
    }

    impl Case {
        pub(crate) fn new(use_dora: bool) -> Self {
            let settings = Settings {
                model: "org/base".to_owned(),
                dataset: vec!["d.jsonl".to_owned()],
                lora_rank: 4,
                use_dora,
                ..Settings::default()
            };
            let mut layout = Layout::new(LoraSpec { magnitudes: use_dora, ..settings.lora_spec() });
            let name = |part: &str| format!("model.layers.0.self_attn.{part}");
            layout.stack(6, &[(name("q_proj"), 10, true), (name("k_proj"), 2, false), (name("v_proj"), 2, true)]);
            let parameters = (0..layout.len).map(|i| (i as f32 - 50.0) / 64.0).collect();
            let progress = Progress {
                global_step: 20,
                optimizer_steps: 19,
                max_steps: 100,
                micro_steps: 320,
                epoch: 1,
                position: 40,
                epoch_len: 160,
                seed: 42,
                data_seed: 42,
                world: 1,
                accumulation: 16,
                data_fingerprint: "abc".to_owned(),
                base_fingerprint: "def".to_owned(),
                skipped: 1,
                skipped_in_a_row: 0,
                best_metric: Some(1.5),
                best_step: Some(10),
                tokens: 12345,
                unlogged_steps: 3,
                unlogged_loss: 1.0 / 3.0,
                device: "cpu in f32".to_owned(),
                branch: 0,
                branched_at: 0,
                evaluation_due: false,
            };
            let scheduler =
                SchedulerState { kind: ScheduleKind::Cosine, total_steps: 100, ..SchedulerState::default() };
            let record = serde_json::json!({"epoch": 0.5, "loss": 2.25, "step": 20});
            let history = vec![record.as_object().unwrap().clone()];
            Self { settings, layout, parameters, progress, scheduler, history }
        }

        pub(crate) fn write(&self, run: &Path) -> PathBuf {
            let second: Vec<f32> = self.parameters.iter().map(|p| p * p).collect();
            write(run, &self.snapshot(&second)).unwrap()
        }

        pub(crate) fn snapshot<'a>(&'a self, second: &'a [f32]) -> Snapshot<'a> {
            Snapshot {
                settings: &self.settings,
                layout: &self.layout,
                parameters: &self.parameters,
                moments: Some([&self.parameters, second]),
                progress: &self.progress,
                scheduler: &self.scheduler,
                history: &self.history,
            }
        }

        pub(crate) fn resume(&self, dir: &Path) -> Result<Resume> {
            Resume::open(dir, &self.settings, &self.layout, &self.progress)
        }
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit() {
        for dora in [false, true] {
            let run = tempfile::tempdir().unwrap();
            let case = Case::new(dora);
            let dir = case.write(run.path());
            assert_eq!(dir, run.path().join("checkpoint-20"));
            let back = case.resume(&dir).unwrap();
            assert_eq!((&back.parameters, &back.progress), (&case.parameters, &case.progress));
            assert_eq!(back.moments.first, case.parameters);
            assert_eq!(back.moments.second[..1], [case.parameters[0] * case.parameters[0]]);
            assert_eq!((&back.history, &back.scheduler, back.notes.len()), (&case.history, &case.scheduler, 0));
            assert_eq!(load_factors(&dir, &case.layout).unwrap(), case.parameters);
            assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1, "nothing is left beside it");
        }
    }

    #[test]
    fn export_takes_it_for_peft_s() {
        let run = tempfile::tempdir().unwrap();
        let case = Case::new(false);
        let adapter = Adapter::open(&case.write(run.path()), 1.0).unwrap();
        assert_eq!(adapter.config.scale("model.layers.0.self_attn.q_proj", 1.0), (4, 8.0));
        assert_eq!(adapter.config.base_model.as_deref(), Some("org/base"));
        assert_eq!(adapter.config.target_modules, ["q_proj", "v_proj"]);
        assert!(adapter.config.unknown.is_empty() && !adapter.config.experts_in_out());
        let shapes: Vec<_> = adapter.file.tensors().map(|t| (t.name().to_owned(), t.shape().to_vec())).collect();
        let name =
            |module: &str, factor: &str| format!("base_model.model.model.layers.0.self_attn.{module}.{factor}.weight");
        assert_eq!(shapes[0], (name("q_proj", "lora_A"), vec![4, 6]));
        assert_eq!(shapes[3], (name("v_proj", "lora_B"), vec![2, 4]));
        assert_eq!((shapes.len(), &adapter.file.header().metadata["format"]), (4, &"pt".to_owned()));
    }

    #[test]
    fn the_trainer_s_state_has_the_trainer_s_form() {
        let run = tempfile::tempdir().unwrap();
        let case = Case::new(false);
        let text = fs::read_to_string(case.write(run.path()).join(TRAINER_STATE)).unwrap();
        let state: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let keys: Vec<&String> = state.keys().collect();
        assert!(keys.is_sorted() && keys.len() == 20, "{keys:?}");
        assert_eq!((&state["epoch"], &state["best_metric"]), (&1.25.into(), &1.5.into()));
        assert_eq!(state["best_model_checkpoint"], run.path().join("checkpoint-10").to_str().unwrap());
        assert_eq!(state["log_history"][0]["loss"], 2.25);
    }

    /// A crash before the rename: the place is empty, or holds what it did, and the next write succeeds.
    #[test]
    fn a_crash_leaves_no_half_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let mut case = Case::new(false);
        let second = vec![0.0; case.layout.len];
        let staged = stage(run.path(), &case.snapshot(&second)).unwrap();
        assert!(!run.path().join("checkpoint-20").exists());
        assert!(crate::adapter::newest_checkpoint(run.path()).is_err(), "a staging directory is not a checkpoint");
        fs::write(staged.dir().join("half"), "x").unwrap();
        drop(staged);
        let dir = case.write(run.path());
        assert!(!dir.join("half").exists() && case.resume(&dir).is_ok());
        case.parameters[0] = 9.0;
        let moments = vec![0.0; case.layout.len];
        drop(stage(run.path(), &case.snapshot(&moments)).unwrap());
        assert_ne!(case.resume(&dir).unwrap().parameters, case.parameters, "the old one stays until the rename");
        case.write(run.path());
        assert_eq!(case.resume(&dir).unwrap().parameters, case.parameters);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
    }

    #[test]
    fn without_the_optimizer_it_is_smaller_and_can_not_be_resumed() {
        let run = tempfile::tempdir().unwrap();
        let case = Case::new(false);
        let second = vec![0.0; case.layout.len];
        let dir = write(run.path(), &Snapshot { moments: None, ..case.snapshot(&second) }).unwrap();
        assert!(!dir.join(OPTIMIZER).exists());
        assert!(case.resume(&dir).unwrap_err().to_string().contains("⟦resume_only_model"));
        assert!(load_factors(&dir, &case.layout).is_ok());
        let short = Snapshot { parameters: &second[1..], ..case.snapshot(&second) };
        assert!(write(run.path(), &short).is_err());
    }

    #[test]
    fn the_card_quotes_strange_names() {
        let settings = Settings { model: "./a: b\n- c".to_owned(), ..Settings::default() };
        let card = card(&settings, 5, None);
        assert!(card.contains("base_model: \"./a: b\\n- c\"\n") && !card.contains("\n- c\n"), "{card}");
    }
}
