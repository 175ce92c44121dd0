//! The projections of a base on disk, found by the names in the headers of its weight files.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use safetensors::tensor::{Metadata, TensorInfo};

use super::shape::Module;

/// Last parts of the names that a LoRA is usually put on; the last two are the fused ones of some models.
const PROJECTIONS: [&str; 9] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"];
/// More than any header of a real model.
const MOST_HEADER_BYTES: u64 = 100 << 20;

/// The projections of the base in `dir`, by name.
pub(super) fn of(dir: &Path) -> anyhow::Result<Vec<Module>> {
    let mut modules = Vec::new();
    for file in weight_files(dir)? {
        modules.extend(projections(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    ensure!(!modules.is_empty(), "{}: none of its weights is a projection that is known here", dir.display());
    modules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(modules)
}

fn weight_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect())
}

fn projections(file: &Path) -> anyhow::Result<Vec<Module>> {
    let mut file = File::open(file)?;
    let mut len = [0; 8];
    file.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    ensure!(len <= MOST_HEADER_BYTES, "its header is too long");
    let mut header = Vec::new();
    file.take(len).read_to_end(&mut header)?;
    let header: Metadata = serde_json::from_slice(&header).context("its header can't be read")?;
    let module = |(name, info): (String, &TensorInfo)| {
        let path = name.strip_suffix(".weight")?;
        let [out, input] = info.shape[..] else { return None };
        let known = PROJECTIONS.contains(&path.rsplit('.').next()?);
        known.then(|| Module { path: path.to_owned(), out, input })
    };
    Ok(header.tensors().into_iter().filter_map(module).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{Shape, write_base};

    #[test]
    fn finds_every_projection_of_every_file() {
        let shape = Shape {
            architecture: "LlamaForCausalLM",
            model_type: "llama",
            layers: 2,
            hidden: 16,
            intermediate: 32,
            vocab: 8,
            heads: 2,
            kv_heads: 1,
            qkv_bias: true,
        };
        let dir = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        write_base(&dir, &shape, 3).unwrap();
        let sorted = |mut modules: Vec<Module>| {
            modules.sort_by(|a, b| a.path.cmp(&b.path));
            modules.into_iter().map(|module| (module.path, module.out, module.input)).collect::<Vec<_>>()
        };
        assert_eq!(sorted(of(&dir).unwrap()), sorted(shape.modules()));
        fs::remove_dir_all(&dir).unwrap();
    }
}
