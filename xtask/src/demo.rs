//! `cargo xtask demo`: a tiny llama and a LoRA in ./demo, and the commands that a newcomer wants to see. With a GGUF file
//! of a real model, the same from that file: no Python, no download.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::shell::{self, root};
use crate::synth::{self, Lora, Shape};

/// Grouped-query attention, and 2.9 MB: four shards of at most 1 MB.
const SHAPE: Shape = Shape {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    layers: 2,
    hidden: 256,
    intermediate: 512,
    vocab: 512,
    heads: 8,
    kv_heads: 4,
    qkv_bias: false,
};
const FILES: usize = 2;
const LORA: Lora = Lora { rank: 8, alpha: 32, base: "demo/base" };
const REAL_LORA: Lora = Lora { rank: 8, alpha: 16, base: "demo/real/base" };

const QFT: &str = "cargo run --release --quiet --package qft --";
/// The tiny tokenizer cuts text as GPT-2's does, but is none that qft could recognize.
const STEPS: [&str; 6] = [
    "export --base demo/base --adapter demo/adapter --merge-lora --max-shard 1MB --out demo/merged --overwrite",
    "verify demo/merged --audit --base demo/base --adapter demo/adapter",
    "inspect demo/merged",
    "export --base demo/base --adapter demo/adapter --merge-lora --gguf q4_k_m --name Tiny --pre gpt-2 --out demo/gguf --overwrite",
    "verify demo/gguf",
    "inspect demo/gguf/model-Q4_K_M.gguf",
];
const REAL_EXPORT: &str = "export --base demo/real/base --adapter demo/real/adapter --merge-lora --gguf q4_k_m \
                           --out demo/real/gguf --overwrite";
const REAL_CHECKS: [&str; 2] = ["verify demo/real/gguf", "inspect demo/real/gguf/model-Q4_K_M.gguf"];

/// Makes every model and its LoRA anew, and runs the steps.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.len() <= 1, "demo takes one GGUF file at most");
    // The steps run in the repository's root, wherever this was typed.
    let real = args.first().map(|path| fs::canonicalize(path).with_context(|| format!("cannot open {path}")));
    let real = real.transpose()?;
    tiny()?;
    if let Some(gguf) = real {
        from_gguf(&gguf)?;
    }
    println!("\nAfter `cargo install --path .`, type `qft` in place of `{QFT}`.");
    Ok(())
}

/// The tiny model.
fn tiny() -> anyhow::Result<()> {
    let dir = root().join("demo");
    for (name, what) in [("base", "a two-layer llama"), ("adapter", "a LoRA for it")] {
        anew(&dir.join(name))?;
        println!("making demo/{name}: {what}");
    }
    synth::write_base(&dir.join("base"), &SHAPE, FILES)?;
    synth::write_tokenizer(&dir.join("base"))?;
    synth::write_adapter(&dir.join("adapter"), &SHAPE, &LORA)?;
    STEPS.iter().try_for_each(|step| run_step(&mut qft(step)))
}

/// A real model: its GGUF file back to a base, and a LoRA of noise for that.
fn from_gguf(gguf: &Path) -> anyhow::Result<()> {
    let dir = root().join("demo/real");
    run_step(qft("to-hf --out demo/real/base --overwrite").arg(gguf))?;
    anew(&dir.join("adapter"))?;
    println!("\nmaking demo/real/adapter: a LoRA of small noise for it");
    synth::write_adapter_for(&dir.join("base"), &dir.join("adapter"), &REAL_LORA)?;
    let name = gguf.file_stem().unwrap_or(gguf.as_os_str());
    run_step(qft(REAL_EXPORT).arg("--name").arg(name))?;
    REAL_CHECKS.iter().try_for_each(|step| run_step(&mut qft(step)))
}

fn qft(step: &str) -> Command {
    shell::command(&format!("{QFT} {step}"))
}

fn run_step(command: &mut Command) -> anyhow::Result<()> {
    println!();
    shell::run(command)
}

fn anew(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}
