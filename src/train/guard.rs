//! Which optimizer steps are taken: gradients are clipped to a norm, steps whose loss or gradient is not finite are
//! skipped, and a run that does nothing else is stopped.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Skipped steps in a row that stop a run.
pub const MOST_IN_A_ROW: u32 = 3;

/// What to do with the gradient of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Multiply the gradient by `clip_factor` (1: leave it) and take the step.
    Step {
        /// At most 1.
        clip_factor: f32,
    },
    /// Forget the gradient; nothing that is trained changes.
    Skip {
        /// Steps that were skipped in a row, with this one.
        in_a_row: u32,
    },
    /// Forget the gradient and end the run: see [`Guard::stopped`].
    Stop,
}

/// What a checkpoint keeps of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuardCounts {
    /// Skipped steps of the whole run.
    pub skipped: u64,
    /// Skipped steps since the last that was taken.
    pub in_a_row: u32,
}

/// Judges each step of a run.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    max_norm: f32,
    counts: GuardCounts,
}

impl Guard {
    /// A guard that clips to `max_norm` (`--max_grad_norm`; 0: no clipping), and has counted `counts` before.
    pub fn new(max_norm: f64, counts: GuardCounts) -> Self {
        Self { max_norm: max_norm as f32, counts }
    }

    /// What has been skipped so far.
    pub fn counts(&self) -> GuardCounts {
        self.counts
    }

    /// What to do with a step of this loss and this global norm of its gradient, of all ranks.
    pub fn judge(&mut self, loss: f64, grad_norm: f64) -> Verdict {
        let norm = grad_norm as f32;
        if loss.is_finite() && norm.is_finite() {
            self.counts.in_a_row = 0;
            return Verdict::Step { clip_factor: clip_factor(self.max_norm, norm) };
        }
        self.counts.skipped += 1;
        self.counts.in_a_row = self.counts.in_a_row.saturating_add(1);
        match self.counts.in_a_row {
            in_a_row if in_a_row < MOST_IN_A_ROW => Verdict::Skip { in_a_row },
            _ => Verdict::Stop,
        }
    }

    /// The error of a run that was stopped at `step`.
    pub fn stopped(&self, step: u64) -> Error {
        let GuardCounts { skipped, in_a_row } = self.counts;
        Error::new(
            ErrorKind::Numeric,
            format!(
                "the loss or the gradient was NaN or infinite in {in_a_row} steps in a row, the last of them step \
                 {step} ({skipped} steps of this run in total)"
            ),
            "lower ⟦learning_rate⟧ or raise ⟦warmup_ratio⟧, and start again, or resume from an earlier checkpoint with \
             ⟦resume_from_checkpoint DIR⟧: the last one may be broken already; if the first steps fail, check the \
             base with `qft inspect ⟦stats⟧`",
        )
    }
}

/// By what a gradient of this norm is multiplied: `clip_grad_norm_` of torch, in f32 and in its order of operations.
fn clip_factor(max_norm: f32, norm: f32) -> f32 {
    if max_norm > 0.0 { (1.0 / (norm + 1e-6) * max_norm).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKEN: Verdict = Verdict::Step { clip_factor: 1.0 };

    #[test]
    fn clips_as_torch_does() {
        // (max_norm, norm, bits of the factor), made by fixtures/make_schedules.py.
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../fixtures/train/schedules.json")).unwrap();
        let cases = golden["clips"].as_array().unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let float = |i: usize| case[i].as_f64().unwrap();
            let Verdict::Step { clip_factor } = Guard::new(float(0), GuardCounts::default()).judge(1.0, float(1))
            else {
                panic!("{case}")
            };
            assert_eq!(u64::from(clip_factor.to_bits()), case[2].as_u64().unwrap(), "{case}: {clip_factor}");
        }
        assert_eq!(Guard::new(0.0, GuardCounts::default()).judge(1.0, 1e9), TAKEN);
        assert_eq!(Guard::new(1.0, GuardCounts::default()).judge(1.0, 0.0), TAKEN);
    }

    #[test]
    fn three_in_a_row_stop_the_run() {
        let mut guard = Guard::new(1.0, GuardCounts::default());
        let bad = [(f64::NAN, 0.5), (2.0, f64::INFINITY), (f64::NEG_INFINITY, f64::NAN), (2.0, 1e39)];
        for (loss, norm) in bad {
            assert_eq!(guard.judge(loss, norm), Verdict::Skip { in_a_row: 1 }, "{loss} {norm}");
            assert_eq!(guard.judge(2.0, 0.5), TAKEN);
        }
        assert_eq!(guard.counts(), GuardCounts { skipped: 4, in_a_row: 0 });
        assert_eq!(guard.judge(f64::NAN, 0.5), Verdict::Skip { in_a_row: 1 });
        assert_eq!(guard.judge(2.0, f64::NAN), Verdict::Skip { in_a_row: 2 });
        assert_eq!(guard.judge(f64::NAN, f64::NAN), Verdict::Stop);
        let error = guard.stopped(12).to_string();
        assert!(error.contains("3 steps in a row") && error.contains("step 12 (7 steps"), "{error}");
    }

    #[test]
    fn counts_go_on_behind_a_checkpoint() {
        let mut guard = Guard::new(1.0, GuardCounts::default());
        guard.judge(f64::NAN, 1.0);
        guard.judge(f64::NAN, 1.0);
        let text = serde_json::to_string(&guard.counts()).unwrap();
        assert_eq!(text, r#"{"skipped":2,"in_a_row":2}"#);
        let mut resumed = Guard::new(1.0, serde_json::from_str(&text).unwrap());
        assert_eq!(resumed.judge(f64::NAN, 1.0), Verdict::Stop);
    }
}
