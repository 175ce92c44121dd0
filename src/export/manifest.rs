//! `qft-manifest.json` and `SHA256SUMS`: what a release is made of and how to check it. Neither holds a clock, a host or
//! a path, so that the same export gives the same bytes anywhere. The format is described in docs/formats.md.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::encoded::EncodedTensor;
use super::plan::{ExportPlan, Provenance};
use super::report::QualityReport;
use super::shard::{OutputTensor, Shard};
use crate::adapter::{ADAPTER_CONFIG, Adapter, TensorSource};
use crate::checkpoint::{Checkpoint, CompanionSource};
use crate::digest::{Hex, of_model};
use crate::ggml::Quality;

/// File name of the manifest.
pub const MANIFEST: &str = "qft-manifest.json";
/// File name of the checksums.
pub const CHECKSUMS: &str = "SHA256SUMS";
/// The manifest's `format`.
pub const FORMAT: &str = "qft-manifest/1";

/// Digests that were taken while the export ran.
pub(super) struct Digests {
    /// Size and digest of every output file but the manifest and the checksums, by name.
    pub(super) files: BTreeMap<String, (u64, Hex)>,
    /// BLAKE3 of every base tensor, by name.
    pub(super) base: BTreeMap<String, Hex>,
    /// How good the encoding of each tensor is, by GGUF file and tensor.
    pub(super) quality: BTreeMap<String, BTreeMap<String, Quality>>,
    /// Digest of the base's config.json.
    pub(super) base_config: Option<Hex>,
    /// Digests of each adapter's config and weights.
    pub(super) adapters: Vec<(Hex, Hex)>,
}

/// A dtype as safetensors spells it.
pub(crate) fn dtype_name(dtype: Dtype) -> String {
    json!(dtype).as_str().unwrap_or_default().to_owned()
}

/// What a manifest describes, but for GGUF files.
pub(super) struct Described<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) provenance: &'a Provenance,
    pub(super) adapters: &'a [Adapter],
    pub(super) merged: &'a [OutputTensor],
    pub(super) shards: &'a [Shard],
    pub(super) config_changes: &'a [String],
}

/// The manifest's text.
pub(super) fn manifest(plan: &ExportPlan, digests: &Digests) -> String {
    let options = json!({
        "max_shard": plan.options.max_shard.map(|size| size.0),
        "dtype": plan.options.dtype.map(crate::merge::Float::name),
        "overflow": plan.options.overflow,
        "tokenizer": plan.options.tokenizer,
    });
    let of = Described {
        base: &plan.base,
        provenance: &plan.base_provenance,
        adapters: &plan.adapters,
        merged: &plan.merged,
        shards: &plan.shards,
        config_changes: &plan.config_changes,
    };
    let mut manifest = described(&of, &options, digests);
    if !plan.gguf.is_empty() {
        manifest["gguf"] = describe_gguf(plan, digests);
        manifest["gguf_quality"] = QualityReport::new(&plan.gguf, &digests.quality).to_json();
    }
    format!("{manifest:#}\n")
}

/// The manifest without its GGUF files.
pub(super) fn described(of: &Described<'_>, options: &Value, digests: &Digests) -> Value {
    let placed = of.shards.iter().flat_map(|shard| shard.tensors.iter().map(move |t| (t.name.as_str(), &shard.name)));
    let placed: BTreeMap<&str, &String> = placed.collect();
    let tensors: BTreeMap<&str, Value> =
        of.merged.iter().map(|t| (t.name.as_str(), describe(placed.get(t.name.as_str()).copied(), t))).collect();
    let files: BTreeMap<&str, Value> = digests
        .files
        .iter()
        .map(|(name, (size, sha256))| (name.as_str(), json!({"size": size, "sha256": sha256})))
        .collect();
    let described = of.adapters.iter().zip(&digests.adapters);
    let adapters: Vec<Value> = described.map(|(adapter, digests)| describe_adapter(adapter, digests)).collect();
    json!({
        "format": FORMAT,
        "qft": env!("CARGO_PKG_VERSION"),
        "options": options,
        "base": describe_base(of, digests),
        "adapters": adapters,
        "config_changes": of.config_changes,
        "files": files,
        "tensors": tensors,
    })
}

