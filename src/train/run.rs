//! A run, from its plan to its report: step after step, with records, evaluations and checkpoints between them.

mod card;
mod kept;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use card::{card_failed, open_card};

use super::checkpoint::{checkpoint_dir, lock, new_run};
use super::data::epoch_order;
use super::guard::{Guard, GuardCounts, Verdict};
use super::log::{Eval, Figures, Finished, Last, Logs, Moment, Record, Tick, Train, TrainProgress, Unwatched};
use super::plan::{NEVER, TrainPlan};
use super::prepare::Rows;
use super::settings::{Compute, When};
use super::trainer::{Evaluated, Recipe, Stepped, Trainer};
use crate::engine::{Backward, Batch, CpuEngine, Engine, Optimizer};
use crate::error::Result;
use crate::model::{Keep, Model};
use crate::ranks::Ranks;

/// What a run is given beside its plan.
pub struct How<'h> {
    /// Set from outside to save and stop.
    pub cancel: &'h AtomicBool,
    /// Who watches.
    pub progress: &'h dyn TrainProgress,
    /// The other processes.
    pub ranks: &'h mut dyn Ranks,
    /// Whether the operations of the last step are timed.
    pub timings: bool,
}

impl<'h> How<'h> {
    /// With these ranks; nobody stops it or watches.
    pub fn new(ranks: &'h mut dyn Ranks) -> Self {
        Self { cancel: &NEVER, progress: &Unwatched, ranks, timings: false }
    }
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainReport {
    /// Its directory.
    pub run: PathBuf,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The checkpoint with the lowest held-out loss, and that loss.
    pub best: Option<(PathBuf, f64)>,
    /// Optimizer steps of the whole run, and how many it was to have.
    pub steps: [u64; 2],
    /// Mean loss of this process's steps, and of its last.
    pub loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// The last held-out loss.
    pub eval_loss: Option<f64>,
    /// Tokens of this process's steps.
    pub tokens: u64,
    /// Seconds of this process's steps, without loading.
    pub seconds: f64,
    /// Steps that were skipped for a loss or a gradient that was not finite.
    pub skipped: u64,
    /// Most bytes of the device's memory that were in use.
    pub peak_memory: Option<u64>,
    /// The device.
    pub device: String,
    /// Seconds of the last step by operation, where they were asked for and the device can tell.
    pub timings: BTreeMap<&'static str, f64>,
    /// Whether it was stopped from outside, after saving.
    pub interrupted: bool,
    /// What the log leaves to say.
    pub logs: Finished,
}

/// Runs the plan on the device that its settings ask for. Where that fails, the other ranks are told.
///
/// # Errors
/// [`Device`](crate::error::ErrorKind::Device) and [`OutOfMemory`](crate::error::ErrorKind::OutOfMemory) of a GPU,
/// [`Numeric`](crate::error::ErrorKind::Numeric) where the loss stays NaN or infinite,
/// [`Network`](crate::error::ErrorKind::Network) and [`Peer`](crate::error::ErrorKind::Peer) of other ranks, and what
/// the disk answers. Checkpoints that were written stay.
pub fn run(plan: TrainPlan, how: &mut How<'_>) -> Result<TrainReport> {
    on_device(plan, how).inspect_err(|error| how.ranks.give_up(&error.split().0))
}

fn on_device(plan: TrainPlan, how: &mut How<'_>) -> Result<TrainReport> {
    let device = plan.settings.device()?;
    if let Some(card) = open_card(device, plan.settings.compute(), plan.spec.heads, how.progress)? {
        let run = Run::new(&card, plan, how).map_err(|error| card_failed(error, "run again"))?;
        let again = "resume with ⟦resume_from_checkpoint true⟧, without ⟦adapters⟧";
        return run.run(how).map_err(|error| card_failed(error, again));
    }
    if plan.settings.compute() == Some(Compute::Bf16) {
        how.progress.note("the processor trains in f32: ⟦bf16⟧ is for GPUs");
    }
    Run::new(&CpuEngine::new(), plan, how)?.run(how)
}

/// A run under way.
struct Run<'e, E: Engine> {
    engine: &'e E,
    trainer: Trainer<'e, E>,
    plan: TrainPlan,
    guard: Guard,
    logs: Logs,
    dir: PathBuf,
    first_step: u64,
    started: Instant,
    /// Since the last record.
    since: Since,
    total: Since,
    samples: u64,
    last: Option<Stepped>,
    eval_loss: Option<f64>,
    checkpoint: Option<PathBuf>,
    /// Whether a checkpoint waits for free space on the disk.
    owes_checkpoint: bool,
    /// Whether a record waits for a file that can't be written.
    owes_record: bool,
    /// Keeps other processes from the run's directory.
    _lock: Option<File>,
}

