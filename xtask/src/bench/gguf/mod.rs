//! `cargo xtask bench gguf`: quantizing, the way from adapter to GGUF, and several outputs of one read, against
//! llama.cpp's tools and PEFT. What competes is in `contests`, which peers are there in `peers`.

mod contests;
mod peers;
mod report;
mod same;

use std::ffi::OsString;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, ensure};

use super::data::{self, Data};
use super::measure::{self, Memory, Run};
use super::{SCRIPT, Words, data_dir, machine, qft};
use crate::options::Options;
use contests::{Contest, Part};
use peers::Peers;
use same::Same;

const OPTIONS: &[&str] = &["layers", "runs", "dir", "python", "llama", "tokenizer", "qft", "threads"];

/// Makes the data, lets qft and its peers compete, and prints Markdown tables.
pub(crate) fn gguf(args: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(args, OPTIONS)?;
    let rounds = options.count("runs", 3)?;
    let cores = available_parallelism().map_or(1, NonZero::get);
    let mut threads = vec![options.count("threads", 1)?, cores];
    threads.dedup();
    let dir = data_dir(&options);
    let peers = Peers::find(&options);
    let data = Data::prepare(&dir, options.count("layers", 2)?)?;
    let pre = data.put_tokenizer(options.text("tokenizer").map(Path::new))?;
    let words = words(&data, &qft(&options)?, &peers, pre);
    let mut contests = contests::all(&words, &peers, &threads, cores);
    let machine = machine::describe(&dir)?;
    data.read_once()?;
    let source = make_source(&words)?;
    for round in 0..rounds {
        for contest in &mut contests {
            compete(contest, round, &data, &words)?;
        }
    }
    fs::remove_file(&source).with_context(|| format!("cannot remove {}", source.display()))?;
    println!("\n{machine}\n{}\n\n{}", data.describe(), report::contests(&contests));
    println!("{}", report::parts(&contests, data.weights));
    for reason in peers.left_out() {
        println!("Left out: {reason}");
    }
    Ok(())
}

/// What the words of the contests' command lines stand for.
fn words(data: &Data, qft: &Path, peers: &Peers, pre: Vec<OsString>) -> Words {
    let (quantize, chain) = (peers.quantize.as_ref().ok(), peers.chain.as_ref().ok());
    Words(vec![
        ("BASE", vec![data.base.clone().into()]),
        ("ADAPTER", vec![data.adapter.clone().into()]),
        ("OUT", vec![data.out.clone().into()]),
        ("SOURCE", vec![data.out.with_file_name("source.gguf").into()]),
        ("QFT", vec![qft.into()]),
        ("PRE", pre),
        ("TOKENIZER", data.tokenizer_files().into_iter().map(Into::into).collect()),
        ("QUANTIZE", quantize.map(Into::into).into_iter().collect()),
        ("PYTHON", chain.map(|chain| chain.python.as_str().into()).into_iter().collect()),
        ("CONVERT", chain.map(|chain| chain.converter.as_path().into()).into_iter().collect()),
        ("SCRIPT", vec![SCRIPT.into()]),
    ])
}

/// Makes the BF16 file that is quantized, and has it in the page cache.
fn make_source(words: &Words) -> anyhow::Result<PathBuf> {
    println!("making the BF16 file that is quantized");
    let line = words.fill("QFT gguf BASE --type bf16 --name bench PRE --overwrite --out SOURCE");
    output(&line)?;
    let source = PathBuf::from(line.last().context("an empty command line")?);
    data::read(&source)?;
    Ok(source)
}

/// How many bytes the tensors of a GGUF file have, as qft counts them.
fn tensor_bytes(words: &Words, file: &Path) -> anyhow::Result<u64> {
    let mut line = words.fill("QFT inspect --json");
    line.push(file.into());
    let said: serde_json::Value = serde_json::from_slice(&output(&line)?).context("qft inspect printed no JSON")?;
    said["bytes"].as_u64().context("qft inspect --json printed no bytes")
}

/// What a command prints that is not timed.
fn output(line: &[OsString]) -> anyhow::Result<Vec<u8>> {
    let (program, args) = line.split_first().context("an empty command line")?;
    let name = program.display();
    let output = Command::new(program).args(args).output().with_context(|| format!("{name} could not be started"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(output.stdout)
}

/// One round of a contest, with nothing there before it or after it.
fn compete(contest: &mut Contest, round: usize, data: &Data, words: &Words) -> anyhow::Result<()> {
    let result = fs::create_dir(&data.out).with_context(|| format!("cannot create {}", data.out.display()));
    let result = result.and_then(|()| {
        for part in contest.ours.iter_mut().chain(&mut contest.theirs).filter(|part| round < part.most_runs) {
            measure::settle(&data.dir)?;
            let run = measure::run(&part.lines).with_context(|| part.name.clone())?;
            println!("round {}: {}: {:<24} {:>8.2} s", round + 1, contest.name, part.name, run.seconds);
            part.runs.push(run);
        }
        if round == 0 && contest.compares {
            let last = |parts: &[Part]| parts.last().map(|part| part.output.clone());
            if let (Some(ours), Some(theirs)) = (last(&contest.ours), last(&contest.theirs)) {
                contest.same = Some(Same::of(&ours, &theirs, tensor_bytes(words, &ours)?)?);
            }
        }
        Ok(())
    });
    fs::remove_dir_all(&data.out).with_context(|| format!("cannot remove {}", data.out.display())).and(result)
}
