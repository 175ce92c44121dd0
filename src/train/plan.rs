//! The plan of a run: everything that can be decided, and refused, before a device is opened.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::base::fingerprint;
use super::checkpoint::{Progress, Resume, Space, check_new, find_adapter, find_resumed, load_factors, run_of};
use super::facts::Facts;
use super::log::{Report, TrainProgress, Unwatched};
use super::lora::{Layout, initial};
use super::prepare::{DataSummary, Prepared};
use super::schedule::{Schedule, warmup_steps};
use super::settings::{Settings, When, every};
use super::trainer::State;
use crate::arch::Spec;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, shown};
use crate::model::LayerAdapters;

/// The highest rank: above any model's width, and safe to multiply by its sizes.
const MOST_RANK: u64 = 1 << 15;

/// Most parameters of an adapter: with their state, 32 GiB.
const MOST_PARAMETERS: usize = 1 << 31;

/// What planning is given beside the settings. Nothing here changes what is trained, but `world`.
#[derive(Clone, Copy)]
pub struct Preparing<'p> {
    /// Processes that train together.
    pub world: u64,
    /// Threads that tokenize.
    pub jobs: usize,
    /// Set from outside to stop.
    pub cancel: &'p AtomicBool,
    /// Who watches.
    pub progress: &'p dyn TrainProgress,
}

impl Default for Preparing<'static> {
    /// One process, a thread a core, nobody who stops it or watches.
    fn default() -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        Self { world: 1, jobs, cancel: &NEVER, progress: &Unwatched }
    }
}

/// Set by nobody.
pub(super) static NEVER: AtomicBool = AtomicBool::new(false);

