//! What competes: tables of command lines. Words in capitals stand for paths, programs and numbers.

use std::ffi::OsString;
use std::path::PathBuf;

use super::peers::Peers;
use super::same::Same;
use super::{Run, Words};
use crate::bench::PEER_RUNS;

/// A type that is quantized to, and how many times as fast as llama-quantize qft is to be.
const TYPES: [(&str, f64); 2] = [("Q4_K_M", 4.0), ("Q8_0", 2.0)];
const OURS: Step =
    ("qft quantize", &["QFT quantize SOURCE --type TYPE --jobs THREADS --out OUT/ours.gguf"], "OUT/ours.gguf");
const THEIRS: Step = ("llama-quantize", &["QUANTIZE SOURCE OUT/theirs.gguf TYPE THREADS"], "OUT/theirs.gguf");

const CHAIN_TARGET: f64 = 8.0;
const EXPORT: Step = (
    "qft export --gguf q4_k_m",
    &["QFT export --merge-lora --base BASE --adapter ADAPTER --gguf q4_k_m --name bench PRE --out OUT/ours"],
    "OUT/ours/model-Q4_K_M.gguf",
);
const CHAIN: [Step; 3] = [
    ("PEFT merge", &["PYTHON -c SCRIPT BASE ADAPTER OUT/merged", "cp TOKENIZER OUT/merged"], "OUT/merged"),
    (
        "convert_hf_to_gguf.py",
        &["PYTHON CONVERT OUT/merged --outtype bf16 --model-name bench --outfile OUT/bf16.gguf"],
        "OUT/bf16.gguf",
    ),
    ("llama-quantize", &["QUANTIZE OUT/bf16.gguf OUT/theirs.gguf Q4_K_M THREADS"], "OUT/theirs.gguf"),
];

const TOGETHER: Step = (
    "qft export, all at once",
    &["QFT export --merge-lora --base BASE --adapter ADAPTER --gguf q4_k_m,q8_0 PRE --max-shard 2GB --out OUT/all"],
    "OUT/all",
);
const APART: [Step; 3] = [
    (
        "qft export, Q4_K_M alone",
        &["QFT export --merge-lora --base BASE --adapter ADAPTER --gguf q4_k_m PRE --out OUT/q4_k_m"],
        "OUT/q4_k_m",
    ),
    (
        "qft export, Q8_0 alone",
        &["QFT export --merge-lora --base BASE --adapter ADAPTER --gguf q8_0 PRE --out OUT/q8_0"],
        "OUT/q8_0",
    ),
    (
        "qft export, shards alone",
        &["QFT export --merge-lora --base BASE --adapter ADAPTER --max-shard 2GB --out OUT/shards"],
        "OUT/shards",
    ),
];

/// A name, command lines that are timed together, and what they write.
type Step = (&'static str, &'static [&'static str], &'static str);

/// qft on one side, something else on the other.
pub(super) struct Contest {
    pub(super) name: String,
    pub(super) ours: Vec<Part>,
    /// Run one after the other; empty where the peers are not there.
    pub(super) theirs: Vec<Part>,
    /// How many times as fast qft is to be.
    pub(super) target: Option<f64>,
    /// Whether the last files of both sides are meant to be the same.
    pub(super) compares: bool,
    pub(super) same: Option<Same>,
}

/// What is timed by itself.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) lines: Vec<Vec<OsString>>,
    pub(super) output: PathBuf,
    /// Where the time goes to encoding alone: its threads.
    pub(super) encoders: Option<usize>,
    pub(super) most_runs: usize,
    pub(super) runs: Vec<Run>,
}

/// All contests; each without the other side where its peers are not there.
pub(super) fn all(words: &Words, peers: &Peers, threads: &[usize], cores: usize) -> Vec<Contest> {
    let mut contests = Vec::new();
    for (ty, target) in TYPES {
        for &threads in threads {
            let part = |step| part(words, step, ty, threads);
            let encoding = |step| Part { encoders: Some(threads), ..part(step) };
            contests.push(Contest {
                name: format!("{ty}, {threads} thread{}", if threads == 1 { "" } else { "s" }),
                ours: vec![encoding(OURS)],
                theirs: peers.quantize.iter().map(|_| encoding(THEIRS)).collect(),
                target: Some(target),
                compares: true,
                same: None,
            });
        }
    }
    let part = |step| part(words, step, "", cores);
    let slow = |step| Part { most_runs: PEER_RUNS, ..part(step) };
    contests.push(Contest {
        name: "adapter to Q4_K_M".to_owned(),
        ours: vec![part(EXPORT)],
        theirs: peers.chain.iter().flat_map(|_| CHAIN.map(slow)).collect(),
        target: Some(CHAIN_TARGET),
        compares: true,
        same: None,
    });
    contests.push(Contest {
        name: "Q4_K_M, Q8_0 and shards".to_owned(),
        ours: vec![part(TOGETHER)],
        theirs: APART.map(part).into(),
        target: None,
        compares: false,
        same: None,
    });
    contests
}

fn part(words: &Words, (name, lines, output): Step, ty: &str, threads: usize) -> Part {
    let more = |word: OsString| match word.to_str() {
        Some("TYPE") => ty.into(),
        Some("THREADS") => threads.to_string().into(),
        _ => word,
    };
    Part {
        name: name.to_owned(),
        lines: lines.iter().map(|line| words.fill(line).into_iter().map(more).collect()).collect(),
        output: words.fill(output).into_iter().map(PathBuf::from).collect(),
        encoders: None,
        most_runs: usize::MAX,
        runs: Vec::new(),
    }
}
