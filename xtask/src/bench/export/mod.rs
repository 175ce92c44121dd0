//! `cargo xtask bench export`: how long an export takes against copying the base, and against PEFT, on one machine in
//! one run.

mod report;

use std::path::Path;

use super::contender::{Contender, compete};
use super::data::Data;
use super::{GET_PEER, PEER_RUNS, SCRIPT, Words, check_python, data_dir, machine, qft};
use crate::options::Options;

const CP: &str = "cp -r";
const QFT: &str = "qft export";
const PEFT: &str = "PEFT";

/// The contenders, each with its command lines. Words in capitals stand for paths and for the peer's script.
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
    contenders[0].once(&data)?;
    compete(&mut contenders, rounds, &data)?;
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
    let runs = |name| if name == PEFT { rounds.min(PEER_RUNS) } else { rounds };
    chosen.map(|(name, lines)| Contender::new(*name, &words, lines, runs(*name))).collect()
}
