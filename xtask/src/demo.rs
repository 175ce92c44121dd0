//! `cargo xtask demo`: a tiny llama in ./demo, which is trained for a few steps, merged, checked and turned into GGUF: what
//! a newcomer wants to see. With a GGUF file of a real model, the same from that file: no Python, no download.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

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
/// What a first build compiles, about.
const CRATES: usize = 230;
const FILES: usize = 2;
const REAL_LORA: Lora = Lora { rank: 8, alpha: 16, base: "demo/real/base" };

/// A command of qft, and what a reader should see in its output.
struct Step {
    why: &'static str,
    command: &'static str,
}

/// The tiny tokenizer cuts text as GPT-2's does, but is none that qft could recognize: hence `--pre`.
const STEPS: [Step; 7] = [
    Step {
        why: "Train a LoRA on the conversations, on the processor. First comes the plan; the loss falls with the steps; at \
              the end it says where the checkpoint is.",
        command: "train --model demo/base --dataset demo/chats.jsonl --output_dir demo/run --add_version false --device cpu \
                  --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --learning_rate 1e-2 --max_steps 20 \
                  --logging_steps 5",
    },
    Step {
        why: "Merge it into the base: a directory for transformers, vLLM and others. A line for each file of weights, and a \
              sum.",
        command: "export --base demo/base --adapter demo/run/checkpoint-20 --merge-lora --max-shard 1MB --out demo/merged \
                  --overwrite",
    },
    Step {
        why: "Check the release: all digests, and every tensor computed anew from the base and the adapter. \"clean\" means \
              that nothing is wrong.",
        command: "verify demo/merged --audit --base demo/base --adapter demo/run/checkpoint-20",
    },
    Step {
        why: "Look at it: how many tensors of which type, and what the config says.",
        command: "inspect demo/merged",
    },
    Step {
        why: "The same merge as a file for llama.cpp, with about 5 bits a weight: the second line says which types it has.",
        command: "export --base demo/base --adapter demo/run/checkpoint-20 --merge-lora --gguf q4_k_m --name Tiny --pre gpt-2 \
                  --out demo/gguf --overwrite",
    },
    Step {
        why: "Check that, too. Notes name what nobody can check: that --pre was right, and who chose the name.",
        command: "verify demo/gguf --audit --base demo/base --adapter demo/run/checkpoint-20",
    },
    Step { why: "Look at the file: its keys and tensors.", command: "inspect demo/gguf/model-Q4_K_M.gguf" },
];
const REAL_EXPORT: Step = Step {
    why: "Merge the adapter, as a file for llama.cpp.",
    command: "export --base demo/real/base --adapter demo/real/adapter --merge-lora --gguf q4_k_m --out demo/real/gguf \
              --overwrite",
};
const REAL_CHECKS: [Step; 2] = [
    Step { why: "Check the file.", command: "verify demo/real/gguf" },
    Step { why: "Look at it.", command: "inspect demo/real/gguf/model-Q4_K_M.gguf" },
];

/// Makes every model again, and runs the steps.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.len() <= 1, "demo takes one GGUF file at most");
    // The steps run in the repository's root, wherever this was typed.
    let real = args.first().map(|path| fs::canonicalize(path).with_context(|| format!("cannot open {path}")));
    let real = real.transpose()?;
    let qft = build()?;
    let started = Instant::now();
    tiny(&qft)?;
    if let Some(gguf) = real {
        from_gguf(&qft, &gguf)?;
    }
    let (seconds, qft) = (started.elapsed().as_secs_f64(), qft.display());
    println!(
        "\nDone in {seconds:.1} s; all of it is in ./demo, which may be deleted.\nThe program is {qft}. After `cargo install \
         --path .`, type `qft` in its place."
    );
    Ok(())
}

