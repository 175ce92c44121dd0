//! The release rules on a directory: what its loaders would make of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Problem, Verification};
use crate::adapter::head_apart;
use crate::checkpoint::Checkpoint;
use crate::error::{Result, escaped};
use crate::files::open_regular;
use crate::manifest::CHECKSUMS;
use crate::rules::{self, Content, Release, Weight};
use crate::stream::files_of_model;

/// Holds the model in `dir` against the release rules, if it is one for transformers and its kin.
pub(super) fn hold(dir: &Path, result: &mut Verification) -> Result<()> {
    if !dir.join("config.json").is_file() {
        return Ok(());
    }
    // Weights that can't be opened are the lint's to report.
    let model = Checkpoint::open(dir).ok();
    let small = |name: &String| ![".safetensors", ".gguf", ".bin", ".pt"].iter().any(|ending| name.ends_with(ending));
    let paths: BTreeMap<String, PathBuf> = files_of_model(dir)?
        .into_iter()
        .filter(small)
        .map(|name| (name.clone(), dir.join(&name)))
        .filter(|(_, path)| open_regular(path).is_ok())
        .collect();
    let by_name: BTreeMap<&str, &Path> = paths.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
    let tensors = model.iter().flat_map(|model| &model.tensors);
    let release = Release {
        tensors: tensors.map(|(name, tensor)| (name.as_str(), (tensor.dtype(), tensor.shape()))).collect(),
        files: by_name.iter().map(|(name, path)| (*name, Content::At(path))).collect(),
        untied_head: model.as_ref().and_then(head_apart),
        adapters_tokenizer: false,
        turn_end: rules::turn_end_among(&by_name),
    };
    // A change of the release itself would break its checksums.
    let listed = by_name.contains_key(CHECKSUMS);
    let place = if listed { ", in the model that this was exported from, and export again" } else { "" };
    for finding in rules::check(&release) {
        let problem = format!("{}; {}{place}", finding.problem, finding.remedy);
        let found = Problem { file: escaped(finding.file), problem: escaped(&problem) };
        match finding.weight {
            Weight::Refuse => result.problems.push(found),
            Weight::Warn => result.warnings.push(found),
        }
    }
    Ok(())
}