/// What happened since some moment.
#[derive(Debug, Clone, Copy)]
struct Since {
    at: Instant,
    losses: f64,
    steps: u64,
    tokens: u64,
    rate: f64,
}

impl Since {
    fn now() -> Self {
        Self { at: Instant::now(), losses: 0.0, steps: 0, tokens: 0, rate: 0.0 }
    }

    fn add(&mut self, done: &Stepped, rate: f64) {
        // A skipped step has no loss to speak of.
        if let Verdict::Step { .. } = done.verdict {
            self.losses += done.loss;
            self.steps += 1;
        }
        self.tokens += done.tokens;
        self.rate = rate;
    }

    fn loss(&self) -> f64 {
        if self.steps == 0 { f64::NAN } else { self.losses / self.steps as f64 }
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.at.elapsed().as_secs_f64().max(1e-9)
    }
}

impl<'e, E: Backward + Optimizer> Run<'e, E> {
    /// Loads the base, and opens the run's directory and logs.
    fn new(engine: &'e E, mut plan: TrainPlan, how: &How<'_>) -> Result<Self> {
        let writes = how.ranks.rank() == 0;
        if writes {
            plan.space.check(&plan.destination())?;
        }
        how.progress.phase("loading the base");
        let positions = plan.data.train.longest_sample().max(plan.data.held_out.longest_sample());
        let model = Model::load(engine, &plan.base, &plan.spec, &plan.adapters, positions, &mut |_| ())?;
        if plan.fresh {
            model.fill_magnitudes(engine, &mut plan.state.parameters)?;
        }
        // A micro-batch has no more rows than there are.
        let rows = plan.data.train.rows.len().min(plan.settings.per_device_train_batch_size as usize);
        let tokens = plan.data.train.longest_row().saturating_mul(rows);
        // Parameters, gradients and both moments are still to come.
        let state = 16 * plan.layout.len as u64;
        let free = engine.free_memory().map(|free| free.saturating_sub(state));
        let settings = &plan.settings;
        let recipe = Recipe {
            dropout: settings.lora_dropout,
            seed: settings.seed,
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            epsilon: settings.adam_epsilon,
            decay: settings.weight_decay,
            keep: Keep::within(&plan.spec, tokens, free),
        };
        let counts = GuardCounts { skipped: plan.progress.skipped, in_a_row: plan.progress.skipped_in_a_row };
        let guard = Guard::new(settings.max_grad_norm, counts);
        // The device has it from here on.
        let state = std::mem::take(&mut plan.state);
        let trainer = Trainer::new(engine, model, plan.layout.clone(), recipe, &state)?;
        drop(state);
        let device = format!("{} in {}", engine.name(), E::TYPE);
        let was = std::mem::replace(&mut plan.progress.device, device.clone());
        if !was.is_empty() && was != device {
            how.progress.note(&format!("the last step was computed on {was}; the next ones are computed on {device}"));
        }
        let settings = &plan.settings;
        let dir = match (&plan.run, writes) {
            (Some(dir), _) => dir.clone(),
            (None, true) => new_run(&settings.output_dir(), settings.add_version, SystemTime::now())?,
            (None, false) => settings.output_dir(),
        };
        let lock = if writes { Some(lock(&dir)?) } else { None };
        // The log of a run that is over stays as it is: to open it would cut the record of its end.
        let logs = if writes && plan.progress.global_step < plan.progress.max_steps {
            let events = settings.logging_dir.as_deref();
            Logs::open(&dir, events, &plan.reports, plan.progress.global_step, std::mem::take(&mut plan.history))?
        } else if writes {
            Logs::of_a_run_that_is_over(&dir, std::mem::take(&mut plan.history))?
        } else {
            Logs::quiet()
        };
        let first_step = plan.progress.global_step;
        let (steps, losses) = (plan.progress.unlogged_steps, plan.progress.unlogged_loss);
        // Of a run that is resumed, the newest until there is another.
        let checkpoint = plan.run.is_some().then(|| checkpoint_dir(&dir, first_step)).filter(|dir| dir.is_dir());
        Ok(Self {
            engine,
            trainer,
            guard,
            logs,
            dir,
            first_step,
            started: Instant::now(),
            since: Since { losses, steps, ..Since::now() },
            total: Since::now(),
            samples: 0,
            last: None,
            eval_loss: None,
            checkpoint,
            owes_checkpoint: false,
            owes_record: false,
            _lock: lock,
            plan,
        })
    }