/// What will happen.
pub struct TrainPlan {
    /// What was asked.
    pub settings: Settings,
    /// The base.
    pub base: Checkpoint,
    /// Its sizes.
    pub spec: Spec,
    /// The adapter's layout.
    pub layout: Layout,
    /// The adapters of each layer.
    pub adapters: Vec<LayerAdapters>,
    /// The data.
    pub data: Prepared,
    /// The learning rate.
    pub schedule: Schedule,
    /// Where reports go.
    pub reports: Vec<Report>,
    /// Where the run stands at its beginning.
    pub progress: Progress,
    /// Parameters and moments at its beginning. Fresh magnitudes are filled in once the base is on the device.
    pub state: State,
    /// Whether the magnitudes are fresh.
    pub fresh: bool,
    /// The run's directory, if it goes on in one that is there.
    pub run: Option<PathBuf>,
    /// What its checkpoints take, and what their disk has.
    pub space: Space,
    /// Records of the log so far.
    pub history: Vec<Map<String, Value>>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl TrainPlan {
    /// Plans a run of `settings`, which are [checked](Settings::checked) first, on the base in `dir`: reads and tokenizes the
    /// data, and finds the checkpoint that the run goes on from. Opens no device.
    ///
    /// # Errors
    /// Whatever can be told before the first step: settings that don't fit the model, a model or data that can't be
    /// trained on or read, a disk without free space for a checkpoint.
    pub fn new(settings: Settings, dir: &Path, how: &Preparing<'_>) -> Result<Self> {
        let Preparing { world, jobs, cancel, progress } = *how;
        let mut settings = settings.checked()?;
        let base = Checkpoint::open(dir)?;
        let spec = Spec::read(&base)?;
        let mut notes = settings.notes.clone();
        notes.extend(base.warnings.iter().cloned());
        notes.extend(settings.agree(spec.model_type)?);
        let reports = Report::parse(&settings.report_to)?;
        let targets = settings.targets()?;
        if settings.lora_rank > MOST_RANK {
            return Err(Error::unsupported(
                format!("⟦lora_rank {}⟧ is more than qft trains", settings.lora_rank),
                format!("choose one up to {MOST_RANK}: more than the width of a layer adds nothing"),
            ));
        }
        let (layout, adapters) = Layout::of(&spec, settings.lora_spec(), |path| targets.adapt(path));
        if layout.len > MOST_PARAMETERS {
            return Err(Error::unsupported(
                format!("the adapter has {} parameters, more than qft trains", layout.len),
                "lower ⟦lora_rank⟧, or adapt fewer modules with ⟦target_modules⟧",
            ));
        }
        let (all, _) = Layout::of(&spec, settings.lora_spec(), |_| true);
        targets.check(all.modules.iter().map(|module| module.name.as_str()))?;
        let data = Prepared::new(&settings, dir, &spec, jobs, cancel, progress)?;
        let facts = Facts::new(dir, spec.model_type, &settings)?;
        settings.found = facts.args;
        notes.extend(facts.notes);
        notes.extend(data.notes.iter().cloned());
        let longest = data.train.longest_sample().max(data.held_out.longest_sample());
        if let Some(window) = spec.window.filter(|window| *window < longest) {
            return Err(Error::unsupported(
                format!(
                    "the model attends to {window} tokens at most, and rows are longer, which qft does not support"
                ),
                format!("set ⟦max_length {window}⟧"),
            ));
        }
        let accumulation = settings.accumulation(world);
        let rows = data.train.rows.len() as u64;
        let rows_of_a_step = settings.rows_of_a_step(world, accumulation);
        let max_steps = max_steps(&settings, rows, rows_of_a_step);
        let warmup_steps = warmup_steps(max_steps, settings.warmup_steps, settings.warmup_ratio)?;
        let kind = settings.lr_scheduler_type;
        let schedule = Schedule { kind, warmup_steps, total_steps: max_steps, peak: settings.learning_rate };
        let beginning = Progress {
            max_steps,
            epoch_len: rows,
            seed: settings.seed,
            data_seed: settings.data_seed,
            world,
            accumulation,
            data_fingerprint: data.fingerprint.clone(),
            base_fingerprint: fingerprint(&base),
            ..Progress::default()
        };
        let mut plan = Self {
            state: State::default(),
            progress: beginning,
            fresh: false,
            run: None,
            space: Space::default(),
            history: Vec::new(),
            settings,
            base,
            spec,
            layout,
            adapters,
            data,
            schedule,
            reports,
            notes,
        };
        plan.begin()?;
        if plan.run.is_none() && !plan.settings.add_version {
            check_new(&plan.settings.output_dir())?;
        }
        let moments = !plan.settings.save_only_model;
        let saves = plan.saves();
        plan.space = Space::new(&plan.destination(), plan.layout.len, moments, saves, plan.settings.save_total_limit)?;
        plan.notes.extend(plan.space.note());
        Ok(plan)
    }

    /// The directory in which checkpoints come to lie, or that of the run in which they do.
    pub fn destination(&self) -> PathBuf {
        self.run.clone().unwrap_or_else(|| self.settings.output_dir())
    }

    /// How many checkpoints the steps that are left write, the last one's among them.
    fn saves(&self) -> u64 {
        let Progress { max_steps, global_step, epoch_len, .. } = self.progress;
        let left = max_steps.saturating_sub(global_step);
        match self.settings.save_strategy() {
            When::Never => 1,
            When::Epoch => left.saturating_mul(self.rows_of_a_step()).div_ceil(epoch_len.max(1)),
            When::Steps(steps) => left / every(steps, max_steps) + 1,
        }
    }

    /// Decides what the factors begin with: a checkpoint, another adapter, or nothing.
    fn begin(&mut self) -> Result<()> {
        let settings = &self.settings;
        if let Some(dir) = find_adapter(settings)? {
            self.state = State::new(load_factors(&dir, &self.layout)?);
            return Ok(());
        }
        let Some(spec) = &settings.resume_from_checkpoint else {
            self.state = State::new(initial(&self.layout, settings.seed));
            self.fresh = true;
            return Ok(());
        };
        let dir = find_resumed(spec, &settings.output_dir())?;
        let resume = Resume::open(&dir, settings, &self.layout, &self.progress)?;
        self.notes.extend(resume.notes);
        self.state = State {
            parameters: resume.parameters,
            first: resume.moments.first,
            second: resume.moments.second,
            updates: resume.progress.optimizer_steps,
            micro_batches: resume.progress.micro_steps,
        };
        let beginning = std::mem::replace(&mut self.progress, resume.progress);
        self.progress.max_steps = beginning.max_steps;
        self.progress.base_fingerprint.clone_from(&beginning.base_fingerprint);
        let (step, last) = (self.progress.global_step, self.progress.max_steps);
        if step >= last {
            self.notes.push(format!(
                "nothing is left to do: {} is after step {step} of {last}; raise ⟦num_train_epochs⟧ or ⟦max_steps⟧",
                shown(&dir)
            ));
        }
        if settings.ignore_data_skip {
            let Progress { data_seed, world, accumulation, data_fingerprint, epoch_len, .. } = beginning;
            self.progress = Progress {
                data_seed,
                world,
                accumulation,
                data_fingerprint,
                epoch_len,
                position: 0,
                ..self.progress.clone()
            };
        }
        self.history = resume.history;
        self.run = Some(run_of(&dir)?);
        Ok(())
    }

    /// Rows of an optimizer step, of all ranks.
    pub fn rows_of_a_step(&self) -> u64 {
        self.settings.rows_of_a_step(self.progress.world, self.progress.accumulation)
    }

    /// What every rank of a run must have in common: settings but for the device, data and modules.
    pub fn digest(&self) -> [u8; 32] {
        let mut settings = self.settings.args_json();
        settings.remove("device");
        let factors: Vec<u8> = self.state.parameters.iter().flat_map(|value| value.to_le_bytes()).collect();
        let common = json!({
            "qft": env!("CARGO_PKG_VERSION"),
            "settings": settings,
            "factors": crate::digest::sha256(&factors),
            "data": self.data.fingerprint,
            "base": self.progress.base_fingerprint,
            "step": self.progress.global_step,
        });
        Sha256::digest(common.to_string()).into()
    }

    /// The plan in figures.
    pub fn summary(&self) -> TrainSummary<'_> {
        TrainSummary {
            settings: self.settings.args_json(),
            base: &self.base.dir,
            model_type: self.spec.model_type,
            modules: self.layout.modules.len(),
            trained_parameters: self.layout.len,
            data: self.data.summary(),
            rows_of_a_step: self.rows_of_a_step(),
            max_steps: self.progress.max_steps,
            first_step: self.progress.global_step,
            warmup_steps: self.schedule.warmup_steps,
            output_dir: self.settings.output_dir(),
            checkpoints: self.space,
            notes: &self.notes,
        }
    }
}

