//! Models made of noise, on disk: a sharded base with its index and config, a small tokenizer, and a LoRA as PEFT saves
//! it. The same bytes on every machine.

mod modules;
mod noise;
mod shape;
mod tokenizer;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, anyhow};
use safetensors::View;
use serde_json::{Map, Value, json};

pub(crate) use shape::{Lora, Shape};
use shape::{Module, Tensor};

/// Writes a base in `files` weight files.
pub(crate) fn write_base(dir: &Path, shape: &Shape, files: usize) -> anyhow::Result<()> {
    create(dir)?;
    let tensors = shape.base();
    let total = tensors.iter().map(|tensor| tensor.data_len()).sum();
    let shards = split(&tensors, total, files);
    let file = |i| format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
    let weight_map: Map<String, Value> = (shards.iter().enumerate())
        .flat_map(|(i, shard)| shard.iter().map(move |tensor| (tensor.name.clone(), Value::from(file(i)))))
        .collect();
    // Making noise takes longer than writing it.
    thread::scope(|scope| {
        let write = |(i, shard): (usize, &Vec<&Tensor>)| write_tensors(&dir.join(file(i)), shard.iter().copied());
        let threads: Vec<_> = shards.iter().enumerate().map(|shard| scope.spawn(move || write(shard))).collect();
        let failed = |_| Err(anyhow!("a thread that wrote {} panicked", dir.display()));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(failed))
    })?;
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_json(&dir.join("model.safetensors.index.json"), &index)?;
    write_json(&dir.join("config.json"), &shape.config())
}

/// Writes a LoRA on all projections of a base.
pub(crate) fn write_adapter(dir: &Path, shape: &Shape, lora: &Lora) -> anyhow::Result<()> {
    write_lora(dir, &shape.modules(), lora)
}

/// Writes a LoRA on all projections of a base that is there already.
pub(crate) fn write_adapter_for(base: &Path, dir: &Path, lora: &Lora) -> anyhow::Result<()> {
    write_lora(dir, &modules::of(base)?, lora)
}

/// Writes the small tokenizer.
pub(crate) fn write_tokenizer(dir: &Path) -> anyhow::Result<()> {
    write_json(&dir.join("tokenizer.json"), &tokenizer::tokenizer())?;
    write_json(&dir.join("tokenizer_config.json"), &tokenizer::config())
}

fn write_lora(dir: &Path, modules: &[Module], lora: &Lora) -> anyhow::Result<()> {
    create(dir)?;
    write_tensors(&dir.join("adapter_model.safetensors"), lora.tensors(modules).iter())?;
    write_json(&dir.join("adapter_config.json"), &lora.config(modules))
}

/// Writes a small file.
pub(crate) fn write_text(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a value as JSON for users.
pub(crate) fn write_json(path: &Path, value: &Value) -> anyhow::Result<()> {
    write_text(path, &format!("{value:#}\n"))
}

fn create(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

/// Cuts `tensors` into runs of about equal bytes: each goes to the file in whose share its middle lies.
fn split(tensors: &[Tensor], total: usize, files: usize) -> Vec<Vec<&Tensor>> {
    let mut shards = vec![Vec::new(); files];
    let mut at = 0;
    for tensor in tensors {
        shards[(at + tensor.data_len() / 2) * files / total].push(tensor);
        at += tensor.data_len();
    }
    shards.retain(|shard| !shard.is_empty());
    shards
}

/// Writes a safetensors file by the reference writer, which asks for one tensor's bytes at a time.
fn write_tensors<'a>(path: &Path, tensors: impl Iterator<Item = &'a Tensor>) -> anyhow::Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.map(|tensor| (tensor.name.as_str(), tensor));
    safetensors::serialize_to_file(views, Some(metadata), path)
        .with_context(|| format!("cannot write {}", path.display()))
}
