//! The plan of an export: every output tensor, its source, its changes and its place; every other file; every refusal
//! that can be made before the first byte is written. A pure function of the inputs and the options.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::gguf::{GgufOptions, GgufOutput, of_model};
use super::quantize::{check_files, file_stem};
use super::shard::{self, OutputTensor, Shard};
use crate::adapter::{Adapter, TensorSource, resolve};
use crate::checkpoint::{
    Checkpoint, Companion, ConfigText, TEXT_SECTIONS, companions, lint_companions, member_if_there,
};
use crate::digest::sha256;
use crate::error::{Error, Result, escaped, shown};
use crate::gguf::ModelFiles;
use crate::gguf::arch::Lineage;
use crate::gguf::mixture::Choices;
use crate::merge::{Float, Overflow};
use crate::parallel::both;
use crate::size::ByteSize;
use crate::stream::check_destination;

/// What the user chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most tensor bytes of a safetensors shard; `None` for no safetensors and none of the files beside them.
    pub max_shard: Option<ByteSize>,
    /// Type to cast float tensors to; their own if `None`.
    pub dtype: Option<Float>,
    /// What happens to a finite value beyond the output type.
    pub overflow: Overflow,
    /// Whether an existing destination is exchanged.
    pub overwrite: bool,
    /// The GGUF files to write.
    pub gguf: Option<GgufOptions>,
    /// Whether the destination is one GGUF file (or its parts) and not a directory.
    pub as_file: bool,
}

/// A model or adapter as it was found.
#[derive(Debug, Clone, Default)]
pub struct Provenance {
    /// Its Hub id, if it was found by one.
    pub repo: Option<String>,
    /// Its commit, if it lies in the Hub's cache.
    pub revision: Option<String>,
}

/// Everything that an export will do.
#[derive(Debug)]
pub struct ExportPlan {
    /// The destination.
    pub out: PathBuf,
    /// The base.
    pub base: Checkpoint,
    /// Where the base comes from.
    pub base_provenance: Provenance,
    /// The adapters, in the order in which they are applied.
    pub adapters: Vec<Adapter>,
    /// Every tensor of the merged model, by name.
    pub merged: Vec<OutputTensor>,
    /// The safetensors files.
    pub shards: Vec<Shard>,
    /// The GGUF files.
    pub gguf: Vec<GgufOutput>,
    /// Files made by the export itself, by name: config.json, the index.
    pub texts: Vec<(String, String)>,
    /// Files copied as they are.
    pub companions: Vec<Companion>,
    /// What was changed in config.json, for people.
    pub config_changes: Vec<String>,
    /// What deserves a look.
    pub warnings: Vec<String>,
    /// What the user chose.
    pub options: Options,
}

impl ExportPlan {
    /// Plans the export of `base` with `adapters` to `out`. Reads headers and small files only.
    pub fn new(
        base: Checkpoint,
        base_provenance: Provenance,
        adapters: Vec<Adapter>,
        out: &Path,
        options: Options,
    ) -> Result<Self> {
        let inputs: Vec<&Path> =
            std::iter::once(base.dir.as_path()).chain(adapters.iter().map(|a| a.dir.as_path())).collect();
        if !options.as_file {
            check_destination(out, &inputs, options.overwrite)?;
        }
        if options.dtype.is_some()
            && let Some(method) = base.quantization()
        {
            return Err(Error::refused(
                format!("the base is quantized ({method}); casting would change its scales and leave its weights"),
                "drop --dtype, or give the 16-bit model that it was made from",
            ));
        }
        let resolution = resolve(&base, &adapters)?;
        let mut warnings = base.warnings.clone();
        warnings.extend(resolution.warnings);
        let merged = output_tensors(resolution.tensors, options.dtype);
        if let Some(tensor) = merged.iter().find(|t| t.len().is_none()) {
            return Err(Error::refused(
                format!("tensor {} is too large", escaped(&tensor.name)),
                "check the base's header",
            ));
        }
        let (config, config_changes) = edit_config(&base, options.dtype, resolution.untied, resolution.vocabulary);
        if config.is_none() {
            warnings.push("the base has no config.json; loaders will need one".to_owned());
        }
        let adapter_dirs: Vec<&Path> = adapters.iter().map(|a| a.dir.as_path()).collect();
        let companions = companions(&base.dir, &adapter_dirs)?;
        let shards = match options.max_shard {
            Some(max) => shard::split(merged.clone(), max.0),
            None => Vec::new(),
        };
        let gguf = || {
            let Some(gguf) = &options.gguf else { return Ok((Vec::new(), Vec::new())) };
            let model = ModelFiles {
                directory: model_name(out, &base, options.as_file),
                config: config.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
                paths: small_files(&base, &adapters, &companions)?,
            };
            let ordered = in_converters_order(&merged, &shards, adapters.is_empty());
            let stem = if options.as_file { Some(file_stem(out)?) } else { None };
            let stem = |choices: &Choices| stem.clone().unwrap_or_else(|| format!("model-{}", choices.mixture));
            let planned = of_model(&model, &ordered, || lineage(&base_provenance, &adapters), gguf, &stem)?;
            if options.as_file {
                planned.0.iter().try_for_each(|output| check_files(out, output, &inputs, options.overwrite))?;
            }
            Ok(planned)
        };
        let (lint, gguf) = both(|| lint_companions(&companions), gguf);
        let (gguf, notes) = gguf?;
        warnings.extend(lint.into_iter().chain(notes));
        let index = shard::index(&shards).map(|(name, text)| (name.to_owned(), text));
        let texts = config.map(|text| ("config.json".to_owned(), text)).into_iter().chain(index);
        let (texts, companions) = match options.max_shard {
            Some(_) => (texts.collect(), companions),
            None => (Vec::new(), Vec::new()),
        };
        warnings.extend(adapters.iter().filter_map(|adapter| base_mismatch(&base, &base_provenance, adapter)));
        Ok(Self {
            out: out.to_owned(),
            base,
            base_provenance,
            adapters,
            merged,
            shards,
            gguf,
            texts,
            companions,
            config_changes,
            warnings,
            options,
        })
    }

