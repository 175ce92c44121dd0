//! The learning rate of each optimizer step: linear, cosine and constant schedules with warm-up, as the HF Trainer's.
//!
//! Formulas: `get_linear_schedule_with_warmup` and its neighbours in transformers' `optimization.py`.

use std::f64::consts::PI;

use crate::error::{Error, Result};

/// The shape of a schedule after its warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Down to 0 along a line.
    Linear,
    /// Down to 0 along half a cosine.
    #[default]
    Cosine,
    /// Always the peak; there is no warm-up.
    Constant,
    /// The peak.
    ConstantWithWarmup,
}

impl ScheduleKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Linear, Self::Cosine, Self::Constant, Self::ConstantWithWarmup];
}

/// The learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps in which the rate rises from 0 to the peak.
    pub warmup_steps: u64,
    /// Steps of the whole run; at this one the rate would be 0.
    pub total_steps: u64,
    /// The highest rate.
    pub peak: f64,
}

impl Schedule {
    /// The learning rate of optimizer step `step`, counted from 0: the first step of a warm-up has rate 0.
    pub fn at(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if self.kind == ScheduleKind::Constant {
            return 1.0;
        }
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps.max(1) as f64;
        }
        let falling = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            ScheduleKind::Linear => self.total_steps.saturating_sub(step) as f64 / falling,
            ScheduleKind::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / falling;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => 1.0,
        }
    }
}

/// Steps of warm-up: `steps` if there are any, or, below 1, that share of `total`; else `ratio` of it. Shares are rounded
/// up (`get_warmup_steps` of `TrainingArguments`, which in transformers 5 takes a share for `warmup_steps`, too).
pub fn warmup_steps(total: u64, steps: f64, ratio: f64) -> Result<u64> {
    if !(steps >= 0.0 && steps.is_finite()) {
        let problem = format!("a warm-up can't have {steps} steps");
        return Err(Error::invalid(problem, "give ⟦warmup_steps⟧ a number of steps, or a share of all below 1"));
    }
    if !(0.0..=1.0).contains(&ratio) {
        let problem = format!("a warm-up can't be {ratio} of a run");
        return Err(Error::invalid(problem, "give ⟦warmup_ratio⟧ a number from 0 to 1, or use ⟦warmup_steps⟧"));
    }
    let share = if steps > 0.0 { steps } else { ratio };
    let steps = if steps >= 1.0 { steps } else { (total as f64 * share).ceil() };
    #[expect(clippy::cast_sign_loss, reason = "no factor is negative")]
    let whole = steps as u64;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Made by `fixtures/make_schedules.py`.
    const GOLDEN: &str = include_str!("../../fixtures/train/schedules.json");

    fn golden() -> Value {
        serde_json::from_str(GOLDEN).unwrap()
    }

    #[test]
    fn rates_are_those_of_transformers() {
        let golden = golden();
        let cases = golden["schedules"].as_array().unwrap();
        assert!(cases.len() >= 12);
        for case in cases {
            let number = |key: &str| case[key].as_u64().unwrap();
            let schedule = Schedule {
                kind: serde_json::from_value(case["kind"].clone()).unwrap(),
                warmup_steps: number("warmup_steps"),
                total_steps: number("total_steps"),
                peak: case["peak"].as_f64().unwrap(),
            };
            for (step, rate) in case["rates"].as_array().unwrap().iter().enumerate() {
                let (expected, got) = (rate.as_f64().unwrap(), schedule.at(step as u64));
                // The last digit of a cosine is the C library's affair.
                let room = if schedule.kind == ScheduleKind::Cosine { 4.0 * f64::EPSILON * schedule.peak } else { 0.0 };
                assert!((got - expected).abs() <= room, "{schedule:?} at {step}: {got:e}, not {expected:e}");
            }
        }
    }

    #[test]
    fn warm_ups_are_those_of_transformers() {
        for case in golden()["warmups"].as_array().unwrap() {
            let number = |i: usize| case[i].as_f64().unwrap();
            let got = warmup_steps(case[0].as_u64().unwrap(), number(1), number(2)).unwrap();
            assert_eq!(got, case[3].as_u64().unwrap(), "{case}");
            if number(1) == 0.0 {
                assert_eq!(warmup_steps(case[0].as_u64().unwrap(), number(2), 0.5 * number(2)).unwrap(), got, "{case}");
            }
        }
        for steps in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(warmup_steps(100, steps, 0.1).unwrap_err().to_string().contains("⟦warmup_steps"), "{steps}");
        }
        for ratio in [-0.1, 1.01, f64::NAN, f64::INFINITY] {
            assert!(warmup_steps(100, 0.0, ratio).unwrap_err().to_string().contains("⟦warmup_ratio"), "{ratio}");
        }
    }

    #[test]
    fn names_are_the_trainers() {
        let names = ["linear", "cosine", "constant", "constant_with_warmup"];
        assert_eq!(ScheduleKind::ALL.map(|kind| serde_json::to_value(kind).unwrap()), names);
    }

    #[test]
    fn steps_beyond_the_run_have_no_rate_below_zero() {
        for kind in ScheduleKind::ALL {
            let schedule = Schedule { kind, warmup_steps: 20, total_steps: 10, peak: 1.0 };
            for step in [0, 10, 19, 20, 21, 1000, u64::MAX] {
                assert!((0.0..=1.0).contains(&schedule.at(step)), "{kind:?} at {step}");
            }
        }
    }
}
