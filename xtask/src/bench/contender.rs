//! One way to get from a base to an output, run after run, and the lines of the tables about it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;

use super::Words;
use super::data::Data;
use super::measure::{self, Memory, Run, least, median};

/// What an export says about the files that it wrote.
const CHECKSUMS: &str = "SHA256SUMS";
/// How qft begins a line about what went otherwise than asked for.
const WARNING: &str = "warning";

/// Command lines that are run one after the other and timed together, and what came of them.
pub(super) struct Contender {
    pub(super) name: String,
    lines: Vec<Vec<OsString>>,
    most_runs: usize,
    pub(super) runs: Vec<Run>,
    /// The different lists of checksums that its runs left: one, where each wrote the same bytes.
    pub(super) checksums: BTreeSet<String>,
}

impl Contender {
    /// One that runs `most_runs` times, whose `lines` are still to be filled in.
    pub(super) fn new(name: impl Into<String>, words: &Words, lines: &[&str], most_runs: usize) -> Self {
        let lines = lines.iter().map(|line| words.fill(line)).collect();
        Self { name: name.into(), lines, most_runs, runs: Vec::new(), checksums: BTreeSet::new() }
    }

    /// One run that is not counted, with an idle disk and no output there before it or after it.
    pub(super) fn once(&mut self, data: &Data) -> anyhow::Result<Run> {
        let run = self.run(data)?;
        fs::remove_dir_all(&data.out).with_context(|| format!("cannot remove {}", data.out.display()))?;
        Ok(run)
    }

    /// The same, and its output is kept as `path`.
    pub(super) fn keep(&mut self, path: &Path, data: &Data) -> anyhow::Result<()> {
        self.run(data)?;
        fs::rename(&data.out, path).with_context(|| format!("cannot create {}", path.display()))
    }

    fn run(&mut self, data: &Data) -> anyhow::Result<Run> {
        measure::settle(&data.dir)?;
        let run = measure::run(&self.lines).with_context(|| self.name.clone())?;
        match fs::read_to_string(data.out.join(CHECKSUMS)) {
            Ok(text) => drop(self.checksums.insert(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read the {CHECKSUMS} of {}", self.name)),
        }
        Ok(run)
    }

    pub(super) fn median(&self) -> f64 {
        median(&self.runs)
    }

    /// The run in the middle, or the faster of two there.
    pub(super) fn middle_run(&self) -> Option<&Run> {
        let mut runs: Vec<&Run> = self.runs.iter().collect();
        runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        runs.get(runs.len().saturating_sub(1) / 2).copied()
    }

    /// The most anonymous and the most resident memory of all runs.
    pub(super) fn memory_mib(&self) -> [u64; 2] {
        Memory::most(&self.runs).mib()
    }
}

/// Runs all in turn, so often, as long as each has a run left.
pub(super) fn compete(contenders: &mut [Contender], rounds: usize, data: &Data) -> anyhow::Result<()> {
    for round in 0..rounds {
        for contender in contenders.iter_mut().filter(|contender| round < contender.most_runs) {
            let run = contender.once(data)?;
            println!("round {}: {:<20} {:>7.2} s  {}", round + 1, contender.name, run.seconds, run.said());
            run.complaints.lines().filter(|line| line.starts_with(WARNING)).for_each(|line| println!("  {line}"));
            contender.runs.push(run);
        }
    }
    Ok(())
}

/// The contender of this name, if it is there.
pub(super) fn find<'a>(contenders: &'a [Contender], name: &str) -> Option<&'a Contender> {
    contenders.iter().find(|contender| contender.name == name)
}

/// A Markdown table of all contenders, with ratios to some: by the words of the head, the name.
pub(super) fn table(contenders: &[Contender], ratios: &[(&str, &str)]) -> String {
    let heads: String = ratios.iter().map(|(head, _)| format!(" ratio to {head} |")).collect();
    let rules = " ---: |".repeat(ratios.len());
    let head = format!(
        "| what | median s | min s |{heads} peak anonymous | peak resident |\n| --- | ---: | ---: |{rules} ---: | ---: |\n"
    );
    let row = |contender: &Contender| {
        let seconds = contender.median();
        let ratio = |(_, name): &(&str, &str)| {
            find(contenders, name).map_or_else(|| "-".to_owned(), |to| format!("{:.2}", seconds / to.median()))
        };
        let mut cells = vec![format!("{seconds:.2}"), format!("{:.2}", least(&contender.runs))];
        cells.extend(ratios.iter().map(ratio));
        cells.extend(contender.memory_mib().map(|mib| format!("{mib} MiB")));
        format!("| {} | {} |\n", contender.name, cells.join(" | "))
    };
    head + &contenders.iter().map(row).collect::<String>()
}

/// A line about a target: what was promised, and what was seen.
pub(super) fn target(met: bool, promised: &str, seen: &str) -> String {
    format!("{promised}: {seen} ({})", if met { "passed" } else { "missed" })
}
