//! A plan as data, for `--dry-run --json` and for the summary that people read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::block::MergedTensor;
use super::manifest::{changes, companion_origin, dtype_name};
use super::plan::ExportPlan;
use crate::stream::{BLOCK_LEN, in_flight, open_files};

/// The plan as JSON: inputs, shards, every changed tensor with its changes, what it needs, and the warnings.
pub fn describe_plan(plan: &ExportPlan, jobs: usize) -> Value {
    let shards: Vec<Value> =
        plan.shards.iter().map(|s| json!({"file": s.name, "bytes": s.len(), "tensors": s.tensors.len()})).collect();
    let all = || plan.merged.iter();
    let changed: BTreeMap<&str, Value> = all()
        .filter(|t| t.source.is_changed())
        .map(|t| {
            let replaced = t.source.replaced_by.map(|adapter| json!({"kind": "replaced", "adapter": adapter}));
            let list: Vec<Value> = replaced.into_iter().chain(changes(&t.source, t.dtype)).collect();
            (t.name.as_str(), json!({"dtype": dtype_name(t.dtype), "shape": t.shape, "changes": list}))
        })
        .collect();
    let adapters: Vec<Value> = plan
        .adapters
        .iter()
        .map(|a| json!({"dir": a.dir.to_string_lossy(), "weight": a.weight, "tensors": a.file.header().tensors.len()}))
        .collect();
    let companions: BTreeMap<&str, &str> =
        plan.companions.iter().map(|c| (c.name.as_str(), companion_origin(c.source))).collect();
    let left_out: BTreeMap<&str, &str> = plan.left_out.iter().map(|left| (left.name.as_str(), left.why)).collect();
    json!({
        "out": plan.out.to_string_lossy(),
        "deletes": plan.deletes,
        "base": {
            "dir": plan.base.dir.to_string_lossy(),
            "repo": plan.base_provenance.repo,
            "revision": plan.base_provenance.revision,
            "tensors": plan.base.tensors.len(),
            "bytes": plan.base.tensor_bytes(),
        },
        "adapters": adapters,
        "tensors": plan.tensors(),
        "tensor_bytes": plan.tensor_bytes(),
        "changed_tensors": plan.changed(),
        "shards": shards,
        "changed": changed,
        "config_changes": plan.config_changes,
        "companions": companions,
        "left_out": left_out,
        "needs": {"disk_bytes": plan.disk_bytes(), "memory_bytes": memory(plan, jobs), "jobs": jobs},
        "warnings": plan.warnings,
    })
}

/// A bound of the anonymous memory of a run: segments in flight, the widened factors of the shards that are open at
/// once, and what each worker widens for itself.
fn memory(plan: &ExportPlan, jobs: usize) -> u64 {
    let largest = plan.merged.iter().map(|t| MergedTensor::factor_bytes(&t.source)).max().unwrap_or(0);
    let open = open_files(largest, jobs);
    (in_flight(jobs) * BLOCK_LEN + 2 * open * largest + jobs * BLOCK_LEN + (16 << 20)) as u64
}
