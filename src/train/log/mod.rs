//! Monitoring a run: its records, where they go (`logging.jsonl`, event files of `TensorBoard`, the loss curve), and
//! what the host is told of its progress. Nothing is sent anywhere.

mod append;
mod curve;
mod jsonl;
mod record;
mod tensorboard;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use curve::{Curve, Point};
pub use jsonl::{JsonLines, LOG_FILE};
pub use record::{Eval, Figures, Last, Moment, Record, Train, duration};
pub use tensorboard::EventFile;

use crate::error::{Error, Result, escaped};

/// Directory of the event files in that of a run, where ms-swift has it.
pub const EVENTS_DIR: &str = "runs";
/// Name of the loss curve in the directory of a run.
pub const CURVE_FILE: &str = "loss.svg";

/// A place where records go.
pub trait Watch {
    /// Takes a record; what it wrote is with the system when it returns.
    fn record(&mut self, record: &Record) -> Result<()>;
    /// No record will follow.
    fn finish(&mut self) -> Result<()>;
}

/// What `--report_to` may ask for, beside `logging.jsonl`, which is always written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// Event files.
    TensorBoard,
    /// Event files too, and a command that hands them over.
    SwanLab,
}

/// What the names stand for.
const REPORTS: [(&str, Option<Report>); 3] =
    [("none", None), ("tensorboard", Some(Report::TensorBoard)), ("swanlab", Some(Report::SwanLab))];

impl Report {
    /// The reports called `names`; ms-swift's default is `tensorboard`.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Vec<Self>> {
        let mut reports = Vec::new();
        for name in names {
            let name = name.as_ref();
            let Some((_, report)) = REPORTS.iter().find(|(known, _)| *known == name) else {
                let problem = format!("qft does not report to \"{}\"", escaped(name));
                return Err(Error::unsupported(problem, others(name)));
            };
            match report {
                None if names.len() > 1 => {
                    let problem = "⟦report_to⟧ has none together with another name";
                    return Err(Error::invalid(problem, "leave one of them out"));
                }
                Some(report) if !reports.contains(report) => reports.push(*report),
                _ => {}
            }
        }
        Ok(reports)
    }
}

/// What to do for a service that nothing is sent to.
fn others(name: &str) -> &'static str {
    match name {
        "wandb" => "give ⟦report_to tensorboard⟧, and upload the event files with `wandb sync`",
        "mlflow" | "trackio" | "comet_ml" | "clearml" | "neptune" | "dvclive" => {
            "give ⟦report_to tensorboard⟧, and import the event files or logging.jsonl there"
        }
        _ => "give ⟦report_to⟧ none, tensorboard or swanlab",
    }
}

/// Everything that keeps the records of a run.
#[derive(Default)]
pub struct Logs {
    run: Option<PathBuf>,
    sinks: Vec<Box<dyn Watch + Send>>,
    history: Vec<Map<String, Value>>,
    /// The event files to hand over.
    swanlab: Option<PathBuf>,
}

/// What a finished log leaves to say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Finished {
    /// The loss curve, if a step was logged.
    pub curve: Option<PathBuf>,
    /// A command line to print: it hands the run to `SwanLab`.
    pub command: Option<String>,
}

impl Logs {
    /// The logs in the directory `run` of a run that has done `done` steps, with `history` (`log_history` of
    /// `trainer_state.json`) of them. The logs of later steps are cut. Event files go to `events`, else to `runs` in it.
    pub fn open(
        run: &Path,
        events: Option<&Path>,
        reports: &[Report],
        done: u64,
        history: Vec<Map<String, Value>>,
    ) -> Result<Self> {
        fs::create_dir_all(run).map_err(Error::io("create", run))?;
        let events = events.map_or_else(|| run.join(EVENTS_DIR), Path::to_owned);
        let mut sinks: Vec<Box<dyn Watch + Send>> = vec![Box::new(JsonLines::open(&run.join(LOG_FILE), done)?)];
        if !reports.is_empty() {
            sinks.push(Box::new(EventFile::create(&events, done)?));
        }
        let swanlab = reports.contains(&Report::SwanLab).then_some(events);
        Ok(Self { run: Some(run.to_owned()), sinks, history, swanlab })
    }

