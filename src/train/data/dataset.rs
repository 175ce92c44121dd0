//! Datasets as they are named on the command line: their files in order, the rows that can be used, those that can't
//! and why, and how many of them are taken.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde_json::Value;

use super::conversation::{Conversation, Flaw, Origin, is_parquet};
use super::rows::read_row;
use super::sample::sample;
use super::{json, parquet};
use crate::error::{Error, Result, escaped, shown};
use crate::files::{Mapping, open_regular};

/// Most rows that a sample may have.
const MAX_SAMPLE: usize = 1_000_000_000;
/// Most rows of a sample that repeats rows.
const MAX_REPEATED: usize = 1_000_000;
/// The extensions of data files in a directory.
const EXTENSIONS: [&str; 4] = ["json", "jsonl", "ndjson", "parquet"];
/// Files that the `datasets` library puts beside the data.
const NO_DATA: [&str; 4] = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
/// Words in names of files that aren't for training.
const HELD_OUT: [&str; 6] = ["test", "validation", "valid", "val", "dev", "eval"];

/// One argument of `--dataset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSpec {
    /// A file of rows, or a directory of such files.
    pub path: PathBuf,
    /// How many rows to take, chosen by the run's seed; all if `None`.
    pub sample: Option<usize>,
}

impl FromStr for DatasetSpec {
    type Err = Error;

    /// `data.jsonl`, or `data.jsonl#500` for 500 rows of it. A path that is there is taken as it is, `#` included.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::invalid("the dataset has no name", "give a file, or a directory of data files"));
        }
        let whole = Self { path: text.into(), sample: None };
        match text.rsplit_once('#') {
            Some((path, count)) if !path.is_empty() && !whole.path.exists() => match count.parse() {
                Ok(count) if (1..=MAX_SAMPLE).contains(&count) => Ok(Self { path: path.into(), sample: Some(count) }),
                _ => Err(Error::invalid(
                    format!("`#{}` after {} is not a number of rows", escaped(count), escaped(path)),
                    format!("give a whole number from 1 to {MAX_SAMPLE}, as in data.jsonl#500"),
                )),
            },
            _ => Ok(whole),
        }
    }
}

impl fmt::Display for DatasetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.sample.map_or(Ok(()), |count| write!(f, "#{count}"))
    }
}

impl DatasetSpec {
    /// The files, in order: a directory's by name. Its subdirectories are left alone.
    fn files(&self) -> Result<Vec<PathBuf>> {
        if !self.path.try_exists().map_err(Error::io("look at", &self.path))? {
            return Err(Error::not_found(
                format!("there is no file or directory {}", shown(&self.path)),
                "check the path; a data set of a hub must be downloaded first",
            ));
        }
        if !self.path.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let mut files = Vec::new();
        for entry in self.path.read_dir().map_err(Error::io("list", &self.path))? {
            let path = entry.map_err(Error::io("list", &self.path))?.path();
            // Links count as what they lead to: a hub's cache holds its files so.
            if is_data(&path) && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        let held_out: Vec<&PathBuf> = files.iter().filter(|file| is_held_out(file)).collect();
        if let Some(first) = held_out.first()
            && held_out.len() < files.len()
        {
            return Err(Error::invalid(
                format!("{} holds files for training and others, such as {}", shown(&self.path), shown(first)),
                "name the files instead of their directory",
            ));
        }
        if files.is_empty() {
            let problem = format!("{} holds no file named .{}", shown(&self.path), EXTENSIONS.join(", ."));
            return Err(Error::not_found(problem, "name the files, or the directory that they are in"));
        }
        Ok(files)
    }
}

fn is_data(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let extension = name.rsplit_once('.').map(|(_, extension)| extension).unwrap_or_default();
    EXTENSIONS.contains(&extension) && !name.starts_with('.') && !NO_DATA.contains(&&*name)
}

fn is_held_out(path: &Path) -> bool {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    stem.split(['-', '_', '.']).any(|word| HELD_OUT.contains(&word))
}

/// A row that can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is.
    pub origin: Origin,
    /// What is wrong with it, and what to do: "the role `x` is unknown; use ...".
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.reason)
    }
}

