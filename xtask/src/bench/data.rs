//! The model that the benchmarks export: Qwen2.5-7B with as many layers as asked for, its LoRA and its tokenizer. Made
//! once and kept.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
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
/// A model for trying things out.
const TINY: Shape = Shape { layers: 1, hidden: 256, intermediate: 512, vocab: 512, heads: 8, kv_heads: 4, ..QWEN };
/// Files that a tokenizer may consist of.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];
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
    /// How many the base has.
    pub(super) weights: usize,
}

impl Data {
    /// Makes the model below `dir`, if it is not there yet.
    pub(super) fn prepare(dir: &Path, layers: usize) -> anyhow::Result<Self> {
        Self::prepare_shape(dir, &format!("qwen2.5-7b-{layers}-layers"), &Shape { layers, ..QWEN })
    }

    /// The same for a model of under a million weights.
    pub(super) fn prepare_tiny(dir: &Path) -> anyhow::Result<Self> {
        Self::prepare_shape(dir, "tiny", &TINY)
    }

    fn prepare_shape(dir: &Path, name: &str, shape: &Shape) -> anyhow::Result<Self> {
        let model = dir.join(name);
        let out = model.join("out");
        if out.exists() {
            fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
        }
        if !model.exists() {
            println!("making {}", model.display());
            let unfinished = dir.join(format!("{name}.unfinished"));
            make(&unfinished, shape)?;
            fs::rename(&unfinished, &model).with_context(|| format!("cannot create {}", model.display()))?;
        }
        let (base, adapter) = (model.join("base"), model.join("adapter"));
        let mut data =
            Self { dir: dir.to_owned(), base, adapter, out, layers: shape.layers, bytes: 0, weights: shape.weights() };
        data.bytes = data.files(&data.base)?.iter().map(|(_, bytes)| bytes).sum();
        Ok(data)
    }

    /// Whether it has every layer, so that seconds can be held against those of the real model.
    pub(super) fn is_whole(&self) -> bool {
        self.layers == QWEN.layers
    }

    /// Gives the base the tokenizer of `from`, or else the synthetic one. Gives the options that qft then needs to write
    /// GGUF files.
    pub(super) fn put_tokenizer(&self, from: Option<&Path>) -> anyhow::Result<Vec<OsString>> {
        for name in TOKENIZER_FILES {
            let file = self.base.join(name);
            if file.exists() {
                fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
            }
            if let Some(source) = from.map(|dir| dir.join(name)).filter(|source| source.exists()) {
                fs::copy(&source, &file).with_context(|| format!("cannot copy {}", source.display()))?;
            }
        }
        if from.is_some() {
            ensure!(self.base.join("tokenizer.json").exists(), "the directory of --tokenizer holds no tokenizer.json");
            return Ok(vec![]);
        }
        synth::write_tokenizer(&self.base)?;
        // qft could not recognize it.
        Ok(vec!["--pre".into(), "qwen2".into()])
    }

    /// The files of the base that hold its tokenizer.
    pub(super) fn tokenizer_files(&self) -> Vec<PathBuf> {
        TOKENIZER_FILES.iter().map(|name| self.base.join(name)).filter(|file| file.exists()).collect()
    }

    /// Reads every input once, so that no contender waits for the disk to read.
    pub(super) fn read_once(&self) -> anyhow::Result<()> {
        for dir in [&self.base, &self.adapter] {
            for (path, _) in self.files(dir)? {
                read(&path)?;
            }
        }
        Ok(())
    }

    /// One line for users.
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

/// Reads a file once, into the page cache.
pub(super) fn read(path: &Path) -> anyhow::Result<()> {
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
    read.map(drop).with_context(|| format!("cannot read {}", path.display()))
}

fn make(dir: &Path, shape: &Shape) -> anyhow::Result<()> {
    synth::write_base(&dir.join("base"), shape, FILES)?;
    let generation = json!({"bos_token_id": 151_643, "eos_token_id": [151_645, 151_643], "pad_token_id": 151_643});
    synth::write_json(&dir.join("base/generation_config.json"), &generation)?;
    synth::write_adapter(&dir.join("adapter"), shape, &LORA)
}
