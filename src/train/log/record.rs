//! One entry of a run's log, and its three forms: the HF Trainer's `log_history`, a line of ms-swift's
//! `logging.jsonl`, and the tags of `TensorBoard`. Values are not rounded: ms-swift rounds them to 8 decimals, which
//! a small rate does not survive.

use serde_json::{Map, Value};

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moment {
    /// Passes over the data, with the part of the current one.
    pub epoch: f64,
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Steps that were done when this process took the run up: 0, or the step of the checkpoint that it resumed.
    pub first_step: u64,
    /// Seconds since this process took the run up.
    pub seconds: f64,
    /// The most memory that the device has held for it, in bytes, if that is known.
    pub memory: Option<u64>,
}

/// Figures of the steps since the entry before.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Train {
    /// Mean loss of those steps.
    pub loss: f64,
    /// Global norm of the last gradient, before clipping.
    pub grad_norm: f64,
    /// Rate of the last step.
    pub learning_rate: f64,
    /// Tokens that the whole run has read.
    pub tokens: u64,
    /// Tokens of those steps by their seconds.
    pub tokens_per_second: f64,
    /// Steps of the whole run that were skipped for a loss or a gradient that was not finite.
    pub skipped: u64,
}

/// Figures of a pass over the held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Eval {
    /// Mean loss of a target token.
    pub loss: f64,
    /// Its seconds.
    pub seconds: f64,
    /// Conversations.
    pub samples: u64,
    /// Batches.
    pub steps: u64,
    /// Tokens.
    pub tokens: u64,
}

/// Figures of a run that is over.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Last {
    /// Mean loss of all its steps.
    pub loss: f64,
    /// Its seconds, of this process.
    pub seconds: f64,
    /// Conversations that were trained on, of this process.
    pub samples: u64,
    /// Optimizer steps, of this process.
    pub steps: u64,
    /// Tokens that the whole run has read.
    pub tokens: u64,
    /// Floating-point operations of the whole run, as the Trainer estimates them: 6 a token and parameter.
    pub total_flos: f64,
    /// Steps of the whole run that were skipped.
    pub skipped: u64,
}

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figures {
    /// Every `--logging_steps`.
    Train(Train),
    /// Every `--eval_steps`.
    Eval(Eval),
    /// Once, at the end.
    Last(Last),
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// When.
    pub at: Moment,
    /// What.
    pub figures: Figures,
}

/// Key of the step in `log_history`.
pub(super) const STEP: &str = "step";
/// A key that only the entry at the end of a run has.
pub(super) const RUNTIME: &str = "train_runtime";

/// `value` with so many digits after the point.
fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// Runtime and rates, as `speed_metrics` of transformers rounds them; `tokens` only where they are of those seconds.
fn speed(split: &str, seconds: f64, counts: [(&str, u64); 2]) -> Vec<(String, Value)> {
    let mut found = vec![(format!("{split}_runtime"), rounded(seconds, 4).into())];
    if seconds > 0.0 {
        let rate = |(what, count): (&str, u64)| {
            (format!("{split}_{what}_per_second"), rounded(count as f64 / seconds, 3).into())
        };
        found.extend(counts.map(rate));
    }
    found
}

impl Record {
    /// The entry of `log_history` in `trainer_state.json`. What is not finite is null: JSON has no other word.
    pub fn history(&self) -> Map<String, Value> {
        let mut entry: Vec<(String, Value)> = Vec::new();
        let mut add = |key: &str, value: Value| entry.push((key.to_owned(), value));
        match &self.figures {
            Figures::Train(train) => {
                add("loss", train.loss.into());
                add("grad_norm", train.grad_norm.into());
                add("learning_rate", train.learning_rate.into());
                add("tokens_per_second", rounded(train.tokens_per_second, 3).into());
                add("num_input_tokens_seen", train.tokens.into());
                if train.skipped > 0 {
                    add("skipped_steps", train.skipped.into());
                }
            }
            Figures::Eval(eval) => {
                add("eval_loss", eval.loss.into());
                entry.extend(speed("eval", eval.seconds, [("samples", eval.samples), ("steps", eval.steps)]));
                entry.push(("eval_tokens".to_owned(), eval.tokens.into()));
            }
            Figures::Last(last) => {
                entry.extend(speed("train", last.seconds, [("samples", last.samples), ("steps", last.steps)]));
                let mut add = |key: &str, value: Value| entry.push((key.to_owned(), value));
                add("total_flos", last.total_flos.into());
                add("train_loss", last.loss.into());
                add("num_input_tokens_seen", last.tokens.into());
                if last.skipped > 0 {
                    add("skipped_steps", last.skipped.into());
                }
            }
        }
        entry.push(("epoch".to_owned(), self.at.epoch.into()));
        entry.push((STEP.to_owned(), self.at.step.into()));
        entry.into_iter().collect()
    }