    /// Logs that keep nothing but their history: of ranks other than 0, and of tests.
    pub fn quiet() -> Self {
        Self::default()
    }

    /// The logs of a run that was over already, of `history`: they stay as they are, but for what a crash may have torn,
    /// or come before: the last line, and the curve.
    pub fn of_a_run_that_is_over(run: &Path, history: Vec<Map<String, Value>>) -> Result<Self> {
        jsonl::mend(&run.join(LOG_FILE))?;
        Ok(Self { run: Some(run.to_owned()), history, ..Self::default() })
    }

    /// Takes a record. An error is that of a file; what it could not take, it writes before the next record.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        self.history.push(record.history());
        self.sinks.iter_mut().map(|sink| sink.record(record)).fold(Ok(()), Result::and)
    }

    /// All records of the run, as `log_history` of `trainer_state.json` has them.
    pub fn history(&self) -> &[Map<String, Value>] {
        &self.history
    }

    /// No record will follow: the files are brought to the disk, and the loss curve is drawn under `title`.
    pub fn finish(&mut self, title: &str) -> Result<Finished> {
        for mut sink in self.sinks.drain(..) {
            sink.finish()?;
        }
        let Some(run) = &self.run else { return Ok(Finished::default()) };
        let curve = match Curve::from_history(title, &self.history).svg() {
            Some(svg) => Some(publish(&run.join(CURVE_FILE), svg.as_bytes())?),
            None => None,
        };
        let command = self.swanlab.as_deref().map(convert);
        Ok(Finished { curve, command })
    }
}

/// Writes a file that is whole from its first moment on.
fn publish(path: &Path, content: &[u8]) -> Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    fs::write(&beside, content).map_err(Error::io("write", &beside))?;
    fs::rename(&beside, path).map_err(Error::io("rename", &beside))?;
    Ok(path.to_owned())
}

/// Brings the names in a directory to the disk.
fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// The command that hands event files to `SwanLab`, 0.8 or newer: older ones spell the flag `--tb_logdir`. It takes
/// every file for a run of its own, so one that was resumed gives several.
fn convert(events: &Path) -> String {
    format!("swanlab convert -t tensorboard --tb-log-dir {}", quoted(&events.to_string_lossy()))
}

/// A word of a shell's command line.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    escaped(&format!("'{}'", word.replace('\'', r"'\''")))
}

/// A step as it is done: for a bar.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tick {
    /// Optimizer steps done.
    pub step: u64,
    /// Loss of this step.
    pub loss: f64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Tokens a second, of this step or of a few.
    pub tokens_per_second: f64,
}