    /// Bytes of all tensors of the safetensors files.
    pub fn tensor_bytes(&self) -> u64 {
        self.shards.iter().flat_map(|s| &s.tensors).map(|t| t.len).sum()
    }

    /// Every file that is streamed, with its length: in the order in which works are made of them.
    pub fn weight_files(&self) -> impl Iterator<Item = (&str, u64)> {
        let gguf = self.gguf.iter().flat_map(|output| &output.parts).map(|part| (part.name.as_str(), part.len));
        self.shards.iter().map(|s| (s.name.as_str(), s.len())).chain(gguf)
    }

    /// Bytes of the whole output, a little rounded up for manifest and checksums.
    pub fn disk_bytes(&self) -> u64 {
        let companions: u64 = self.companions.iter().filter_map(|c| c.path.metadata().ok()).map(|m| m.len()).sum();
        let texts: u64 = self.texts.iter().map(|(_, text)| text.len() as u64).sum();
        let manifest = 1024 * (self.gguf.len() as u64 + 1) * self.merged.len() as u64;
        self.weight_files().map(|(_, len)| len).sum::<u64>() + companions + texts + manifest + (1 << 16)
    }

    /// Number of tensors that an adapter changes.
    pub fn changed(&self) -> usize {
        self.merged.iter().filter(|t| t.source.is_changed()).count()
    }

    /// Number of tensors of the merged model.
    pub fn tensors(&self) -> usize {
        self.merged.len()
    }
}

/// The tensors of the output, without a place, cast to `dtype` where one is wanted.
pub(super) fn output_tensors(tensors: BTreeMap<String, TensorSource>, dtype: Option<Float>) -> Vec<OutputTensor> {
    let cast = |(name, source): (String, TensorSource)| OutputTensor {
        dtype: output_type(source.dtype, dtype),
        shape: source.source.shape().to_vec(),
        name,
        source,
    };
    tensors.into_iter().map(cast).collect()
}

/// Floats are cast, all else (integers, masks, quantized blocks) keeps its type.
fn output_type(stored: Dtype, wanted: Option<Float>) -> Dtype {
    match wanted {
        Some(float) if Float::of(stored).is_some() => float.dtype(),
        _ => stored,
    }
}

/// The name from which a converter would guess the model's: of the directory that is read or written.
fn model_name(out: &Path, base: &Checkpoint, as_file: bool) -> String {
    let dir = if as_file { &base.dir } else { out };
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    real.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The small files of the model to be: the companions, and the model card, which is not one since it speaks of the model
/// that it came with. An adapter's own card wins.
pub(super) fn small_files(
    base: &Checkpoint,
    adapters: &[Adapter],
    companions: &[Companion],
) -> Result<BTreeMap<String, PathBuf>> {
    const CARD: &str = "README.md";
    let mut files: BTreeMap<String, PathBuf> =
        companions.iter().map(|companion| (companion.name.clone(), companion.path.clone())).collect();
    for dir in std::iter::once(&base.dir).chain(adapters.iter().map(|adapter| &adapter.dir)) {
        if let Some(card) = member_if_there(dir, CARD)? {
            files.insert(CARD.to_owned(), card);
        }
    }
    Ok(files)
}

/// The tensors in the order in which llama.cpp's converter would meet them: file by file, by name in each. The files are
/// the export's shards, or those of the base where nothing is merged and no shards are written.
fn in_converters_order<'m>(merged: &'m [OutputTensor], shards: &[Shard], as_base: bool) -> Vec<&'m OutputTensor> {
    let shard_of: BTreeMap<&str, &str> =
        shards.iter().flat_map(|s| s.tensors.iter().map(|t| (t.name.as_str(), s.name.as_str()))).collect();
    let file = |t: &OutputTensor| match shard_of.get(t.name.as_str()) {
        Some(shard) => (*shard).to_owned(),
        None if as_base => t.source.source.file().name(),
        None => String::new(),
    };
    let mut ordered: Vec<&OutputTensor> = merged.iter().collect();
    ordered.sort_by_cached_key(|t| (file(t), t.name.clone()));
    ordered
}