/// The GGUF files, and of each tensor in them its type and how good that is.
fn describe_gguf(plan: &ExportPlan, digests: &Digests) -> Value {
    let mut files = serde_json::Map::new();
    for output in &plan.gguf {
        for part in &output.parts {
            let measured = digests.quality.get(&part.name);
            let tensor = |t: &EncodedTensor| {
                let mut entry = json!({"type": t.kind.name()});
                if let Some(quality) = measured.and_then(|m| m.get(&t.name)) {
                    entry["quality"] = json!(quality);
                }
                (t.name.clone(), entry)
            };
            let tensors: serde_json::Map<String, Value> = part.tensors.iter().map(tensor).collect();
            let mixture = output.choices.mixture.name();
            files.insert(part.name.clone(), json!({"type": mixture, "tensors": tensors}));
        }
    }
    Value::Object(files)
}

fn describe_base(of: &Described<'_>, digests: &Digests) -> Value {
    let Provenance { repo, revision } = of.provenance;
    let lines = of.base.tensors.iter().filter_map(|(name, tensor)| {
        Some((name.as_str(), dtype_name(tensor.dtype()), tensor.shape(), digests.base.get(name)?.as_str()))
    });
    json!({
        "repo": repo,
        "revision": revision,
        "tensors": of.base.tensors.len(),
        "bytes": of.base.tensor_bytes(),
        "model_blake3": of_model(lines),
        "config_sha256": digests.base_config,
        "tensor_blake3": digests.base,
    })
}

fn describe_adapter(adapter: &Adapter, (config, weights): &(Hex, Hex)) -> Value {
    json!({
        "weight": adapter.weight,
        "tensors": adapter.file.header().tensors.len(),
        "files": {ADAPTER_CONFIG: {"sha256": config}, adapter.file.name(): {"sha256": weights}},
    })
}

/// What one tensor of the merged model is made of, and the safetensors file that holds it, if one does.
fn describe(file: Option<&String>, tensor: &OutputTensor) -> Value {
    let source = &tensor.source;
    let from = match source.replaced_by {
        Some(adapter) => json!({"adapter": adapter, "tensor": source.source.name()}),
        None => json!({"base": source.source.name()}),
    };
    let mut entry = json!({
        "file": file,
        "dtype": dtype_name(tensor.dtype),
        "shape": tensor.shape,
        "source": from,
    });
    let changes = changes(source, tensor.dtype);
    if !changes.is_empty() {
        entry["changes"] = json!(changes);
    }
    entry
}

/// The changes to a tensor, in the order in which they are applied. Terms of several experts of one pair are one line.
pub(super) fn changes(source: &TensorSource, dtype: Dtype) -> Vec<Value> {
    let mut changes: Vec<Value> = Vec::new();
    for term in &source.low_rank {
        let change = json!({"kind": "low-rank", "adapter": term.adapter, "rank": term.rank, "scale": term.scale});
        if changes.last() != Some(&change) {
            changes.push(change);
        }
    }
    if let Some((_, axis, adapter)) = &source.magnitude {
        changes.push(json!({"kind": "dora", "adapter": adapter, "norm": axis}));
    }
    if let Some((_, rows, adapter)) = &source.rows {
        changes.push(json!({"kind": "rows", "adapter": adapter, "rows": rows.keys().collect::<Vec<_>>()}));
    }
    if source.source.dtype() != dtype {
        changes.push(json!({"kind": "cast", "from": dtype_name(source.source.dtype())}));
    }
    changes
}

/// The text of `SHA256SUMS`: clean under `sha256sum -c`.
pub(crate) fn checksums(files: &BTreeMap<String, (u64, Hex)>) -> String {
    files.iter().map(|(name, (_, digest))| format!("{digest}  {name}\n")).collect()
}

/// Where a companion comes from, for people.
pub(crate) fn companion_origin(source: CompanionSource) -> &'static str {
    match source {
        CompanionSource::Base => "base",
        CompanionSource::Adapter => "adapter",
    }
}