    fn run(mut self, how: &mut How<'_>) -> Result<TrainReport> {
        let (max_steps, strategies) =
            (self.plan.progress.max_steps, [self.plan.settings.save_strategy(), self.plan.settings.eval_strategy()]);
        how.progress.start(max_steps, self.plan.progress.global_step);
        how.progress.phase("training");
        let mut order = self.order();
        // A signal that came before the first step ends the run without one.
        let is_left = self.plan.progress.global_step < max_steps;
        let mut interrupted = is_left && how.ranks.any(how.cancel.load(Ordering::SeqCst))?;
        let due = self.plan.progress.evaluation_due;
        if (self.plan.settings.eval_on_start || due) && is_left && !interrupted {
            interrupted = self.evaluate(due, how)?;
            self.plan.progress.evaluation_due = due && interrupted;
        }
        while self.plan.progress.global_step < max_steps && !interrupted {
            if self.plan.progress.position >= self.plan.progress.epoch_len {
                self.plan.progress.epoch += 1;
                self.plan.progress.position = 0;
                order = self.order();
            }
            self.step(&order, how)?;
            if how.ranks.count() > 1 && self.plan.progress.global_step == self.first_step + 1 {
                how.progress.note(&format!("{} ranks, all-reduce by {}", how.ranks.count(), how.ranks.transport()));
            }
            let step = self.plan.progress.global_step;
            let ends_epoch = self.plan.progress.position >= self.plan.progress.epoch_len;
            interrupted = how.ranks.any(how.cancel.load(Ordering::SeqCst))?;
            let ends = step == max_steps;
            let [saves, evaluates] = strategies.map(|when| when.falls_on(step, max_steps, ends_epoch));
            let has_held_out = !self.plan.data.held_out.rows.is_empty() && strategies[1] != When::Never;
            self.plan.progress.evaluation_due = false;
            if evaluates || (has_held_out && ends && !interrupted) {
                interrupted = interrupted || self.evaluate(saves || ends, how)?;
                self.plan.progress.evaluation_due = interrupted;
            }
            if saves || ends || interrupted || self.can_pay() {
                self.save_if_possible(ends || interrupted, how)?;
            }
        }
        // A run that was over already saves nothing, but a crash may have left something to delete.
        if self.plan.progress.global_step == self.first_step && how.ranks.rank() == 0 {
            self.prune(how)?;
        }
        self.finish(interrupted, how)
    }

    /// The order of the epoch's rows.
    fn order(&self) -> Vec<usize> {
        epoch_order(self.plan.data.train.rows.len(), self.plan.progress.epoch, self.plan.settings.data_seed)
    }

    fn step(&mut self, order: &[usize], how: &mut How<'_>) -> Result<()> {
        let (begin, of_a_step) = (self.plan.progress.position as usize, self.plan.rows_of_a_step() as usize);
        let rows = &order[begin..begin.saturating_add(of_a_step).min(order.len())];
        let batches = self.share(rows, how.ranks);
        let rate = self.plan.schedule.at(self.trainer.updates());
        if how.timings && self.plan.progress.global_step + 1 == self.plan.progress.max_steps {
            self.engine.time();
        }
        let done = self.trainer.step(&batches, rate, &mut self.guard, how.ranks)?;
        let progress = &mut self.plan.progress;
        progress.global_step += 1;
        progress.position += rows.len() as u64;
        progress.optimizer_steps = self.trainer.updates();
        progress.micro_steps = self.trainer.micro_batches();
        progress.tokens += done.tokens;
        let GuardCounts { skipped, in_a_row } = self.guard.counts();
        (progress.skipped, progress.skipped_in_a_row) = (skipped, in_a_row);
        self.samples += rows.iter().map(|row| self.plan.data.train.rows[*row].len() as u64).sum::<u64>();
        self.since.add(&done, rate);
        self.total.add(&done, rate);
        self.last = Some(done);
        let step = self.plan.progress.global_step;
        match done.verdict {
            Verdict::Step { .. } => {}
            Verdict::Skip { in_a_row } => how.progress.note(&format!(
                "step {step} is skipped: its loss is {}, the norm of its gradient {} ({in_a_row} in a row)",
                done.loss, done.grad_norm
            )),
            Verdict::Stop => return Err(self.guard.stopped(step)),
        }
        let tick =
            Tick { step, loss: done.loss, learning_rate: rate, tokens_per_second: self.since.tokens_per_second() };
        how.progress.step(&tick);
        if self.plan.settings.logs_at(step, self.plan.progress.max_steps) || step == self.plan.progress.max_steps {
            let train = Train {
                loss: self.since.loss(),
                grad_norm: done.grad_norm,
                learning_rate: rate,
                tokens: self.plan.progress.tokens,
                tokens_per_second: self.since.tokens_per_second(),
                skipped,
            };
            self.record(Figures::Train(train), how);
            self.since = Since::now();
        }
        (self.plan.progress.unlogged_steps, self.plan.progress.unlogged_loss) = (self.since.steps, self.since.losses);
        Ok(())
    }

