//! Where a run stands: qft's own record, the schedule, and the HF Trainer's `trainer_state.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::runs::checkpoint_dir;
use crate::digest::{Hex, sha256};
use crate::train::lora::Layout;
use crate::train::schedule::ScheduleKind;
use crate::train::settings::{Settings, every};

/// What a run needs to go on as if it had not stopped, beside the parameters and the moments. Draws are functions of
/// seeds and counters, so that these are all the state of chance that there is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps that were done, skipped ones included.
    pub global_step: u64,
    /// Of these, the steps that the optimizer took: the number in its bias correction.
    pub optimizer_steps: u64,
    /// Steps of the whole run.
    pub max_steps: u64,
    /// Micro-batches that were done on a rank: what dropout masks count by.
    pub micro_steps: u64,
    /// The epoch that is under way, from 0.
    pub epoch: u64,
    /// Rows or packs of its order that were done, of all ranks.
    pub position: u64,
    /// Rows or packs of an epoch.
    pub epoch_len: u64,
    /// `--seed`.
    pub seed: u64,
    /// `--data_seed`.
    pub data_seed: u64,
    /// Ranks.
    pub world: u64,
    /// Micro-batches of a step on a rank.
    pub accumulation: u64,
    /// What tells the encoded and packed rows from others.
    pub data_fingerprint: String,
    /// What tells the base's weights from others.
    #[serde(default)]
    pub base_fingerprint: String,
    /// Steps that the guard skipped.
    pub skipped: u64,
    /// Of these, those since the last that was taken.
    pub skipped_in_a_row: u32,
    /// The lowest held-out loss.
    pub best_metric: Option<f64>,
    /// The step of that.
    pub best_step: Option<u64>,
    /// Tokens that were seen, of all ranks.
    pub tokens: u64,
    /// Steps that were taken since the last record of the loss, and the sum of their losses: the next record is of them
    /// too, whoever writes it.
    #[serde(default)]
    pub unlogged_steps: u64,
    /// See above.
    #[serde(default)]
    pub unlogged_loss: f64,
    /// What the last step was computed on, and in which type.
    #[serde(default)]
    pub device: String,
    /// How often the run has gone on from a checkpoint that had later ones, which then no longer belong to it.
    #[serde(default)]
    pub branch: u64,
    /// The step of the last such checkpoint.
    #[serde(default)]
    pub branched_at: u64,
    /// Whether the held-out data is still to be evaluated after this step: the evaluation was interrupted.
    #[serde(default)]
    pub evaluation_due: bool,
}

/// More than anything that a run counts, and far enough from the end of u64 to go on counting.
const MOST: u64 = 1 << 56;

impl Progress {
    /// Epochs that are done, with the share of the one under way.
    pub fn epochs(&self) -> f64 {
        self.epoch as f64 + if self.epoch_len > 0 { self.position as f64 / self.epoch_len as f64 } else { 0.0 }
    }

    /// What can't be in a record that qft wrote.
    pub(super) fn problem(&self) -> Option<String> {
        let counts =
            [self.micro_steps, self.epoch, self.epoch_len, self.tokens, self.global_step, self.skipped, self.branch];
        let problems = [
            (counts.into_iter().any(|count| count > MOST), "a number larger than that of any run"),
            (self.optimizer_steps > self.global_step, "more optimizer steps than steps"),
            (self.position > self.epoch_len, "a position after the end of its epoch"),
            (u64::from(self.skipped_in_a_row) > self.skipped, "more skipped steps in a row than in all"),
            (self.best_step.is_some_and(|step| step > self.global_step), "a best step that is still to come"),
            (self.unlogged_steps > self.global_step, "more steps to log than steps"),
            (!self.unlogged_loss.is_finite(), "a loss that is not a number"),
            (self.best_metric.is_some_and(|metric| !metric.is_finite()), "a best metric that is not a number"),
        ];
        problems.into_iter().find(|(is, _)| *is).map(|(_, problem)| problem.to_owned())
    }
}

/// The learning rate's schedule: what `scheduler.json` holds. It is a function of the step, so this is a record.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SchedulerState {
    /// `--lr_scheduler_type`.
    pub kind: ScheduleKind,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The highest rate.
    pub peak: f64,
    /// Steps that were done.
    pub last_step: u64,
    /// The rate of the last of them.
    pub last_rate: f64,
}

/// What tells a layout from others: a digest of every module's name and place.
pub(super) fn layout_digest(layout: &Layout) -> Hex {
    let spec = &layout.spec;
    let mut text = format!("rank {} scale {:08x} len {}\n", spec.rank, spec.scale.to_bits(), layout.len);
    for m in &layout.modules {
        text.push_str(&format!("{} {} {} {:?} {:?} {:?}\n", m.name, m.inputs, m.outputs, m.a, m.b, m.magnitude));
    }
    sha256(text.as_bytes())
}

/// `trainer_state.json` as `transformers.TrainerState.save_to_json` writes it: sorted, two spaces.
pub(super) fn trainer_state(
    run: &Path,
    settings: &Settings,
    progress: &Progress,
    history: &[Map<String, Value>],
) -> String {
    let total = progress.max_steps;
    let steps = |steps: f64| every(steps, total);
    #[expect(clippy::cast_sign_loss, reason = "settings hold a number above zero")]
    let epochs = settings.num_train_epochs.ceil() as u64;
    let best = progress.best_step.map(|step| checkpoint_dir(run, step).to_string_lossy().into_owned());
    let state = json!({
        "best_global_step": progress.best_step,
        "best_metric": progress.best_metric,
        "best_model_checkpoint": best,
        "epoch": progress.epochs(),
        "eval_steps": settings.eval_steps.map_or_else(|| steps(settings.save_steps), steps),
        "global_step": progress.global_step,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": history,
        "logging_steps": steps(settings.logging_steps),
        "max_steps": total,
        "num_input_tokens_seen": progress.tokens,
        "num_train_epochs": epochs,
        "save_steps": steps(settings.save_steps),
        "stateful_callbacks": {
            "TrainerControl": {
                "args": {
                    "should_epoch_stop": false,
                    "should_evaluate": false,
                    "should_log": false,
                    "should_save": true,
                    "should_training_stop": progress.global_step >= total,
                },
                "attributes": {},
            },
        },
        "total_flos": 0.0,
        "train_batch_size": settings.per_device_train_batch_size,
        "trial_name": null,
        "trial_params": null,
    });
    format!("{state:#}\n")
}
