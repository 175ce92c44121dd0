//! `logging.jsonl`: a line a record, appended. Of a run that resumes, the lines of later steps are cut first, so that
//! the file is the log of one run.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use serde_json::Value;

use super::append::Appended;
use super::record::{RUNTIME, Record, STEP};
use super::{Watch, sync_dir};
use crate::error::{Error, Result};

/// Name of the log in the directory of a run.
pub const LOG_FILE: &str = "logging.jsonl";

/// Longest line that is taken for one.
const LONGEST: u64 = 1 << 20;

/// Appends records to a file.
#[derive(Debug)]
pub struct JsonLines {
    file: Appended,
}

impl JsonLines {
    /// The log at `path` of a run that has done `done` steps. What the file has of later steps is cut, and so is what
    /// is no whole record of a step (a crash may have torn the last line) and the record of an end, which it was not.
    pub fn open(path: &Path, done: u64) -> Result<Self> {
        if path.try_exists().map_err(Error::io("look for", path))? {
            cut(path, done)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(Error::io("open", path))?;
        Ok(Self { file: Appended::new(file, path)? })
    }
}

impl Watch for JsonLines {
    fn record(&mut self, record: &Record) -> Result<()> {
        self.file.add((record.line() + "\n").as_bytes())
    }

    fn finish(&mut self) -> Result<()> {
        self.file.finish()
    }
}

/// Cuts off the file at `path` what is no whole line: a crash may have torn the last one.
pub(super) fn mend(path: &Path) -> Result<()> {
    let text = match fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        text => text.map_err(Error::io("read", path))?,
    };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole == text.len() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
    file.set_len(whole as u64).map_err(Error::io("cut", path))
}

/// Rewrites the file at `path` without the lines that a run at step `done` did not write.
fn cut(path: &Path, done: u64) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".cut");
    let beside = path.with_file_name(name);
    let mut reader = BufReader::new(File::open(path).map_err(Error::io("open", path))?);
    let mut writer = BufWriter::new(File::create(&beside).map_err(Error::io("create", &beside))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        if is_of(&line, done) {
            writer.write_all(&line).map_err(Error::io("write", &beside))?;
        }
    }
    let file = writer.into_inner().map_err(|e| Error::io("write", &beside)(e.into_error()))?;
    file.sync_all().map_err(Error::io("sync", &beside))?;
    fs::rename(&beside, path).map_err(Error::io("rename", &beside))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Whether a line, with its end, is a record of a step up to `done`.
fn is_of(line: &[u8], done: u64) -> bool {
    let Some(text) = line.strip_suffix(b"\n") else { return false };
    let Ok(Value::Object(entry)) = serde_json::from_slice(text) else { return false };
    let step = match entry.get(STEP) {
        Some(step) => step.as_u64(),
        // ms-swift's own lines have the step nowhere else.
        None => entry
            .get("global_step/max_steps")
            .and_then(Value::as_str)
            .and_then(|text| text.split_once('/')?.0.parse().ok()),
    };
    done > 0 && step.is_some_and(|step| step <= done) && !entry.contains_key(RUNTIME)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Figures, Last, Moment, Train};
    use super::*;

    fn record(step: u64) -> Record {
        let at = Moment { step, max_steps: 100, seconds: 1.0, ..Moment::default() };
        Record { at, figures: Figures::Train(Train { loss: 1.0 / step as f64, ..Train::default() }) }
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()[STEP].as_u64().unwrap();
        text.lines().map(step).collect()
    }

    #[test]
    fn a_resumed_log_is_that_of_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        let mut log = JsonLines::open(&path, 0).unwrap();
        for step in [10, 20, 30, 40] {
            log.record(&record(step)).unwrap();
            assert_eq!(steps(&path).last(), Some(&step), "at once");
        }
        log.finish().unwrap();
        // A crash tore a line.
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [whole.as_slice(), b"{\"loss\": 1.0, \"step\": 5"].concat()).unwrap();
        let mut log = JsonLines::open(&path, 20).unwrap();
        assert_eq!(steps(&path), [10, 20]);
        assert!(whole.starts_with(&fs::read(&path).unwrap()), "what is kept is kept byte for byte");
        log.record(&record(30)).unwrap();
        assert_eq!(steps(&path), [10, 20, 30]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_run_from_the_start_begins_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        JsonLines::open(&path, 0).unwrap().record(&record(10)).unwrap();
        let log = JsonLines::open(&path, 0).unwrap();
        assert_eq!(steps(&path), [] as [u64; 0]);
        drop(log);
        JsonLines::open(&path, 0).unwrap().record(&record(20)).unwrap();
        assert_eq!(steps(&path), [20]);
    }

    #[test]
    fn an_end_that_was_none_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        let mut log = JsonLines::open(&path, 0).unwrap();
        log.record(&record(10)).unwrap();
        log.record(&Record { at: record(10).at, figures: Figures::Last(Last::default()) }).unwrap();
        assert_eq!(steps(&path), [10, 10]);
        JsonLines::open(&path, 10).unwrap();
        assert_eq!(steps(&path), [10]);
    }

    #[test]
    fn lines_of_others_are_read_or_cut() {
        let kept = [&b"{\"loss\": 1.5, \"global_step/max_steps\": \"5/100\"}\n"[..], b"{\"step\": 10}\n"];
        let cut = [
            &b"{\"global_step/max_steps\": \"11/100\"}\n"[..],
            b"{\"global_step/max_steps\": \"x\"}\n",
            b"{\"step\": -1}\n",
            b"{\"step\": 1.5}\n",
            b"[]\n",
            b"\n",
            b"\xff\xfe\n",
            b"{\"step\": 10}",
            b"{\"step\": 10, \"train_runtime\": 1.0}\n",
        ];
        kept.iter().for_each(|line| assert!(is_of(line, 10), "{line:?}"));
        cut.iter().for_each(|line| assert!(!is_of(line, 10), "{line:?}"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        let long = [vec![b'['; 3 << 20], b"\n".to_vec()].concat();
        fs::write(&path, [kept[0], &long, kept[1]].concat()).unwrap();
        JsonLines::open(&path, 10).unwrap();
        assert_eq!(fs::read(&path).unwrap(), kept.concat());
    }
}
