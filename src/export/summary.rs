//! A plan as data, for programs and for the text that users read.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde::Serialize;

use super::block::MergedTensor;
use super::encoded::{EncodedTensor, GgufPart};
use super::gguf::GgufOutput;
use super::manifest::changes;
use super::plan::ExportPlan;
use super::shard::OutputTensor;
use crate::checkpoint::CompanionSource;
use crate::ggml::TensorType;
use crate::gpu::CardNeeds;
use crate::manifest::Change;
use crate::stream::{BLOCK_LEN, in_flight, open_files};

/// What an export will do: inputs, files, every changed tensor with its changes, what it needs, and the warnings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanSummary {
    /// The destination: a directory, or a GGUF file.
    pub out: String,
    /// Files at the destination that go with what is replaced.
    pub deletes: Vec<String>,
    /// What is merged into.
    pub base: BaseSummary,
    /// In the order in which they are applied.
    pub adapters: Vec<AdapterSummary>,
    /// How many tensors the merged model has.
    pub tensors: usize,
    /// Bytes of all tensors of the safetensors files.
    pub tensor_bytes: u64,
    /// How many of the tensors an adapter changes.
    pub changed_tensors: usize,
    /// The safetensors files, by name; empty where none are written.
    pub shards: Vec<ShardSummary>,
    /// By name, what an adapter changes.
    pub changed: BTreeMap<String, ChangedTensor>,
    /// A line for each change of config.json and `generation_config.json`.
    pub config_changes: Vec<String>,
    /// Files that are copied, and whose they are: `base` or `adapter`.
    pub companions: BTreeMap<String, &'static str>,
    /// Files that are not copied, and why.
    pub left_out: BTreeMap<String, &'static str>,
    /// What the run takes.
    pub needs: Needs,
    /// What deserves a look.
    pub warnings: Vec<String>,
    /// The models in GGUF files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gguf: Vec<GgufSummary>,
}

/// The model that is merged into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BaseSummary {
    /// The directory, as it was named.
    pub dir: String,
    /// Its Hub id, if it was found by one.
    pub repo: Option<String>,
    /// Its commit, if it lies in the Hub's cache.
    pub revision: Option<String>,
    /// How many tensors it has.
    pub tensors: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// An adapter that is merged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterSummary {
    /// The directory, as it was named.
    pub dir: String,
    /// Factor on its deltas.
    pub weight: f64,
    /// How many tensors it has.
    pub tensors: usize,
}

/// A safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardSummary {
    /// The name, below the destination.
    pub file: String,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// How many tensors it has.
    pub tensors: usize,
}

/// A tensor that an adapter changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangedTensor {
    /// Its type in the output.
    pub dtype: Dtype,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// In order.
    pub changes: Vec<Change>,
}

/// What a run takes at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// Of disk, a little rounded up.
    pub disk_bytes: u64,
    /// Of memory that is no mapped file.
    pub memory_bytes: u64,
    /// Worker threads.
    pub jobs: usize,
    /// What a GPU takes, where one is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card: Option<CardNeeds>,
}

/// A model in GGUF files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GgufSummary {
    /// The mixture, by llama.cpp's name.
    #[serde(rename = "type")]
    pub mixture: &'static str,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Bits of a weight, on average.
    pub bits_per_weight: f64,
    /// Its files, in order.
    pub files: Vec<GgufFileSummary>,
}

/// A GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GgufFileSummary {
    /// The name, below the destination.
    pub file: String,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// In the order of their bytes.
    pub tensors: Vec<EncodedSummary>,
}

/// A tensor in a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EncodedSummary {
    /// As llama.cpp calls it: `blk.0.attn_q.weight`.
    pub name: String,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// The name of its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Bytes that it takes.
    pub bytes: u64,
    /// The type that it would have if its rows held a whole number of that type's blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<&'static str>,
    /// Whether an imatrix weighs its errors.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub imatrix: bool,
}

impl ExportPlan {
    /// The plan as data, for a run of `jobs` workers without a GPU.
    pub fn summary(&self, jobs: usize) -> PlanSummary {
        let changed = self.merged.iter().filter(|t| t.source.is_changed());
        let companion = |source| match source {
            CompanionSource::Base => "base",
            CompanionSource::Adapter => "adapter",
        };
        PlanSummary {
            out: self.out.to_string_lossy().into_owned(),
            deletes: self.deletes.clone(),
            base: BaseSummary {
                dir: self.base.dir.to_string_lossy().into_owned(),
                repo: self.base_provenance.repo.clone(),
                revision: self.base_provenance.revision.clone(),
                tensors: self.base.tensors.len(),
                bytes: self.base.tensor_bytes(),
            },
            adapters: self
                .adapters
                .iter()
                .map(|adapter| AdapterSummary {
                    dir: adapter.dir.to_string_lossy().into_owned(),
                    weight: adapter.weight,
                    tensors: adapter.file.header().tensors.len(),
                })
                .collect(),
            tensors: self.tensors(),
            tensor_bytes: self.tensor_bytes(),
            changed_tensors: self.changed(),
            shards: self
                .shards
                .iter()
                .map(|shard| ShardSummary {
                    file: shard.name.clone(),
                    bytes: shard.len(),
                    tensors: shard.tensors.len(),
                })
                .collect(),
            changed: changed.map(|t| (t.name.clone(), ChangedTensor::of(t))).collect(),
            config_changes: self.config_changes.clone(),
            companions: self.companions.iter().map(|c| (c.name.clone(), companion(c.source))).collect(),
            left_out: self.left_out.iter().map(|left| (left.name.clone(), left.why)).collect(),
            needs: Needs { disk_bytes: self.disk_bytes(), memory_bytes: self.memory(jobs), jobs, card: None },
            warnings: self.warnings.clone(),
            gguf: self.gguf.iter().map(GgufOutput::summary).collect(),
        }
    }

    /// A bound of the anonymous memory of a run: segments in flight, the widened factors of the shards that are open at
    /// once, and what each worker widens for itself.
    fn memory(&self, jobs: usize) -> u64 {
        let largest = self.merged.iter().map(|t| MergedTensor::factor_bytes(&t.source)).max().unwrap_or(0);
        let open = open_files(largest, jobs);
        (in_flight(jobs) * BLOCK_LEN + 2 * open * largest + jobs * BLOCK_LEN + (16 << 20)) as u64
    }
}

impl ChangedTensor {
    fn of(tensor: &OutputTensor) -> Self {
        let replaced = tensor.source.replaced_by.map(|adapter| Change::Replaced { adapter });
        let changes = replaced.into_iter().chain(changes(&tensor.source, tensor.dtype)).collect();
        Self { dtype: tensor.dtype, shape: tensor.shape.clone(), changes }
    }
}

impl GgufOutput {
    /// The model as data, with every tensor.
    pub fn summary(&self) -> GgufSummary {
        let tensor = |t: &EncodedTensor| EncodedSummary {
            name: t.name.clone(),
            shape: t.shape.clone(),
            kind: t.kind.name(),
            bytes: t.len,
            instead_of: t.instead_of.map(TensorType::name),
            imatrix: t.importance.is_some(),
        };
        let file = |part: &GgufPart| GgufFileSummary {
            file: part.name.clone(),
            bytes: part.len,
            tensors: part.tensors.iter().map(tensor).collect(),
        };
        GgufSummary {
            mixture: self.choices.mixture.name(),
            bytes: self.bytes(),
            bits_per_weight: self.bits_per_weight(),
            files: self.parts.iter().map(file).collect(),
        }
    }
}
