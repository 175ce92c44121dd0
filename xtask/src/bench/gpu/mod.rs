//! `cargo xtask bench gpu`: exports on a GPU against the processor, against a copy with digests, and against PEFT on the
//! GPU, on one machine in one run. What is promised is in `report`.

mod report;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::contender::{Contender, compete};
use super::data::Data;
use super::{GET_PEER, PEER_RUNS, SCRIPT, Words, check_python_on_card, data_dir, machine, qft};
use crate::options::Options;

const OPTIONS: &[&str] = &["layers", "runs", "dir", "python", "tokenizer", "qft"];

const CP: &str = "cp -r";
const COPY: &str = "copy and SHA-256";
const PEFT: &str = "PEFT on the GPU";
const SHARDS: &str = "shards";
const Q4_K_M: &str = "Q4_K_M";
const Q8_0: &str = "Q8_0";
const CPU: &str = "cpu";
const CUDA: &str = "cuda";
const AUTO: &str = "auto";

/// The least that writing shards with their digests takes: as many processes as a machine with few cores can feed.
const COPY_SCRIPT: &str = "set -o pipefail; mkdir -p \"$2\"; printf '%s\\0' \"$1\"/*.safetensors | xargs -0 -P 8 -n 1 \
                           bash -c 'set -o pipefail; tee \"$0/${1##*/}\" < \"$1\" | sha256sum' \"$2\"";
/// The line of every export; words in capitals stand for paths, programs and options.
const EXPORT: &str = "QFT export --merge-lora --base BASE --adapter ADAPTER OUTPUT --device DEVICE --timings --out OUT";

/// What is exported, with the options of it, and on which devices.
struct Output {
    name: &'static str,
    options: &'static str,
    devices: &'static [&'static str],
}

const OUTPUTS: [Output; 3] = [
    Output { name: SHARDS, options: "--max-shard 2GB", devices: &[CPU, CUDA, AUTO] },
    Output { name: Q4_K_M, options: "--gguf q4_k_m --name bench PRE", devices: &[CPU, CUDA, AUTO] },
    Output { name: Q8_0, options: "--gguf q8_0 --name bench PRE", devices: &[CPU, CUDA] },
];

/// Makes the data, runs the contenders and prints a Markdown table, where time went, and what was promised.
pub(crate) fn gpu(args: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(args, OPTIONS)?;
    let rounds = options.count("runs", 3)?;
    let dir = data_dir(&options);
    let python = options.text("python");
    let qft = qft(&options)?;
    try_card(&dir, &qft)?;
    python.map_or(Ok(()), check_python_on_card)?;
    let data = Data::prepare(&dir, options.count("layers", 28)?)?;
    let pre = data.put_tokenizer(options.text("tokenizer").map(Path::new))?;
    let machine = format!("{}\n{}", machine::describe(&dir)?, machine::cards());
    data.read_once()?;
    let words = words(&data, &qft, python, pre);
    let shards = make_shards(&data, &words)?;
    let mut contenders = contenders(&words, python.is_some(), rounds);
    compete(&mut contenders, rounds, &data)?;
    fs::remove_dir_all(&shards).with_context(|| format!("cannot remove {}", shards.display()))?;
    println!("\n{machine}\n{}\n\n{}", data.describe(), report::table(&contenders));
    println!("{}", report::breakdowns(&contenders));
    println!("{}", report::targets(&contenders, &data));
    if python.is_none() {
        println!("PEFT was left out; to compare with it: {GET_PEER}");
    }
    let other = report::outputs_that_differ(&contenders);
    ensure!(other.is_empty(), "the devices wrote different bytes: {}", other.join(", "));
    Ok(())
}

/// Exports a tiny model on the GPU, so that a machine without one says so before anything large is made, and so that
/// the driver has compiled the kernels and kept them, which it does once.
fn try_card(dir: &Path, qft: &Path) -> anyhow::Result<()> {
    let data = Data::prepare_tiny(dir)?;
    let pre = data.put_tokenizer(None)?;
    let words = words(&data, qft, None, pre);
    for output in &OUTPUTS {
        let run = export(&words, output, CUDA, 1).once(&data)?;
        println!("first use of the GPU, {}: {:.2} s", output.name, run.seconds);
    }
    Ok(())
}

/// Exports the shards that the copy copies: the base itself has larger files. Nothing is lost if a run is the first to
/// fill so much memory, and pays for all who follow: this one is not counted.
fn make_shards(data: &Data, words: &Words) -> anyhow::Result<PathBuf> {
    let shards = shards_dir(data);
    if shards.exists() {
        fs::remove_dir_all(&shards).with_context(|| format!("cannot remove {}", shards.display()))?;
    }
    export(words, &OUTPUTS[0], CPU, 1).keep(&shards, data)?;
    Ok(shards)
}

fn shards_dir(data: &Data) -> PathBuf {
    data.out.with_file_name("shards")
}

fn words(data: &Data, qft: &Path, python: Option<&str>, pre: Vec<OsString>) -> Words {
    Words(vec![
        ("BASE", vec![data.base.clone().into()]),
        ("ADAPTER", vec![data.adapter.clone().into()]),
        ("SHARDS", vec![shards_dir(data).into()]),
        ("OUT", vec![data.out.clone().into()]),
        ("QFT", vec![qft.into()]),
        ("PRE", pre),
        ("COPY", vec![COPY_SCRIPT.into()]),
        ("PYTHON", vec![python.unwrap_or_default().into()]),
        ("SCRIPT", vec![SCRIPT.into()]),
    ])
}

/// All contenders; the peer only where there is a Python for it.
fn contenders(words: &Words, with_peer: bool, rounds: usize) -> Vec<Contender> {
    let copies = [(CP, "cp -r BASE OUT"), (COPY, "bash -c COPY copy SHARDS OUT")];
    let copies = copies.map(|(name, line)| Contender::new(name, words, &[line], rounds));
    let exports = OUTPUTS.iter().flat_map(|output| {
        output.devices.iter().map(|device| export(words, output, device, rounds)).collect::<Vec<_>>()
    });
    let peer = || Contender::new(PEFT, words, &["PYTHON -c SCRIPT BASE ADAPTER OUT cuda"], rounds.min(PEER_RUNS));
    copies.into_iter().chain(exports).chain(with_peer.then(peer)).collect()
}

fn export(words: &Words, output: &Output, device: &str, runs: usize) -> Contender {
    let line = EXPORT.replace("OUTPUT", output.options).replace("DEVICE", device);
    Contender::new(name(output.name, device), words, &[&line], runs)
}

/// The name of an export among the contenders.
fn name(output: &str, device: &str) -> String {
    format!("{output}, {device}")
}
