//! The jobs that are killed: a row each, with what lies there before.

use super::tracer::{Blow, Call};
use super::try_all;
use crate::workbench::Bench;
use crate::{gguf, to_hf};

/// A command that writes below `made`.
pub(super) struct Job {
    pub(super) name: &'static str,
    /// Makes its inputs.
    pub(super) scene: fn() -> Bench,
    /// Makes what lies there before.
    pub(super) before: &'static [Step],
    pub(super) line: &'static str,
    /// It is not put in place by one rename, as several files beside each other are: between two there is no model.
    pub(super) parts: bool,
    /// As on filesystems that can't exchange two names.
    pub(super) plain_renames: bool,
}

/// What happened before.
pub(super) enum Step {
    Run(&'static str),
    Killed(&'static str, Call, usize),
}

const fn job(name: &'static str, scene: fn() -> Bench, before: &'static [Step], line: &'static str) -> Job {
    Job { name, scene, before, line, parts: false, plain_renames: false }
}

const fn parts(job: Job) -> Job {
    Job { parts: true, ..job }
}

const fn plain(job: Job) -> Job {
    Job { plain_renames: true, parts: true, ..job }
}

/// A base of 90 KB and an adapter.
fn merge() -> Bench {
    let bench = Bench::new();
    bench.base(64);
    bench.adapter("adapter", 64);
    bench
}

/// The file `model.gguf`, of 120 KB.
fn one_gguf() -> Bench {
    to_hf::bench().0
}

/// A base that has what a GGUF file takes of it, and an adapter.
fn to_encode() -> Bench {
    gguf::bench(false)
}

const EXPORT: &str = "export --merge-lora --base base --adapter adapter --max-shard 30KB --jobs 1 --out made/out";
const EXPORT_OVER: &str =
    "export --merge-lora --base base --adapter adapter --max-shard 30KB --jobs 1 --out made/out --overwrite";
const EXPORT_ON: &str =
    "export --merge-lora --base base --adapter adapter --max-shard 30KB --jobs 1 --out made/out --resume";
const OLD_RELEASE: Step = Step::Run("export --base base --dtype f32 --max-shard 60KB --out made/out");

const EXPORTS: &[Job] = &[
    job("export", merge, &[], EXPORT),
    job("export --overwrite", merge, &[OLD_RELEASE], EXPORT_OVER),
    job("export --resume", merge, &[Step::Killed(EXPORT, Call::Sync, 6)], EXPORT_ON),
    plain(job("export --overwrite, plain renames", merge, &[OLD_RELEASE], EXPORT_OVER)),
];

const ENCODED: &[Job] = &[
    job(
        "export --gguf, split",
        to_encode,
        &[],
        "export --merge-lora --base base --adapter adapter --pre qwen2 --gguf q8_0 --split-max-size 500KB --jobs 1 \
         --device cpu --out made/out",
    ),
    parts(job(
        "gguf, split",
        to_encode,
        &[],
        "gguf base --pre qwen2 --type q8_0 --split-max-size 500KB --jobs 1 --device cpu --out made/x.gguf",
    )),
];

const ONE: &str = "quantize model.gguf --allow-requantize --type q8_0 --jobs 1 --device cpu --out made/x.gguf";
const ONE_OVER: &str =
    "quantize model.gguf --allow-requantize --type q8_0 --jobs 1 --device cpu --out made/x.gguf --overwrite";
const SPLIT: &str = "quantize model.gguf --allow-requantize --type q8_0 --split-max-size 20KB --jobs 1 --device cpu \
                     --out made/x.gguf";
const SPLIT_OVER: &str = "quantize model.gguf --allow-requantize --type q8_0 --split-max-size 20KB --jobs 1 \
                          --device cpu --out made/x.gguf --overwrite";
const SPLIT_ON: &str = "quantize model.gguf --allow-requantize --type q8_0 --split-max-size 20KB --jobs 1 \
                        --device cpu --out made/x.gguf --resume";
const OLD_ONE: Step = Step::Run("quantize model.gguf --allow-requantize --type q5_0 --out made/x.gguf");
/// As many parts as the new split has.
const OLD_SPLIT: Step =
    Step::Run("quantize model.gguf --allow-requantize --type q5_0 --split-max-size 13KB --out made/x.gguf");
const OLD_SMALLER_SPLIT: Step =
    Step::Run("quantize model.gguf --allow-requantize --type q5_0 --split-max-size 7KB --out made/x.gguf");

const QUANTIZED: &[Job] = &[
    job("quantize", one_gguf, &[], ONE),
    job("quantize --overwrite", one_gguf, &[OLD_ONE], ONE_OVER),
    parts(job("quantize --overwrite, over a split", one_gguf, &[OLD_SPLIT], ONE_OVER)),
    parts(job("quantize, split", one_gguf, &[], SPLIT)),
    parts(job("quantize, split, --overwrite", one_gguf, &[OLD_SPLIT], SPLIT_OVER)),
    parts(job("quantize, split, over more parts", one_gguf, &[OLD_SMALLER_SPLIT], SPLIT_OVER)),
    parts(job("quantize, split, over one file", one_gguf, &[OLD_ONE], SPLIT_OVER)),
    parts(job("quantize, split, --resume", one_gguf, &[Step::Killed(SPLIT, Call::Sync, 6)], SPLIT_ON)),
    plain(job("quantize, split, plain renames", one_gguf, &[], SPLIT)),
];

const HF: &str = "to-hf model.gguf --max-shard 30KB --jobs 1 --out made/out";
const HF_OVER: &str = "to-hf model.gguf --max-shard 30KB --jobs 1 --out made/out --overwrite";
const HF_ON: &str = "to-hf model.gguf --max-shard 30KB --jobs 1 --out made/out --resume";

const BACK: &[Job] = &[
    job("to-hf", one_gguf, &[], HF),
    job("to-hf --overwrite", one_gguf, &[Step::Run("to-hf model.gguf --dtype f32 --out made/out")], HF_OVER),
    job("to-hf --resume", one_gguf, &[Step::Killed(HF, Call::Sync, 6)], HF_ON),
];

const KILLS: [Blow; 3] = [Blow::Before, Blow::After, Blow::Torn];
const FAULTS: [Blow; 2] = [Blow::Fails, Blow::Breaks];

#[test]
fn an_export_that_is_killed() {
    try_all(EXPORTS, &KILLS);
}

#[test]
fn an_export_to_gguf_that_is_killed() {
    try_all(ENCODED, &KILLS);
}

#[test]
fn a_quantization_that_is_killed() {
    try_all(QUANTIZED, &KILLS);
}

#[test]
fn a_conversion_back_that_is_killed() {
    try_all(BACK, &KILLS);
}

#[test]
fn an_export_whose_disk_fails() {
    try_all(EXPORTS, &FAULTS);
}

#[test]
fn an_export_to_gguf_whose_disk_fails() {
    try_all(ENCODED, &FAULTS);
}

#[test]
fn a_quantization_whose_disk_fails() {
    try_all(QUANTIZED, &FAULTS);
}

#[test]
fn a_conversion_back_whose_disk_fails() {
    try_all(BACK, &FAULTS);
}