/// A plan in figures.
#[derive(Debug, Clone, Serialize)]
pub struct TrainSummary<'p> {
    /// Every setting, as args.json will have them.
    pub settings: Map<String, Value>,
    /// Directory of the base.
    pub base: &'p Path,
    /// `model_type` of its config.json.
    pub model_type: &'static str,
    /// Linear modules that get factors.
    pub modules: usize,
    /// Values of all factors and magnitudes.
    pub trained_parameters: usize,
    /// What is read.
    pub data: DataSummary<'p>,
    /// Rows of an optimizer step, of all ranks.
    pub rows_of_a_step: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Steps that are done already, where a run is resumed.
    pub first_step: u64,
    /// Steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// Where runs are kept.
    pub output_dir: PathBuf,
    /// What the checkpoints take.
    pub checkpoints: Space,
    /// What the user should know.
    pub notes: &'p [String],
}

/// Optimizer steps of a run: as the HF Trainer counts them, the last step of an epoch may be short.
fn max_steps(settings: &Settings, rows: u64, rows_of_a_step: u64) -> u64 {
    if let Some(steps) = settings.max_steps {
        return steps;
    }
    let steps = rows.div_ceil(rows_of_a_step.max(1)).max(1);
    #[expect(clippy::cast_sign_loss, reason = "epochs are above zero")]
    let all = (settings.num_train_epochs * steps as f64).ceil() as u64;
    all.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_as_the_trainer_does() {
        let steps = |epochs, rows, of_a_step| {
            max_steps(&Settings { num_train_epochs: epochs, ..Settings::default() }, rows, of_a_step)
        };
        assert_eq!(steps(1.0, 64, 32), 2);
        assert_eq!(steps(1.0, 65, 32), 3);
        assert_eq!(steps(3.0, 5, 32), 3);
        assert_eq!(steps(0.5, 100, 10), 5);
        assert_eq!(max_steps(&Settings { max_steps: Some(7), ..Settings::default() }, 64, 32), 7);
    }
}
