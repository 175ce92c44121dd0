//! `cargo xtask bench export`: how long an export takes against copying the base, and against PEFT, on one machine in
//! one run.

mod data;
mod machine;
mod measure;
mod report;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::options::Options;
use crate::shell::{self, root};
use data::Data;
use measure::Run;

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

const SCRIPT: &str = include_str!("peft_merge.py");
/// The peer is slow and steady: it runs twice at most.
const PEER_RUNS: usize = 2;
const GET_PEER: &str = "python3 -m venv VENV && VENV/bin/pip install torch transformers peft, \
                        then --python VENV/bin/python";

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
    let dir = options.text("dir").map_or_else(|| root().join("bench-data"), PathBuf::from);
    let python = options.text("python");
    python.map_or(Ok(()), check_python)?;
    let data = Data::prepare(&dir, options.count("layers", 2)?)?;
    let qft = options.text("qft").map_or_else(build, |path| Ok(PathBuf::from(path)))?;
    let mut contenders = contenders(&data, &qft, python, rounds);
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

/// Builds the release binary, and says where it is: beside the directory of this one.
fn build() -> anyhow::Result<PathBuf> {
    shell::run(&mut shell::command("cargo build --release --quiet --package qft"))?;
    let here = std::env::current_exe().context("cannot find this program's own file")?;
    let target = here.ancestors().nth(2).context("this program does not lie in a target directory")?;
    Ok(target.join("release/qft"))
}

/// The contenders with their words filled in; the peer only where there is a Python for it.
fn contenders(data: &Data, qft: &Path, python: Option<&str>, rounds: usize) -> Vec<Contender> {
    let words: [(&str, &OsStr); 6] = [
        ("BASE", data.base.as_ref()),
        ("ADAPTER", data.adapter.as_ref()),
        ("OUT", data.out.as_ref()),
        ("QFT", qft.as_ref()),
        ("PYTHON", python.unwrap_or_default().as_ref()),
        ("SCRIPT", SCRIPT.as_ref()),
    ];
    let fill = |word: &str| words.iter().find(|(name, _)| *name == word).map_or(word.into(), |(_, w)| (*w).to_owned());
    let chosen = CONTENDERS.iter().filter(|(name, _)| *name != PEFT || python.is_some());
    let contender = |(name, lines): &(&'static str, &[&str])| Contender {
        name,
        lines: lines.iter().map(|line| line.split(' ').map(fill).collect()).collect(),
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

fn check_python(python: &str) -> anyhow::Result<()> {
    let output = Command::new(python).args(["-c", "import torch, transformers, peft"]).output();
    let output = output.with_context(|| format!("{python} could not be started: name a Python with --python"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{python} lacks what the peer needs: {}\n  remedy: {GET_PEER}",
        said.lines().last().unwrap_or_default()
    );
    Ok(())
}