    /// This rank's micro-batches of a step. Ranks take turns within each micro-batch; near the end of an epoch some may
    /// be empty.
    fn share(&self, rows: &[usize], ranks: &dyn Ranks) -> Vec<Batch> {
        let each = self.plan.settings.per_device_train_batch_size as usize;
        let micro_batches = rows.chunks(each.saturating_mul(ranks.count()));
        let own = |rows: &[usize]| {
            let begin = each.saturating_mul(ranks.rank()).min(rows.len());
            self.plan.data.train.batch(&rows[begin..begin.saturating_add(each).min(rows.len())])
        };
        micro_batches.map(own).collect()
    }

    fn moment(&self) -> Moment {
        let progress = &self.plan.progress;
        Moment {
            epoch: progress.epochs(),
            step: progress.global_step,
            max_steps: progress.max_steps,
            first_step: self.first_step,
            seconds: self.started.elapsed().as_secs_f64(),
            memory: self.engine.peak_memory(),
        }
    }

    /// Looks at the held-out data; whether that was interrupted. The best is the best of the steps that are `saved`:
    /// others can't be gone back to.
    fn evaluate(&mut self, saved: bool, how: &mut How<'_>) -> Result<bool> {
        how.progress.phase("evaluating");
        let start = Instant::now();
        let Rows { rows, samples, .. } = &self.plan.data.held_out;
        let each = self.plan.settings.per_device_eval_batch_size as usize;
        let numbers: Vec<usize> = (0..rows.len()).collect();
        let (rank, count) = (how.ranks.rank(), how.ranks.count());
        let of_rank = numbers.chunks(each).skip(rank).step_by(count);
        let batches: Vec<Batch> = of_rank.map(|rows| self.plan.data.held_out.batch(rows)).collect();
        let rounds = numbers.len().div_ceil(each).div_ceil(count);
        let evaluated = self.trainer.evaluate(&batches, rounds, how.cancel, how.ranks)?;
        let (samples, tokens) = (*samples as u64, self.plan.data.held_out.tokens());
        let steps = rows.len().div_ceil(each) as u64;
        if let Evaluated::Loss(loss) = evaluated {
            let seconds = start.elapsed().as_secs_f64();
            self.record(Figures::Eval(Eval { loss, seconds, samples, steps, tokens }), how);
            self.eval_loss = Some(loss);
            let progress = &mut self.plan.progress;
            if saved && loss.is_finite() && progress.best_metric.is_none_or(|best| loss < best) {
                progress.best_metric = Some(loss);
                progress.best_step = Some(progress.global_step);
            }
        }
        how.progress.phase("training");
        // The time of an evaluation is not the training's.
        self.since.at += start.elapsed();
        self.total.at += start.elapsed();
        Ok(evaluated == Evaluated::Cut)
    }

    fn finish(mut self, interrupted: bool, how: &How<'_>) -> Result<TrainReport> {
        let seconds = self.total.at.elapsed().as_secs_f64();
        let progress = self.plan.progress.clone();
        let last_loss = self.last.map_or(f64::NAN, |done| done.loss);
        if !interrupted && progress.global_step > self.first_step {
            let parameters = self.plan.base.weights() as f64;
            let last = Last {
                loss: self.total.loss(),
                seconds,
                samples: self.samples,
                steps: progress.global_step - self.first_step,
                tokens: progress.tokens,
                total_flos: 6.0 * parameters * progress.tokens as f64,
                skipped: progress.skipped,
            };
            let record = Record { at: self.moment(), figures: Figures::Last(last) };
            self.log(&record, how);
        }
        let title = self.plan.settings.run_name.clone().unwrap_or_else(|| title(&self.dir));
        let logs = self.logs.finish(&title).unwrap_or_else(|error| {
            how.progress.note(&format!("the log is incomplete: {}", error.split().0));
            Finished::default()
        });
        let best = progress.best_step.zip(progress.best_metric);
        let best = best.map(|(step, loss)| (checkpoint_dir(&self.dir, step), loss));
        Ok(TrainReport {
            checkpoint: self.checkpoint,
            best: best.filter(|(dir, _)| dir.is_dir()),
            steps: [progress.global_step, progress.max_steps],
            loss: self.total.loss(),
            last_loss,
            eval_loss: self.eval_loss,
            tokens: self.total.tokens,
            seconds,
            skipped: progress.skipped,
            peak_memory: self.engine.peak_memory(),
            device: self.engine.name(),
            timings: self.engine.timings()?,
            interrupted,
            logs,
            run: self.dir,
        })
    }
}

/// What the loss curve is called: the last two parts of the run's path.
fn title(run: &Path) -> String {
    let parts: Vec<_> = run.iter().map(|part| part.to_string_lossy()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}