    /// The line of `logging.jsonl`, without its end: the entry of `log_history`, and how far the run is.
    pub fn line(&self) -> String {
        let mut entry = self.history();
        let mut add = |key: &str, value: Value| entry.insert(key.to_owned(), value);
        let at = &self.at;
        add("global_step/max_steps", format!("{}/{}", at.step, at.max_steps).into());
        add("percentage", format!("{:.2}%", at.share() * 100.0).into());
        add("elapsed_time", duration(at.seconds).into());
        if let Some(seconds) = at.remaining() {
            add("remaining_time", duration(seconds).into());
        }
        if let Some(memory) = at.gibibytes() {
            add("memory(GiB)", memory.into());
        }
        add("train_speed(iter/s)", rounded(at.speed(), 6).into());
        Value::Object(entry).to_string()
    }

    /// The scalars by their tags, as the Trainer's callback for `TensorBoard` rewrites keys: `eval/` and `train/`.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let tag = |key: &str| match key.strip_prefix("eval_") {
            Some(key) => format!("eval/{key}"),
            None => format!("train/{key}"),
        };
        // null stands for what is not finite.
        let scalar = |(key, value): (&String, &Value)| (tag(key), value.as_f64().unwrap_or(f64::NAN));
        let history = self.history();
        let mut scalars: Vec<_> = history.iter().filter(|(key, _)| *key != STEP).map(scalar).collect();
        if let (Figures::Train(_), Some(memory)) = (&self.figures, self.at.gibibytes()) {
            scalars.push((tag("memory(GiB)"), memory));
        }
        scalars
    }
}

impl Moment {
    /// The part of the run that is done, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.max_steps == 0 { 0.0 } else { self.step as f64 / self.max_steps as f64 }
    }

    /// Steps of this process.
    fn own_steps(&self) -> u64 {
        self.step.saturating_sub(self.first_step)
    }

    /// Optimizer steps a second, of this process.
    pub fn speed(&self) -> f64 {
        if self.seconds > 0.0 { self.own_steps() as f64 / self.seconds } else { 0.0 }
    }

    /// Seconds to the end at the speed of this process, once it has one.
    pub fn remaining(&self) -> Option<f64> {
        let left = self.max_steps.saturating_sub(self.step) as f64;
        (self.speed() > 0.0).then(|| left / self.speed())
    }

    fn gibibytes(&self) -> Option<f64> {
        self.memory.map(|bytes| rounded(bytes as f64 / f64::from(1 << 30), 2))
    }
}