/// Builds qft, before the eyes of whoever waits, and says where it is.
fn build() -> anyhow::Result<PathBuf> {
    let target = target_dir()?;
    let qft = target.join("release/qft");
    let qft = qft.strip_prefix(root()).map(Path::to_owned).unwrap_or(qft);
    println!(
        "Building qft. The first time this is {CRATES} crates, and takes about ten minutes on two cores, some of them for the last crate alone; cargo shows its \
         progress. The program will be {}.",
        qft.display()
    );
    shell::run(&mut shell::command("cargo build --release --package qft"))?;
    // What is run as it is shown, from the root.
    Ok(if qft.is_absolute() { qft } else { Path::new(".").join(qft) })
}

/// Where cargo puts what it builds: variables and configurations may say so.
fn target_dir() -> anyhow::Result<PathBuf> {
    let out =
        shell::command("cargo metadata --no-deps --format-version 1").output().context("cargo could not be run")?;
    let metadata: Value = serde_json::from_slice(&out.stdout).context("cargo metadata gave no JSON")?;
    Ok(metadata["target_directory"].as_str().map_or_else(|| root().join("target"), PathBuf::from))
}

/// The tiny model.
fn tiny(qft: &Path) -> anyhow::Result<()> {
    let dir = root().join("demo");
    println!("\nMaking demo/base, a two-layer llama of noise, and demo/chats.jsonl, {} conversations.", CHATS.len());
    for name in ["base", "run"] {
        anew(&dir.join(name))?;
    }
    synth::write_base(&dir.join("base"), &SHAPE, FILES)?;
    synth::write_tokenizer(&dir.join("base"))?;
    let lines = CHATS.map(|(asked, answered)| {
        let turns = [json!({"from": "human", "value": asked}), json!({"from": "gpt", "value": answered})];
        format!("{}\n", json!({"conversations": turns}))
    });
    synth::write_text(&dir.join("chats.jsonl"), &lines.concat())?;
    STEPS.iter().try_for_each(|step| follow(step, &mut command(qft, step.command)))
}

/// A real model: its GGUF file back to a base, and a LoRA of noise for that.
fn from_gguf(qft: &Path, gguf: &Path) -> anyhow::Result<()> {
    let dir = root().join("demo/real");
    println!("\nThe real model: back to a directory for transformers.");
    shell::run(command(qft, "to-hf --out demo/real/base --overwrite").arg(gguf))?;
    anew(&dir.join("adapter"))?;
    println!("\nMaking demo/real/adapter: a LoRA of small noise for it.");
    synth::write_adapter_for(&dir.join("base"), &dir.join("adapter"), &REAL_LORA)?;
    let name = gguf.file_stem().unwrap_or(gguf.as_os_str());
    follow(&REAL_EXPORT, command(qft, REAL_EXPORT.command).arg("--name").arg(name))?;
    REAL_CHECKS.iter().try_for_each(|step| follow(step, &mut command(qft, step.command)))
}

fn command(qft: &Path, step: &str) -> Command {
    let mut command = Command::new(qft);
    command.args(step.split_whitespace()).current_dir(root());
    command
}

/// Says what a step is for, and runs it.
fn follow(step: &Step, command: &mut Command) -> anyhow::Result<()> {
    println!("\n{}", step.why);
    shell::run(command)
}

fn anew(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// What the tiny model is trained on: questions and answers.
const CHATS: [(&str, &str); 16] = [
    ("What is the sea?", "The sea is water."),
    ("What is the rain?", "The rain is water."),
    ("What is the snow?", "The snow is water."),
    ("What is the lake?", "The lake is water."),
    ("What is the sun?", "The sun is a star."),
    ("What is the pole star?", "The pole star is a star."),
    ("What is the rose?", "The rose is a plant."),
    ("What is the oak?", "The oak is a plant."),
    ("What is the fern?", "The fern is a plant."),
    ("What is the grass?", "The grass is a plant."),
    ("What is the fox?", "The fox is an animal."),
    ("What is the owl?", "The owl is an animal."),
    ("What is the eel?", "The eel is an animal."),
    ("What is the ant?", "The ant is an animal."),
    ("What is the ox?", "The ox is an animal."),
    ("What is the whale?", "The whale is an animal."),
];
