//! The manifest of what a plan gives, with the digests that were taken on the way.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::json;

use super::encoded::EncodedTensor;
use super::plan::{ExportPlan, Provenance};
use super::report::QualityReport;
use super::shard::{OutputTensor, Shard};
use crate::adapter::{ADAPTER_CONFIG, Adapter, TensorSource};
use crate::checkpoint::{Checkpoint, dtype_name};
use crate::digest::{Hex, of_model};
use crate::ggml::Quality;
use crate::manifest::{self, Change, Digest, EncodedFile, EncodedForm, FORMAT, Manifest, Named, Source};

/// Digests that were taken while the export ran.
pub(crate) struct Digests {
    /// Size and digest of every output file but the manifest and the checksums, by name.
    pub(crate) files: BTreeMap<String, (u64, Hex)>,
    /// BLAKE3 of every base tensor, by name.
    pub(crate) base: BTreeMap<String, Hex>,
    /// Digest of the base's config.json.
    pub(crate) base_config: Option<Hex>,
    /// Digests of each adapter's config and weights.
    pub(crate) adapters: Vec<(Hex, Hex)>,
}

/// What a manifest describes, but for GGUF files.
pub(crate) struct Described<'a> {
    pub(crate) base: &'a Checkpoint,
    pub(crate) provenance: &'a Provenance,
    pub(crate) adapters: &'a [Adapter],
    pub(crate) merged: &'a [OutputTensor],
    pub(crate) shards: &'a [Shard],
    pub(crate) config_changes: &'a [String],
}

/// The manifest's text. `quality` has what was measured, by GGUF file and tensor.
pub(super) fn text(
    plan: &ExportPlan,
    digests: &Digests,
    quality: &BTreeMap<String, BTreeMap<String, Quality>>,
) -> String {
    let options = manifest::Options {
        max_shard: plan.options.max_shard.map(|size| size.0),
        dtype: plan.options.dtype,
        overflow: plan.options.overflow,
        tokenizer: plan.options.tokenizer,
    };
    let of = Described {
        base: &plan.base,
        provenance: &plan.base_provenance,
        adapters: &plan.adapters,
        merged: &plan.merged,
        shards: &plan.shards,
        config_changes: &plan.config_changes,
    };
    let mut manifest = described(&of, options, digests);
    if !plan.gguf.is_empty() {
        manifest.gguf = Some(describe_gguf(plan, quality));
        manifest.gguf_quality = Some(QualityReport::new(&plan.gguf, quality).sums());
    }
    format!("{:#}\n", json!(manifest))
}

/// The manifest without its GGUF files.
pub(crate) fn described(of: &Described<'_>, options: manifest::Options, digests: &Digests) -> Manifest {
    let placed = of.shards.iter().flat_map(|shard| shard.tensors.iter().map(move |t| (t.name.as_str(), &shard.name)));
    let placed: BTreeMap<&str, &String> = placed.collect();
    let tensor = |t: &OutputTensor| (t.name.clone(), describe(placed.get(t.name.as_str()).copied(), t));
    let file = |(name, (size, sha256)): (&String, &(u64, Hex))| {
        (name.clone(), manifest::File { size: *size, sha256: sha256.clone() })
    };
    Manifest {
        format: FORMAT.to_owned(),
        qft: env!("CARGO_PKG_VERSION").to_owned(),
        options,
        base: describe_base(of, digests),
        adapters: of.adapters.iter().zip(&digests.adapters).map(|(a, digests)| describe_adapter(a, digests)).collect(),
        config_changes: of.config_changes.to_vec(),
        files: digests.files.iter().map(file).collect(),
        tensors: of.merged.iter().map(tensor).collect(),
        gguf: None,
        gguf_quality: None,
    }
}

/// The GGUF files, and of each tensor in them its type and how good that is.
fn describe_gguf(plan: &ExportPlan, quality: &BTreeMap<String, BTreeMap<String, Quality>>) -> Named<EncodedFile> {
    let parts = plan.gguf.iter().flat_map(|output| output.parts.iter().map(move |part| (output, part)));
    let file = |(output, part): (&super::GgufOutput, &super::GgufPart)| {
        let measured = quality.get(&part.name);
        let tensor = |t: &EncodedTensor| {
            let quality = measured.and_then(|measured| measured.get(&t.name)).copied();
            (t.name.clone(), EncodedForm { kind: t.kind.name().to_owned(), quality })
        };
        let tensors = part.tensors.iter().map(tensor).collect();
        (part.name.clone(), EncodedFile { mixture: output.choices.mixture.name().to_owned(), tensors })
    };
    parts.map(file).collect()
}

fn describe_base(of: &Described<'_>, digests: &Digests) -> manifest::Base {
    let Provenance { repo, revision } = of.provenance.clone();
    let lines = of.base.tensors.iter().filter_map(|(name, tensor)| {
        Some((name.as_str(), dtype_name(tensor.dtype()), tensor.shape(), digests.base.get(name)?.as_str()))
    });
    manifest::Base {
        repo,
        revision,
        tensors: of.base.tensors.len(),
        bytes: of.base.tensor_bytes(),
        model_blake3: of_model(lines),
        config_sha256: digests.base_config.clone(),
        tensor_blake3: digests.base.clone(),
    }
}

fn describe_adapter(adapter: &Adapter, (config, weights): &(Hex, Hex)) -> manifest::Adapter {
    let files = [(ADAPTER_CONFIG.to_owned(), config), (adapter.file.name(), weights)];
    manifest::Adapter {
        weight: adapter.weight,
        tensors: adapter.file.header().tensors.len(),
        files: files.into_iter().map(|(name, sha256)| (name, Digest { sha256: sha256.clone() })).collect(),
    }
}

/// What one tensor of the merged model is made of, and the safetensors file that holds it, if one does.
fn describe(file: Option<&String>, tensor: &OutputTensor) -> manifest::Tensor {
    let source = &tensor.source;
    let name = source.source.name().to_owned();
    manifest::Tensor {
        file: file.cloned(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        source: match source.replaced_by {
            Some(adapter) => Source::Adapter { adapter, tensor: name },
            None => Source::Base { base: name },
        },
        changes: changes(source, tensor.dtype),
    }
}

/// The changes to a tensor, in the order in which they are applied. Terms of several experts of one pair are one line.
pub(super) fn changes(source: &TensorSource, dtype: Dtype) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for term in &source.low_rank {
        let change = Change::LowRank { adapter: term.adapter, rank: term.rank, scale: term.scale.into() };
        if changes.last() != Some(&change) {
            changes.push(change);
        }
    }
    if let Some((_, norm, adapter)) = source.magnitude {
        changes.push(Change::Dora { adapter, norm });
    }
    if let Some((_, rows, adapter)) = &source.rows {
        changes.push(Change::Rows { adapter: *adapter, rows: rows.keys().copied().collect() });
    }
    if source.source.dtype() != dtype {
        changes.push(Change::Cast { from: source.source.dtype() });
    }
    changes
}
