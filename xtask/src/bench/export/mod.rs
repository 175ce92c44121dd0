//! `cargo xtask bench export`: how long an export takes against copying the base, and against PEFT, on one machine in
//! one run.

mod report;

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::data::Data;
use super::measure::{self, Run};
use super::{GET_PEER, PEER_RUNS, SCRIPT, Words, check_python, data_dir, machine, qft};
use crate::options::Options;

const CP: &str = "cp -r";
const QFT: &str = "qft export";
const PEFT: &str = "PEFT";

/// The contenders, each with command lines that are run one after the other and timed together. Words in capitals
/// stand for paths and for the peer's script.
const CONTENDERS: [(&str, &[&str]); 5] = [
    (CP, &["cp -r BASE OUT"]),
    ("cp -r, sync -f", &["cp -r BASE OUT", "sync -f OUT"]),
    (QFT, &["QFT export --merge-lora --base BASE --adapter ADAPTER --max-shard 2GB --out OUT"]),
    (
        "qft export --jobs 1",
        &["QFT export --merge-lora --base BASE --adapter ADAPTER --max-shard 2GB --out OUT --jobs 1"],
    ),
    (PEFT, &["PYTHON -c SCRIPT BASE ADAPTER OUT"]),
];

/// One way to get from a base to a directory of weights.
struct Contender {
    name: &'static str,
    lines: Vec<Vec<OsString>>,
    most_runs: usize,
    runs: Vec<Run>,
}

/// Makes the data, runs the contenders and prints a Markdown table.
pub(crate) fn export(args: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(args, &["layers", "runs", "dir", "python", "qft"])?;
    let rounds = options.count("runs", 5)?;
    let dir = data_dir(&options);
    let python = options.text("python");
    python.map_or(Ok(()), check_python)?;
    let data = Data::prepare(&dir, options.count("layers", 2)?)?;
    let mut contenders = contenders(&data, &qft(&options)?, python, rounds);
    let machine = machine::describe(&dir)?;
    data.read_once()?;
    // Not counted: the first to fill so much memory pays for all who follow.
    once(&contenders[0], &data)?;
    for round in 0..rounds {
        compete(&mut contenders, round, &data)?;
    }
    println!("\n{machine}\n{}\n\n{}", data.describe(), report::table(&contenders));
    println!("{}", report::targets(&contenders));
    if python.is_none() {
        println!("PEFT was left out; to compare with it: {GET_PEER}");
    }
    Ok(())
}

/// The contenders with their words filled in; the peer only where there is a Python for it.
fn contenders(data: &Data, qft: &Path, python: Option<&str>, rounds: usize) -> Vec<Contender> {
    let words = Words(vec![
        ("BASE", vec![data.base.clone().into()]),
        ("ADAPTER", vec![data.adapter.clone().into()]),
        ("OUT", vec![data.out.clone().into()]),
        ("QFT", vec![qft.into()]),
        ("PYTHON", vec![python.unwrap_or_default().into()]),
        ("SCRIPT", vec![SCRIPT.into()]),
    ]);
    let chosen = CONTENDERS.iter().filter(|(name, _)| *name != PEFT || python.is_some());
    let contender = |(name, lines): &(&'static str, &[&str])| Contender {
        name,
        lines: lines.iter().map(|line| words.fill(line)).collect(),
        most_runs: if *name == PEFT { rounds.min(PEER_RUNS) } else { rounds },
        runs: Vec::new(),
    };
    chosen.map(contender).collect()
}

/// Runs every contender that has a run left.
fn compete(contenders: &mut [Contender], round: usize, data: &Data) -> anyhow::Result<()> {
    for contender in contenders.iter_mut().filter(|contender| round < contender.most_runs) {
        let run = once(contender, data)?;
        println!("round {}: {:<20} {:>7.2} s  {}", round + 1, contender.name, run.seconds, run.said);
        contender.runs.push(run);
    }
    Ok(())
}

/// One run, with an idle disk and no output there before it or after it.
fn once(contender: &Contender, data: &Data) -> anyhow::Result<Run> {
    measure::settle(&data.dir)?;
    let run = measure::run(&contender.lines).with_context(|| contender.name)?;
    fs::remove_dir_all(&data.out).with_context(|| format!("cannot remove {}", data.out.display()))?;
    Ok(run)
}
