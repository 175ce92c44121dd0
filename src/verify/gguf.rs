//! The lint of GGUF files, alone or in a release: whether they can be read, and what is odd about them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Verification;
use crate::error::Result;
use crate::gguf::{GgufModel, Verdict, lint_model, lint_padding};
use crate::stream::{check_finished, files_of_model};

/// Lints the file at `path` with all other parts of its model.
pub(super) fn lint_lone(path: &Path, result: &mut Verification) {
    let dir = path.parent().unwrap_or(path);
    if let Err(error) = check_finished(dir) {
        result.unreadable(dir, &error);
    }
    result.notes.push("a single file has no digests to compare with".to_owned());
    lint(dir, path, result);
}

/// Lints every GGUF file below `dir`; says whether there is one.
pub(super) fn lint_all(dir: &Path, result: &mut Verification) -> Result<bool> {
    let names = files_of_model(dir)?.into_iter().filter(|name| name.ends_with(".gguf"));
    let mut pending: BTreeSet<PathBuf> = names.map(|name| dir.join(name)).collect();
    let found = !pending.is_empty();
    while let Some(path) = pending.pop_first() {
        for part in lint(dir, &path, result) {
            pending.remove(&part);
        }
    }
    Ok(found)
}

/// Lints the model that `path` is a file of; gives its files. A file of an unreadable model is left to be tried by itself.
fn lint(dir: &Path, path: &Path, result: &mut Verification) -> Vec<PathBuf> {
    let model = match GgufModel::open(path) {
        Ok(model) => model,
        Err(error) => {
            result.unreadable(dir, &error);
            return Vec::new();
        }
    };
    let name = |path: &Path| path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned();
    for file in &model.files {
        for line in lint_padding(file) {
            result.problem(&name(file.path()), line);
        }
    }
    let first = name(model.files[0].path());
    for finding in lint_model(&model) {
        match finding.verdict {
            Verdict::Refuse | Verdict::Wrong => result.problem(&first, finding.problem),
            Verdict::Tell => result.notes.push(format!("{first}: {}", finding.problem)),
        }
    }
    result.tensors += model.tensors.len();
    model.files.iter().map(|file| file.path().to_owned()).collect()
}
