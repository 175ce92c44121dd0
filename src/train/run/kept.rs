//! What a run keeps: its records, its checkpoints, and those that a full disk has delayed.

use std::time::Instant;

use super::super::checkpoint::{SchedulerState, Snapshot, checkpoint_dir, has_room, prune, write};
use super::super::log::{Figures, Record};
use super::{How, Run};
use crate::engine::{Backward, Optimizer};
use crate::error::{Error, Result};

impl<E: Backward + Optimizer> Run<'_, E> {
    pub(super) fn record(&mut self, figures: Figures, how: &How<'_>) {
        let record = Record { at: self.moment(), figures };
        self.log(&record, how);
        how.progress.record(&record);
    }

    /// Logs a record. A log that can't be written is no reason to lose a run: what it lacks is written later.
    pub(super) fn log(&mut self, record: &Record, how: &How<'_>) {
        match self.logs.record(record) {
            Ok(()) if !self.owes_record => {}
            Ok(()) => {
                self.owes_record = false;
                how.progress.note("the log can be written again, and has the missing records");
            }
            Err(_) if self.owes_record => {}
            Err(error) => {
                self.owes_record = true;
                let (problem, _) = error.split();
                how.progress.note(&format!(
                    "{problem}; training continues, and the log is written as soon as that is possible"
                ));
            }
        }
    }

    /// Whether a checkpoint that waited for free space has it now.
    pub(super) fn can_pay(&self) -> bool {
        let moments = !self.plan.settings.save_only_model;
        self.owes_checkpoint && has_room(&self.dir, self.trainer.layout().len, moments)
    }

    /// Saves a checkpoint. One that has no free space is owed, unless it is the last: the run goes on, and saves when
    /// there is.
    pub(super) fn save_if_possible(&mut self, last: bool, how: &How<'_>) -> Result<()> {
        match self.save(how) {
            Err(Error::NoSpace { problem, .. }) if !last => {
                let step = self.plan.progress.global_step;
                how.progress.phase("training");
                how.progress.note(&format!(
                    "no checkpoint after step {step}: {problem}; training continues, and saves one as soon as there is \
                     free space"
                ));
                self.owes_checkpoint = true;
                Ok(())
            }
            result => {
                self.owes_checkpoint = false;
                result
            }
        }
    }

    fn save(&mut self, how: &How<'_>) -> Result<()> {
        let saved = checkpoint_dir(&self.dir, self.plan.progress.global_step);
        if how.ranks.rank() != 0 || self.checkpoint.as_ref() == Some(&saved) {
            return Ok(());
        }
        how.progress.phase("saving");
        let start = Instant::now();
        let state = self.trainer.state()?;
        let schedule = self.plan.schedule;
        let scheduler = SchedulerState {
            kind: schedule.kind,
            warmup_steps: schedule.warmup_steps,
            total_steps: schedule.total_steps,
            peak: schedule.peak,
            last_step: self.plan.progress.global_step,
            last_rate: self.total.rate,
        };
        let settings = &self.plan.settings;
        let snapshot = Snapshot {
            settings,
            layout: self.trainer.layout(),
            parameters: &state.parameters,
            moments: (!settings.save_only_model).then_some([&state.first[..], &state.second[..]]),
            progress: &self.plan.progress,
            scheduler: &scheduler,
            history: self.logs.history(),
        };
        self.checkpoint = Some(write(&self.dir, &snapshot)?);
        self.prune(how)?;
        how.progress.phase("training");
        self.since.at += start.elapsed();
        self.total.at += start.elapsed();
        Ok(())
    }

    /// Deletes the checkpoints that are too many, and what a crash left.
    pub(super) fn prune(&self, how: &How<'_>) -> Result<()> {
        let kept = prune(&self.dir, self.plan.settings.save_total_limit, self.plan.progress.best_step)?;
        kept.iter().for_each(|note| how.progress.note(note));
        Ok(())
    }
}