/// What a GGUF file says of its model's descent. Reads the adapters' files.
fn lineage(base: &Provenance, adapters: &[Adapter]) -> Vec<Lineage> {
    let of = |adapter: &Adapter| Lineage {
        base: base.repo.clone().or_else(|| adapter.config.base_model.clone()),
        base_revision: base.revision.clone(),
        adapter: None,
        sha256: Some(sha256(adapter.file.bytes())),
        rank: adapter.config.uniform_rank(),
        alpha: adapter.config.uniform_alpha(),
        weight: Some(adapter.weight as f32),
    };
    adapters.iter().map(of).collect()
}

/// config.json with what the merge demands, and a line for each change. `None` if the base has no config.
pub(super) fn edit_config(
    base: &Checkpoint,
    dtype: Option<Float>,
    untied: bool,
    vocabulary: Option<usize>,
) -> (Option<String>, Vec<String>) {
    let Some(mut config) = base.config.clone() else { return (None, Vec::new()) };
    let mut changes = Vec::new();
    if untied {
        // Loaders differ in whether they look at the top or at the text model's section.
        set(&mut config, "tie_word_embeddings", &Value::Bool(false), Where::Everywhere, &mut changes);
    }
    if let Some(rows) = vocabulary {
        set(&mut config, "vocab_size", &json!(rows), Where::TextModel, &mut changes);
    }
    if let Some(dtype) = dtype {
        // transformers 5 writes `dtype`, older ones `torch_dtype`; both read the older name.
        let name = json!(dtype.config_name());
        let before = changes.len();
        for key in ["dtype", "torch_dtype"] {
            set(&mut config, key, &name, Where::Present, &mut changes);
        }
        if changes.len() == before && config.get(&["dtype"]).or(config.get(&["torch_dtype"])).is_none() {
            set(&mut config, "torch_dtype", &name, Where::Everywhere, &mut changes);
        }
    }
    (Some(config.text().to_owned()), changes)
}

/// In which parts of a config a setting is written.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    /// At the top, and in the text model's section if there is one.
    Everywhere,
    /// In the text model's section if there is one, else at the top; at the top too if it is there.
    TextModel,
    /// Where it is.
    Present,
}

fn set(config: &mut ConfigText, key: &str, value: &Value, place: Where, changes: &mut Vec<String>) {
    let section = TEXT_SECTIONS.into_iter().find(|section| config.get(&[section]).is_some_and(|v| v.is_object()));
    let nested = section.map(|section| vec![section, key]);
    for keys in [Some(vec![key]), nested.clone()].into_iter().flatten() {
        let before = config.get(&keys);
        let wanted = match place {
            Where::Everywhere => true,
            Where::TextModel => before.is_some() || keys.len() == 2 || nested.is_none(),
            Where::Present => before.is_some(),
        };
        if wanted && config.set(&keys, value) {
            let before = before.map_or_else(|| "absent".to_owned(), |v| v.to_string());
            changes.push(format!("{}: {before} -> {value}", keys.join(".")));
        }
    }
}

/// A warning where the adapter names another base than the one given.
fn base_mismatch(base: &Checkpoint, provenance: &Provenance, adapter: &Adapter) -> Option<String> {
    let named = adapter.config.base_model.as_deref()?;
    let last = |text: &str| text.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_lowercase();
    let known = [base.dir.to_string_lossy().into_owned(), provenance.repo.clone().unwrap_or_default()];
    let same = known.iter().any(|k| last(k).replace("___", ".") == last(named)) || Path::new(named) == base.dir;
    let is_hub_id = named.matches('/').count() == 1 && !named.starts_with(['.', '/']);
    (!same && is_hub_id && provenance.repo.is_some()).then(|| {
        format!("{} was trained on {}, the base is {}", shown(&adapter.dir), escaped(named), escaped(&known[1]))
    })
}
