//! The model that the benchmark exports: Qwen2.5-7B with as many layers as asked for, and its LoRA. Made once and kept.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use crate::synth::{self, Lora, Shape};

const QWEN: Shape = Shape {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    layers: 28,
    hidden: 3_584,
    intermediate: 18_944,
    vocab: 152_064,
    heads: 28,
    kv_heads: 4,
    qkv_bias: true,
};
const FILES: usize = 4;
const LORA: Lora = Lora { rank: 8, alpha: 32, base: "Qwen/Qwen2.5-7B" };

/// Where the model, its LoRA and the outputs are.
pub(super) struct Data {
    pub(super) dir: PathBuf,
    pub(super) base: PathBuf,
    pub(super) adapter: PathBuf,
    pub(super) out: PathBuf,
    layers: usize,
    bytes: u64,
}

impl Data {
    /// Makes the model below `dir`, if it is not there yet.
    pub(super) fn prepare(dir: &Path, layers: usize) -> anyhow::Result<Self> {
        let name = format!("qwen2.5-7b-{layers}-layers");
        let model = dir.join(&name);
        let out = model.join("out");
        if out.exists() {
            fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
        }
        if !model.exists() {
            println!("making {}", model.display());
            let unfinished = dir.join(format!("{name}.unfinished"));
            make(&unfinished, &Shape { layers, ..QWEN })?;
            fs::rename(&unfinished, &model).with_context(|| format!("cannot create {}", model.display()))?;
        }
        let (base, adapter) = (model.join("base"), model.join("adapter"));
        let mut data = Self { dir: dir.to_owned(), base, adapter, out, layers, bytes: 0 };
        data.bytes = data.files(&data.base)?.iter().map(|(_, bytes)| bytes).sum();
        Ok(data)
    }

    /// Reads every input once, so that no contender waits for the disk to read.
    pub(super) fn read_once(&self) -> anyhow::Result<()> {
        for dir in [&self.base, &self.adapter] {
            for (path, _) in self.files(dir)? {
                let read = File::open(&path).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
                read.with_context(|| format!("cannot read {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// One line for people.
    pub(super) fn describe(&self) -> String {
        let Lora { rank, alpha, .. } = LORA;
        let size = self.bytes as f64 / 1e9;
        format!("Model: Qwen2.5-7B with {} layers, bf16, {size:.2} GB; LoRA: rank {rank}, alpha {alpha}", self.layers)
    }

    fn files(&self, dir: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
        let files = fs::read_dir(dir).and_then(|entries| {
            entries.map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.metadata()?.len())))).collect()
        });
        files.with_context(|| format!("cannot list {}; delete {} to make it anew", dir.display(), self.dir.display()))
    }
}

fn make(dir: &Path, shape: &Shape) -> anyhow::Result<()> {
    synth::write_base(&dir.join("base"), shape, FILES)?;
    let generation = json!({"bos_token_id": 151_643, "eos_token_id": [151_645, 151_643], "pad_token_id": 151_643});
    synth::write_json(&dir.join("base/generation_config.json"), &generation)?;
    synth::write_adapter(&dir.join("adapter"), shape, &LORA)
}
