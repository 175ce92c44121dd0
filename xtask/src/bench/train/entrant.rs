//! One way to train, run after run: its command line, and the figures that it left of each run.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::bench::Words;
use crate::bench::measure;

/// Steps that are not counted: the first ones find the kernels, the algorithms and the memory.
pub(super) const WARM_UP: usize = 2;
/// The log of a run of qft, in the directory of its outputs.
const LOG: &str = "logging.jsonl";

/// A command line that trains, and what came of it.
pub(super) struct Entrant {
    pub(super) name: &'static str,
    line: Vec<OsString>,
    pub(super) runs: Vec<Trained>,
}

/// The figures of one run.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Trained {
    /// Of every step, in their order.
    pub(super) rates: Vec<f64>,
    /// The loss of the last step.
    pub(super) loss: f64,
    /// Of all steps.
    pub(super) tokens: u64,
    /// From its start to its end without its steps: loading, and saving where it saves.
    pub(super) besides: f64,
    /// Most bytes of the GPU's memory, by its own account.
    pub(super) peak: Option<u64>,
    /// What it calls the device.
    pub(super) device: String,
    /// Seconds of the last step by operation, the most first.
    pub(super) timings: Vec<(String, f64)>,
}

impl Entrant {
    /// One whose `line` is still to be filled in.
    pub(super) fn new(name: &'static str, words: &Words, line: &str) -> Self {
        Self { name, line: words.fill(line), runs: Vec::new() }
    }

    /// Trains once, with no outputs in `out` before it or after it.
    pub(super) fn run(&mut self, out: &Path) -> anyhow::Result<&Trained> {
        remove(out)?;
        let line = std::slice::from_ref(&self.line);
        let run = measure::run(line).with_context(|| self.name)?;
        let log = out.join(LOG);
        // qft leaves a log and prints a report; the peer prints both.
        let steps = if log.exists() { read(&log)? } else { run.printed.clone() };
        let trained = Trained::read(&steps, &run.printed, run.seconds);
        self.runs.push(trained.with_context(|| format!("{} said:\n{}{}", self.name, run.printed, run.complaints))?);
        remove(out)?;
        self.runs.last().context("a run that is there")
    }

    /// Tokens a second: the median of all runs' steps.
    pub(super) fn rate(&self) -> f64 {
        median(self.runs.iter().flat_map(Trained::counted).collect())
    }

    /// The most memory of all runs, in GiB.
    pub(super) fn peak_gib(&self) -> Option<f64> {
        self.runs.iter().filter_map(|run| run.peak).max().map(|bytes| bytes as f64 / f64::from(1 << 30))
    }

    /// Seconds besides the steps: the median of the runs.
    pub(super) fn besides(&self) -> f64 {
        median(self.runs.iter().map(|run| run.besides).collect())
    }
}

impl Trained {
    /// Reads the lines of the steps, and the report: the last object of what was printed.
    fn read(steps: &str, printed: &str, seconds: f64) -> anyhow::Result<Self> {
        let lines = steps.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<Value> = lines.filter(|line| line.get("loss").is_some()).collect();
        let rate = |line: &Value| line.get("tokens_per_second").and_then(Value::as_f64);
        let rates: Vec<f64> = lines.iter().filter_map(rate).collect();
        ensure!(rates.len() > WARM_UP, "no more than {} steps were logged with their tokens a second", rates.len());
        let report = report(printed).context("no report was printed")?;
        let number = |key: &str| report.get(key).and_then(Value::as_f64);
        let training = number("seconds").context("the report has no seconds")?;
        let timings = report.get("timings").and_then(Value::as_object).into_iter().flatten();
        let mut timings: Vec<(String, f64)> =
            timings.filter_map(|(name, seconds)| Some((name.clone(), seconds.as_f64()?))).collect();
        timings.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(Self {
            rates,
            loss: lines.last().and_then(|line| line.get("loss")?.as_f64()).unwrap_or(f64::NAN),
            tokens: report.get("tokens").and_then(Value::as_u64).context("the report has no tokens")?,
            besides: seconds - training,
            peak: report.get("peak_memory").and_then(Value::as_u64),
            device: report.get("device").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
            timings,
        })
    }

    /// The steps that count.
    fn counted(&self) -> impl Iterator<Item = f64> {
        self.rates.iter().copied().skip(WARM_UP)
    }

    /// Tokens a second: the median of its steps.
    pub(super) fn rate(&self) -> f64 {
        median(self.counted().collect())
    }
}

/// The last object in a text: indented over many lines, as qft prints it, or in a line of its own.
fn report(printed: &str) -> Option<Value> {
    let mut starts =
        printed.match_indices('{').map(|(at, _)| at).filter(|at| *at == 0 || printed[..*at].ends_with('\n'));
    let last = starts.next_back()?;
    serde_json::from_str(printed[last..].trim_end()).ok()
}

/// The middle one, or the mean of the two there; zero of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_log_and_the_report_of_qft() {
        let step =
            |step: u32, rate: f64| format!("{{\"loss\":{step}.5,\"tokens_per_second\":{rate},\"step\":{step}}}\n");
        let log: String =
            [(1, 10.0), (2, 20.0), (3, 90.0), (4, 70.0), (5, 80.0)].map(|(n, rate)| step(n, rate)).concat();
        let log = log + "{\"train_loss\":3.0,\"train_runtime\":1.0}\n";
        let printed = "{\n  \"tokens\": 640,\n  \"seconds\": 4.0,\n  \"device\": \"A GPU\",\n  \"peak_memory\": 1073741824,\n  \
                       \"timings\": {\n    \"attend\": 0.1,\n    \"project\": 0.4\n  }\n}\n";
        let trained = Trained::read(&log, printed, 9.5).unwrap();
        assert_eq!((trained.rate(), trained.loss, trained.tokens, trained.besides), (80.0, 5.5, 640, 5.5));
        assert_eq!((trained.peak, trained.device.as_str()), (Some(1 << 30), "A GPU"));
        assert_eq!(trained.timings, [("project".to_owned(), 0.4), ("attend".to_owned(), 0.1)]);
    }

    #[test]
    fn reads_what_the_peer_prints_and_says_what_is_missing() {
        let steps: String = (1..4).map(|n| format!("{{\"loss\": {n}.0, \"tokens_per_second\": {n}00.0}}\n")).collect();
        let printed = format!("a note\n{steps}{{\"seconds\": 1.5, \"tokens\": 30, \"peak_memory\": null}}\n");
        let trained = Trained::read(&printed, &printed, 2.0).unwrap();
        assert_eq!((trained.rate(), trained.besides, trained.peak, trained.timings.len()), (300.0, 0.5, None, 0));
        let problem = |steps: &str, printed: &str| Trained::read(steps, printed, 1.0).unwrap_err().to_string();
        assert!(problem("{\"loss\":1,\"tokens_per_second\":1}", "{}").contains("no more than 1 steps"));
        assert!(problem(&steps, "Killed\n").contains("no report"));
        assert!(problem(&steps, "{\"tokens\": 1}").contains("no seconds"));
    }

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!((median(vec![]), median(vec![3.0, 1.0]), median(vec![5.0, 1.0, 2.0])), (0.0, 2.0, 2.0));
    }
}
