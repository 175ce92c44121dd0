//! The audit of a release's files: which there are, how tensors lie in them, and of what lies beside the weights every
//! byte. What the manifest says of them is next door, in `manifest`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Inputs;
use super::gguf::GgufFound;
use super::manifest::{compare_manifest, expected_options, problem_of_options};
use super::weights::Difference;
use crate::error::Result;
use crate::export::{Beside, Described, Merged, Run, Shard, index, split};
use crate::files::{Mapping, read_small};
use crate::gguf::{GgufModel, PartName};
use crate::manifest::{CHECKSUMS, MANIFEST};
use crate::stream::files_of_model;

/// What the audit of a release's files found.
#[derive(Debug, Default)]
pub(super) struct FilesFound {
    /// The first way in which they are not what the inputs give.
    pub(super) difference: Option<Difference>,
    /// What could not be checked.
    pub(super) unchecked: Vec<String>,
}

/// Compares all of the release in `dir` but its tensors with what its inputs give; nothing if it has no manifest. Of
/// its GGUF models, `models` has what their own audit found.
pub(super) fn audit_files(
    dir: &Path,
    models: &[(GgufModel, GgufFound)],
    inputs: &Inputs<'_>,
    how: &Run<'_>,
) -> Result<FilesFound> {
    let Some(claims) = inputs.claims else { return Ok(FilesFound::default()) };
    let of_manifest = |problem| FilesFound { difference: Some(differs(MANIFEST, problem)), ..FilesFound::default() };
    let options = expected_options(claims, inputs);
    if let Some(problem) = problem_of_options(claims, options) {
        return Ok(of_manifest(problem));
    }
    let max_shard = options.max_shard;
    let Merged { tensors: merged, config, mut config_changes, .. } =
        Merged::new(inputs.base, inputs.adapters, inputs.dtype)?;
    let shards = max_shard.map_or(Vec::new(), |max| split(merged.clone(), max));
    let beside = Beside::new(inputs.base, inputs.adapters, config.as_deref(), inputs.tokenizer)?;
    if max_shard.is_some() {
        config_changes.extend(beside.changes.iter().cloned());
    }
    let beside = Some(beside).filter(|_| max_shard.is_some());
    let mut difference = compare_files(dir, beside.as_ref(), &shards, &claims.gguf().collect())?;
    if difference.is_none() {
        difference = compare_layout(dir, &shards)?;
    }
    let difference = difference.or_else(|| models.iter().find_map(|(model, found)| named_otherwise(model, found)));
    if difference.is_some() {
        return Ok(FilesFound { difference, ..FilesFound::default() });
    }
    let described = Described {
        base: inputs.base,
        provenance: inputs.provenance,
        adapters: inputs.adapters,
        merged: &merged,
        shards: &shards,
        config_changes: &config_changes,
    };
    let (problem, unchecked) = compare_manifest(dir, claims, &described, options, models, how)?;
    Ok(FilesFound { difference: problem.map(|problem| differs(MANIFEST, problem)), unchecked })
}

fn differs(file: &str, problem: impl Into<String>) -> Difference {
    Difference::File { file: file.to_owned(), problem: problem.into() }
}

/// Compares the names of all files, and the bytes of those beside the weights: `beside` and the index of `shards`. `gguf`
/// are the GGUF files that the manifest describes.
fn compare_files(
    dir: &Path,
    beside: Option<&Beside>,
    shards: &[Shard],
    gguf: &BTreeSet<&str>,
) -> Result<Option<Difference>> {
    let index = index(shards);
    let mut texts: BTreeMap<&str, &str> = index.iter().map(|(name, text)| (*name, text.as_str())).collect();
    texts.extend(beside.iter().flat_map(|b| &b.texts).map(|(name, text)| (name.as_str(), text.as_str())));
    let copies = beside.iter().flat_map(|b| &b.companions);
    let copies: BTreeMap<&str, &Path> = copies.map(|c| (c.name.as_str(), c.path.as_path())).collect();
    let mut expected: BTreeSet<&str> = texts.keys().chain(copies.keys()).copied().collect();
    for name in &expected {
        let Some(found) = bytes_if_there(&dir.join(name))? else { return Ok(Some(differs(name, "is missing"))) };
        let expected = match (texts.get(name), copies.get(name)) {
            (Some(text), _) => Some(text.as_bytes().to_vec()),
            (None, Some(path)) => bytes_if_there(path)?,
            (None, None) => None,
        };
        if expected.is_some_and(|expected| expected != found) {
            return Ok(Some(differs(name, "is not what the base and the adapters give")));
        }
    }
    expected.extend(shards.iter().map(|shard| shard.name.as_str()));
    expected.extend(gguf);
    let found = files_of_model(dir)?;
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    if let Some(name) = expected.difference(&found).next() {
        return Ok(Some(differs(name, format!("is missing, though {MANIFEST} describes it"))));
    }
    let extra = found.difference(&expected).find(|name| ![CHECKSUMS, MANIFEST].contains(name));
    let one_too_many = |name: &&str| {
        let undescribed = format!("is an additional file: {MANIFEST} does not describe it");
        let stray = || "comes from neither the base nor the adapters".to_owned();
        differs(name, if name.ends_with(".gguf") { undescribed } else { stray() })
    };
    Ok(extra.map(one_too_many))
}

fn bytes_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    if path.symlink_metadata().is_err() { Ok(None) } else { read_small(path).map(Some) }
}

/// Compares how tensors lie in the safetensors files.
fn compare_layout(dir: &Path, shards: &[Shard]) -> Result<Option<Difference>> {
    for shard in shards {
        let file = Mapping::open(&dir.join(&shard.name))?;
        if !file.bytes().starts_with(&shard.header) || file.bytes().len() as u64 != shard.len() {
            return Ok(Some(differs(
                &shard.name,
                format!("has other tensors, or another order, than {MANIFEST} says"),
            )));
        }
    }
    Ok(None)
}

/// A GGUF model whose files an export would name otherwise.
fn named_otherwise(model: &GgufModel, found: &GgufFound) -> Option<Difference> {
    let stem = format!("model-{}", found.mixture?);
    let file = model.files.first()?.name();
    let named = PartName::parse(&file).map_or(file.trim_end_matches(".gguf").to_owned(), |part| part.stem);
    (named != stem).then(|| differs(&file, format!("records the name {stem}.gguf")))
}