/// What a run tells its host. The binary shows a bar; tests and other hosts listen or don't.
pub trait TrainProgress: Sync {
    /// Training begins: `max_steps` steps, of which `done` were done before.
    fn start(&self, _max_steps: u64, _done: u64) {}
    /// An optimizer step is done.
    fn step(&self, _tick: &Tick) {}
    /// A record has been logged.
    fn record(&self, _record: &Record) {}
    /// The run has entered another phase: "reading", "tokenizing", "loading the base", "training", "evaluating", "saving". After
    /// each evaluation and each checkpoint it is "training" again, at the end too.
    fn phase(&self, _name: &str) {}
    /// Something that the user should read: a skipped step, a dropped row.
    fn note(&self, _line: &str) {}
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl TrainProgress for Unwatched {}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss: f64) -> Record {
        let at = Moment { step, max_steps: 40, seconds: step as f64, ..Moment::default() };
        Record { at, figures: Figures::Train(Train { loss, learning_rate: 1e-4, ..Train::default() }) }
    }

    #[test]
    fn reports_are_none_or_known() {
        assert_eq!(Report::parse(&["none"]).unwrap(), []);
        assert_eq!(Report::parse::<&str>(&[]).unwrap(), []);
        let both = [Report::SwanLab, Report::TensorBoard];
        assert_eq!(Report::parse(&["swanlab", "tensorboard", "swanlab"]).unwrap(), both);
        assert_eq!(serde_json::to_string(&both).unwrap(), r#"["swanlab","tensorboard"]"#);
        let remedies = [("wandb", "wandb sync"), ("mlflow", "import"), ("Tensorboard", "none, tensorboard or swanlab")];
        for (name, remedy) in remedies {
            let error = Report::parse(&["tensorboard", name]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(remedy), "{error}");
        }
        assert!(Report::parse(&["none", "tensorboard"]).is_err());
        assert!(Report::parse(&["tensorboard", "none"]).is_err());
    }

    #[test]
    fn a_run_leaves_its_logs() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a run");
        let mut logs = Logs::open(&run, None, &[Report::SwanLab], 0, Vec::new()).unwrap();
        for step in 1..=4 {
            logs.record(&record(step * 10, 3.0 / step as f64)).unwrap();
        }
        assert_eq!(logs.history().len(), 4);
        let finished = logs.finish("a run").unwrap();
        assert_eq!(finished.curve, Some(run.join(CURVE_FILE)));
        let command = format!("swanlab convert -t tensorboard --tb-log-dir '{}'", run.join(EVENTS_DIR).display());
        assert_eq!(finished.command, Some(command));
        let mut names: Vec<_> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [LOG_FILE, CURVE_FILE, EVENTS_DIR]);

        let history = logs.history()[..2].to_vec();
        let mut resumed = Logs::open(&run, None, &[], 20, history).unwrap();
        resumed.record(&record(30, 0.5)).unwrap();
        assert_eq!(resumed.finish("a run").unwrap().command, None);
        assert_eq!(fs::read_to_string(run.join(LOG_FILE)).unwrap().lines().count(), 3);
        assert!(fs::read_to_string(run.join(CURVE_FILE)).unwrap().contains("0.5"));
        assert_eq!(fs::read_dir(run.join(EVENTS_DIR)).unwrap().count(), 1);
    }

    #[test]
    fn logs_of_a_run_that_is_over_are_mended() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let mut logs = Logs::open(run, None, &[], 0, Vec::new()).unwrap();
        [10, 20].iter().for_each(|step| logs.record(&record(*step, 1.0)).unwrap());
        let (log, history) = (run.join(LOG_FILE), logs.history().to_vec());
        let whole = fs::read(&log).unwrap();
        for torn in [&b"{\"train_runtime\": 1"[..], b""] {
            fs::write(&log, [&whole, torn].concat()).unwrap();
            let mut logs = Logs::of_a_run_that_is_over(run, history.clone()).unwrap();
            assert_eq!(logs.finish("a run").unwrap().curve, Some(run.join(CURVE_FILE)));
            assert_eq!(fs::read(&log).unwrap(), whole);
        }
        // What was deleted is not made again.
        fs::remove_file(&log).unwrap();
        Logs::of_a_run_that_is_over(run, history).unwrap();
        assert!(!log.exists());
    }

    #[test]
    fn quiet_logs_write_nothing() {
        let mut logs = Logs::quiet();
        logs.record(&record(10, 1.0)).unwrap();
        assert_eq!((logs.history().len(), logs.finish("a run").unwrap()), (1, Finished::default()));
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        let cases = [("/a/b-c_1.0", "/a/b-c_1.0"), ("/a b/$x", "'/a b/$x'"), ("it's", r"'it'\''s'"), ("", "''")];
        cases.iter().for_each(|(word, expected)| assert_eq!(quoted(word), *expected));
        assert_eq!(quoted("a\u{1b}[2J"), "'a\\u{1b}[2J'");
    }
}
