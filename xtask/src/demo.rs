//! `cargo xtask demo`: a tiny llama and a LoRA in ./demo, and the three commands that a newcomer wants to see.

use std::fs;

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

/// Stands in for a tokenizer: export copies it without looking inside.
const TOKENIZER: &str = r#"{
  "version": "1.0",
  "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "unk_token": "<unk>"}
}
"#;

const QFT: &str = "cargo run --release --quiet --package qft --";
const STEPS: [&str; 3] = [
    "export --base demo/base --adapter demo/adapter --merge-lora --max-shard 1MB --out demo/merged --overwrite",
    "verify demo/merged --audit --base demo/base --adapter demo/adapter",
    "inspect demo/merged",
];

/// Makes the model and the LoRA anew, and runs the steps.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.is_empty(), "demo takes no options");
    let dir = root().join("demo");
    for (name, what) in [("base", "a two-layer llama"), ("adapter", "a LoRA for it")] {
        let dir = dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        println!("making demo/{name}: {what}");
    }
    synth::write_base(&dir.join("base"), &SHAPE, FILES)?;
    synth::write_text(&dir.join("base/tokenizer.json"), TOKENIZER)?;
    synth::write_adapter(&dir.join("adapter"), &SHAPE, &LORA)?;
    for step in STEPS {
        println!();
        shell::run(&mut shell::command(&format!("{QFT} {step}")))?;
    }
    println!("\nAfter `cargo install --path .`, type `qft` in place of `{QFT}`.");
    Ok(())
}
