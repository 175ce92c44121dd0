//! The plan of an export: every output tensor, its source, its changes and its place; every other file; every refusal
//! that can be made before the first byte is written. A pure function of the inputs and the options.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::shard::{self, Shard, Unplaced};
use crate::adapter::{Adapter, TensorSource, resolve};
use crate::checkpoint::{Checkpoint, Companion, ConfigText, TEXT_SECTIONS, companions, lint_companions};
use crate::error::{Error, Result, escaped, shown};
use crate::merge::{Float, Overflow};
use crate::size::ByteSize;
use crate::stream::check_destination;

/// What the user chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most tensor bytes of a shard.
    pub max_shard: ByteSize,
    /// Type to cast float tensors to; their own if `None`.
    pub dtype: Option<Float>,
    /// What happens to a finite value beyond the output type.
    pub overflow: Overflow,
    /// Whether an existing destination is exchanged.
    pub overwrite: bool,
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
    /// The weight files.
    pub shards: Vec<Shard>,
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
        check_destination(out, &inputs, options.overwrite)?;
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
        let unplaced = unplaced(resolution.tensors, options.dtype);
        if let Some(tensor) = unplaced.iter().find(|t| t.len().is_none()) {
            return Err(Error::refused(
                format!("tensor {} is too large", escaped(&tensor.name)),
                "check the base's header",
            ));
        }
        let (config, config_changes) = edit_config(&base, &options, resolution.untied, resolution.vocabulary);
        if config.is_none() {
            warnings.push("the base has no config.json; loaders will need one".to_owned());
        }
        let shards = shard::split(unplaced, options.max_shard.0);
        let index = shard::index(&shards).map(|(name, text)| (name.to_owned(), text));
        let texts = config.map(|text| ("config.json".to_owned(), text)).into_iter().chain(index).collect();
        let adapter_dirs: Vec<&Path> = adapters.iter().map(|a| a.dir.as_path()).collect();
        let companions = companions(&base.dir, &adapter_dirs)?;
        warnings.extend(lint_companions(&companions));
        warnings.extend(adapters.iter().filter_map(|adapter| base_mismatch(&base, &base_provenance, adapter)));
        Ok(Self {
            out: out.to_owned(),
            base,
            base_provenance,
            adapters,
            shards,
            texts,
            companions,
            config_changes,
            warnings,
            options,
        })
    }

    /// Bytes of all tensors of the output.
    pub fn tensor_bytes(&self) -> u64 {
        self.shards.iter().flat_map(|s| &s.tensors).map(|t| t.len).sum()
    }

    /// Bytes of the whole output, a little rounded up for manifest and checksums.
    pub fn disk_bytes(&self) -> u64 {
        let companions: u64 = self.companions.iter().filter_map(|c| c.path.metadata().ok()).map(|m| m.len()).sum();
        let texts: u64 = self.texts.iter().map(|(_, text)| text.len() as u64).sum();
        let manifest = self.shards.iter().map(|s| 1024 * s.tensors.len() as u64).sum::<u64>();
        self.shards.iter().map(Shard::len).sum::<u64>() + companions + texts + manifest + (1 << 16)
    }

    /// Number of output tensors that an adapter changes.
    pub fn changed(&self) -> usize {
        self.shards.iter().flat_map(|s| &s.tensors).filter(|t| t.source.is_changed()).count()
    }

    /// Number of output tensors.
    pub fn tensors(&self) -> usize {
        self.shards.iter().map(|s| s.tensors.len()).sum()
    }
}

/// The tensors of the output, without a place, cast to `dtype` where one is wanted.
pub(super) fn unplaced(tensors: BTreeMap<String, TensorSource>, dtype: Option<Float>) -> Vec<Unplaced> {
    let cast = |(name, source): (String, TensorSource)| Unplaced {
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

/// config.json with what the merge demands, and a line for each change. `None` if the base has no config.
fn edit_config(
    base: &Checkpoint,
    options: &Options,
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
    if let Some(dtype) = options.dtype {
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