/// What came of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCounts {
    /// The file.
    pub file: Arc<Path>,
    /// Rows that can be used, before sampling.
    pub usable: u64,
    /// Rows that were skipped.
    pub skipped: u64,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The rows to use, in the order of the files and of the rows in each.
    pub conversations: Vec<Conversation>,
    /// Numbers of conversations in the order in which they are used: a sample may repeat them.
    pub order: Vec<usize>,
    /// Every row that can't be used.
    pub skipped: Vec<Skipped>,
    /// Counts of each file, in order.
    pub files: Vec<FileCounts>,
}

/// Reads the datasets, in order. A row that can't be used is skipped, or with `strict` refused; a file that can't be
/// read as a whole is always refused, and so are datasets without one row to use. `seed` chooses the samples.
pub fn load(specs: &[DatasetSpec], strict: bool, seed: u64) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    for (nth, spec) in (0..).zip(specs) {
        let first = loaded.conversations.len();
        for file in spec.files()? {
            read_file(&file, strict, &mut loaded)?;
        }
        let read = loaded.conversations.len() - first;
        let Some(count) = spec.sample else {
            loaded.order.extend(first..first + read);
            continue;
        };
        if count > MAX_REPEATED.max(read) {
            let problem = format!("{spec} requests {count} rows, and {read} can be used");
            let remedy = format!("request at most {MAX_REPEATED}; ⟦num_train_epochs⟧ repeats them too");
            return Err(Error::invalid(problem, remedy));
        }
        let chosen = sample(read, count, seed, nth);
        if count < read {
            let mut next = chosen.iter().peekable();
            let rows = loaded.conversations.split_off(first).into_iter().enumerate();
            loaded.conversations.extend(rows.filter(|(at, _)| next.next_if_eq(&at).is_some()).map(|(_, row)| row));
            loaded.order.extend(first..first + count);
        } else {
            loaded.order.extend(chosen.into_iter().map(|at| first + at));
        }
    }
    if loaded.conversations.is_empty() {
        return Err(nothing(specs, &loaded));
    }
    Ok(loaded)
}

/// Reads rows from text, as [`load`] reads a file of that name that isn't Parquet.
pub fn read_text(file: &Path, text: &[u8], strict: bool) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    let file: Arc<Path> = file.into();
    json::each_row(&file, text, &mut |line, row| loaded.take(&file, line, row, strict))?;
    loaded.order.extend(0..loaded.conversations.len());
    Ok(loaded)
}

fn read_file(path: &Path, strict: bool, loaded: &mut Loaded) -> Result<()> {
    let file: Arc<Path> = path.into();
    loaded.files.push(FileCounts { file: file.clone(), usable: 0, skipped: 0 });
    let found = &mut |line, row| loaded.take(&file, line, row, strict);
    if is_parquet(path) {
        parquet::each_row(path, open_regular(path)?.0, found)
    } else {
        json::each_row(path, Mapping::open(path)?.bytes(), found)
    }
}

impl Loaded {
    /// Keeps a row, or the reason why it is of no use.
    fn take(&mut self, file: &Arc<Path>, line: u64, row: Result<Value, Flaw>, strict: bool) -> Result<()> {
        let origin = Origin { file: file.clone(), line };
        let counts = self.files.last_mut();
        match row.and_then(read_row) {
            Ok((messages, tools)) => {
                self.conversations.push(Conversation { messages, tools, origin });
                counts.into_iter().for_each(|counts| counts.usable += 1);
            }
            Err(flaw) if strict => {
                return Err(Error::malformed(file, format!("{}: {}", origin.place(), flaw.problem), flaw.remedy));
            }
            Err(flaw) => {
                self.skipped.push(Skipped { origin, reason: format!("{}; {}", flaw.problem, flaw.remedy) });
                counts.into_iter().for_each(|counts| counts.skipped += 1);
            }
        }
        Ok(())
    }
}

fn nothing(specs: &[DatasetSpec], loaded: &Loaded) -> Error {
    let paths: Vec<String> = specs.iter().map(|spec| shown(&spec.path)).collect();
    let problem = match loaded.skipped.first() {
        Some(first) => format!("none of {} rows can be used; the first, {first}", loaded.skipped.len()),
        None => format!("there is no row in {}", paths.join(", ")),
    };
    Error::not_found(problem, "give data in one of the forms that `qft train` reads")
}

#[cfg(test)]
mod tests;