/// Seconds as ms-swift writes them: `1d 2h 3m 4s`, without the leading parts that are nothing.
pub fn duration(seconds: f64) -> String {
    #[expect(clippy::cast_sign_loss, reason = "negative and NaN become 0, and that is wanted")]
    let whole = seconds as u64;
    let parts = [(whole / 86_400, 'd'), (whole / 3600 % 24, 'h'), (whole / 60 % 60, 'm'), (whole % 60, 's')];
    let first = parts.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    parts[first..].iter().map(|(n, unit)| format!("{n}{unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: u64) -> Moment {
        Moment { epoch: 0.4, step, max_steps: 100, first_step: 0, seconds: 40.0, memory: Some(13_314_398_618) }
    }

    #[test]
    fn a_line_has_the_keys_of_both_peers() {
        let train = Train {
            loss: 1.25,
            grad_norm: 0.5,
            learning_rate: 2e-12,
            tokens: 5000,
            tokens_per_second: 0.1231,
            skipped: 0,
        };
        let record = Record { at: at(20), figures: Figures::Train(train) };
        assert_eq!(
            record.line(),
            r#"{"loss":1.25,"grad_norm":0.5,"learning_rate":2e-12,"tokens_per_second":0.123,"#.to_owned()
                + r#""num_input_tokens_seen":5000,"epoch":0.4,"step":20,"global_step/max_steps":"20/100","#
                + r#""percentage":"20.00%","#
                + r#""elapsed_time":"40s","remaining_time":"2m 40s","memory(GiB)":12.4,"train_speed(iter/s)":0.5}"#
        );
        let skipped = Record { at: at(20), figures: Figures::Train(Train { skipped: 2, ..train }) };
        assert_eq!(skipped.history()["skipped_steps"], 2);
    }

    #[test]
    fn evaluations_and_ends_have_the_trainers_keys() {
        let eval = Eval { loss: 1.5, seconds: 3.0, samples: 10, steps: 2, tokens: 700 };
        let record = Record { at: at(20), figures: Figures::Eval(eval) };
        assert_eq!(
            Value::Object(record.history()).to_string(),
            r#"{"eval_loss":1.5,"eval_runtime":3.0,"eval_samples_per_second":3.333,"eval_steps_per_second":0.667,"#
                .to_owned()
                + r#""eval_tokens":700,"epoch":0.4,"step":20}"#
        );
        let last =
            Last { loss: 1.0, seconds: 40.123_456, samples: 800, steps: 100, tokens: 9, total_flos: 6e9, skipped: 1 };
        let record = Record { at: at(100), figures: Figures::Last(last) };
        assert_eq!(
            Value::Object(record.history()).to_string(),
            r#"{"train_runtime":40.1235,"train_samples_per_second":19.938,"train_steps_per_second":2.492,"#.to_owned()
                + r#""total_flos":6000000000.0,"train_loss":1.0,"num_input_tokens_seen":9,"#
                + r#""skipped_steps":1,"epoch":0.4,"step":100}"#
        );
    }

    #[test]
    fn tags_are_the_trainers() {
        let eval = Record { at: at(20), figures: Figures::Eval(Eval { loss: f64::NAN, ..Eval::default() }) };
        let scalars = eval.scalars();
        let tags: Vec<&str> = scalars.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["eval/loss", "eval/runtime", "eval/tokens", "train/epoch"]);
        assert!(scalars[0].1.is_nan() && eval.line().contains(r#""eval_loss":null"#));
        let train = Record { at: at(20), figures: Figures::Train(Train::default()) };
        let tags: Vec<String> = train.scalars().into_iter().map(|(tag, _)| tag).collect();
        for tag in ["loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second", "memory(GiB)"] {
            assert!(tags.contains(&format!("train/{tag}")), "{tag}: {tags:?}");
        }
        assert!(!tags.iter().any(|tag| tag.ends_with("/step")));
    }

    #[test]
    fn a_resumed_run_counts_its_own_steps_for_its_speed() {
        let resumed = Moment { first_step: 15, ..at(20) };
        assert_eq!((resumed.speed(), resumed.remaining(), resumed.share()), (0.125, Some(640.0), 0.2));
        let fresh = Moment { step: 0, seconds: 0.0, max_steps: 0, ..at(0) };
        assert_eq!((fresh.speed(), fresh.remaining(), fresh.share()), (0.0, None, 0.0));
        assert!(!Record { at: fresh, figures: Figures::Train(Train::default()) }.line().contains("remaining_time"));
    }

    #[test]
    fn durations_are_ms_swifts() {
        let cases = [0.0, 59.9, 60.0, 3600.0, 93_784.0, -1.0, f64::NAN];
        assert_eq!(cases.map(duration), ["0s", "59s", "1m 0s", "1h 0m 0s", "1d 2h 3m 4s", "0s", "0s"]);
    }
}
