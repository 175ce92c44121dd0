//! Checking a release: every digest, and a strict lint of its safetensors files and their index. Recomputing its
//! tensors is `export::audit`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::checkpoint::{
    Header, INDEX_FILE, Mapping, SINGLE_FILE, ShardIndex, TensorInfo, read_text_if_there, stale_shards,
};
use crate::error::{Error, Result, escaped};
use crate::export::{CHECKSUMS, Hex, MANIFEST, hex};
use crate::progress::Progress;

/// Bytes that are digested between two looks at `cancel`.
const STEP: usize = 8 << 20;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, relative to the directory.
    pub file: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The result of a verification.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Files whose digest was compared.
    pub digests: usize,
    /// Bytes of these files.
    pub bytes: u64,
    /// Tensors whose place, size and alignment were checked.
    pub tensors: usize,
    /// What is wrong; empty if nothing is.
    pub problems: Vec<Problem>,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
}

impl Verification {
    fn problem(&mut self, file: &str, problem: impl Into<String>) {
        self.problems.push(Problem { file: escaped(file), problem: escaped(&problem.into()) });
    }
}

/// Verifies the release in `dir` with `jobs` threads. Problems are in the result; errors are for what can't be read.
pub fn verify(dir: &Path, jobs: usize, cancel: &AtomicBool, progress: &dyn Progress) -> Result<Verification> {
    let mut result = Verification::default();
    let expected = expected_digests(dir, &mut result)?;
    check_digests(dir, &expected, jobs, cancel, progress, &mut result)?;
    lint(dir, &mut result)?;
    Ok(result)
}

/// The digests that SHA256SUMS and the manifest give, which must agree.
fn expected_digests(dir: &Path, result: &mut Verification) -> Result<BTreeMap<String, Hex>> {
    let read = |name: &str| read_text_if_there(&dir.join(name));
    let mut expected = BTreeMap::new();
    match read(CHECKSUMS)? {
        None => result.notes.push(format!("there is no {CHECKSUMS}; digests were not checked")),
        Some(text) => {
            for line in text.lines().filter(|line| !line.is_empty()) {
                match parse_sum(line) {
                    Some((digest, name)) => {
                        if expected.insert(name.to_owned(), digest.to_ascii_lowercase()).is_some() {
                            result.problem(CHECKSUMS, format!("lists {name} twice"));
                        }
                    }
                    None => result.problem(CHECKSUMS, format!("has a line that is no checksum: {line:.80}")),
                }
            }
            for name in unlisted(dir, &expected)? {
                result.problem(&name, format!("is not in {CHECKSUMS}"));
            }
        }
    }
    if let Some(text) = read(MANIFEST)? {
        check_manifest(&text, &mut expected, result);
    }
    Ok(expected)
}

/// Digest and name of a line as `sha256sum` writes it, in text or binary mode; names must stay in the directory.
fn parse_sum(line: &str) -> Option<(&str, &str)> {
    let (digest, name) = line.split_at_checked(64)?;
    let name = name.strip_prefix("  ").or_else(|| name.strip_prefix(" *"))?;
    let plain = !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    (plain && digest.bytes().all(|b| b.is_ascii_hexdigit())).then_some((digest, name))
}

fn check_manifest(text: &str, expected: &mut BTreeMap<String, Hex>, result: &mut Verification) {
    let manifest: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(e) => return result.problem(MANIFEST, format!("is no JSON: {e}")),
    };
    let Some(files) = manifest.get("files").and_then(|f| f.as_object()) else {
        return result.problem(MANIFEST, "has no list of files");
    };
    for (name, entry) in files {
        let digest = entry.get("sha256").and_then(|d| d.as_str()).unwrap_or_default();
        let Some((digest, name)) = parse_sum(&format!("{digest}  {name}")).map(|(d, n)| (d.to_owned(), n.to_owned()))
        else {
            result.problem(MANIFEST, format!("has a bad entry for {name}"));
            continue;
        };
        match expected.get(&name) {
            Some(sum) if *sum != digest => result.problem(&name, format!("{MANIFEST} and {CHECKSUMS} disagree")),
            Some(_) => {}
            None => {
                expected.insert(name, digest);
            }
        }
    }
}

/// Files below `dir` that the checksums don't list.
fn unlisted(dir: &Path, listed: &BTreeMap<String, Hex>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(prefix) = pending.pop() {
        let at = dir.join(&prefix);
        for entry in fs::read_dir(&at).map_err(Error::io("list", &at))? {
            let entry = entry.map_err(Error::io("list", &at))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(format!("{name}/"));
            } else if name != CHECKSUMS && !listed.contains_key(&name) {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

fn check_digests(
    dir: &Path,
    expected: &BTreeMap<String, Hex>,
    jobs: usize,
    cancel: &AtomicBool,
    progress: &dyn Progress,
    result: &mut Verification,
) -> Result<()> {
    let mut files: Vec<(u64, &String, &Hex)> = Vec::new();
    for (name, digest) in expected {
        match fs::metadata(dir.join(name)) {
            Ok(meta) => files.push((meta.len(), name, digest)),
            Err(_) => result.problem(name, "is missing"),
        }
    }
    // The largest first: each is one chain, and the longest should not start last.
    files.sort_by(|a, b| b.cmp(a));
    progress.start(&files.iter().map(|(len, name, _)| ((*name).clone(), *len)).collect::<Vec<_>>());
    let next = AtomicUsize::new(0);
    let wrong: Mutex<Result<Vec<&String>>> = Mutex::new(Ok(Vec::new()));
    let work = || {
        while let Some((part, (_, name, digest))) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, files.get(i)?)))
        {
            let outcome = digest_file(&dir.join(name), |bytes| {
                progress.advance(part, bytes as u64);
                !cancel.load(Ordering::Relaxed)
            });
            progress.finish(part);
            let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
            match (outcome, &mut *wrong) {
                (Ok(found), Ok(list)) if found != **digest => list.push(name),
                (Err(e), slot @ Ok(_)) => *slot = Err(e),
                _ => {}
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.max(1) {
            scope.spawn(work);
        }
        work();
    });
    let mut wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    wrong.sort();
    for name in wrong {
        result.problem(name, "its SHA-256 is not the listed one: the file was changed or damaged");
    }
    result.digests = files.len();
    result.bytes = files.iter().map(|(len, ..)| len).sum();
    Ok(())
}

fn digest_file(path: &Path, mut step: impl FnMut(usize) -> bool) -> Result<Hex> {
    let file = Mapping::open(path)?;
    let mut hasher = Sha256::new();
    for chunk in file.bytes().chunks(STEP) {
        hasher.update(chunk);
        if !step(chunk.len()) {
            return Err(Error::Interrupted { kept: None, finished: 0, shards: 0 });
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// The rules of the format and of a sharded model, on every weight file in `dir`.
fn lint(dir: &Path, result: &mut Verification) -> Result<()> {
    let index_path = dir.join(INDEX_FILE);
    let index = if index_path.exists() {
        match ShardIndex::read(&index_path) {
            Ok(index) => Some(index),
            Err(e) => {
                result.problem(INDEX_FILE, e.to_string());
                None
            }
        }
    } else {
        None
    };
    let single = dir.join(SINGLE_FILE).exists();
    let mut names: Vec<String> = index.iter().flat_map(|i| i.files()).map(str::to_owned).collect();
    if single {
        names.push(SINGLE_FILE.to_owned());
    }
    if single && index.is_some() {
        result.problem(SINGLE_FILE, format!("lies beside {INDEX_FILE}; loaders disagree on which one counts"));
    }
    if names.is_empty() {
        result.notes.push("there are no safetensors weights".to_owned());
    }
    for stale in stale_shards(dir, &names)? {
        result.problem(&stale, "belongs to no index; loaders that read every shard would mix it in");
    }
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut total = (0u64, 0u64);
    for name in names.iter().collect::<BTreeSet<_>>() {
        let Some(header) = lint_file(&dir.join(name), name, result) else { continue };
        for TensorInfo { name: tensor, shape, start, end, .. } in header.tensors {
            total = (total.0 + (end - start) as u64, total.1 + shape.iter().product::<usize>() as u64);
            if let Some(index) = index.as_ref().filter(|_| !single)
                && index.weight_map.get(&tensor) != Some(name)
            {
                result.problem(INDEX_FILE, format!("does not say that {tensor} is in {name}"));
            }
            if let Some(other) = seen.insert(tensor.clone(), name.clone()) {
                result.problem(name, format!("holds {tensor}, which {other} holds too"));
            }
        }
    }
    result.tensors = seen.len();
    if let Some(index) = &index {
        for (tensor, file) in index.weight_map.iter().filter(|(tensor, _)| !seen.contains_key(*tensor)) {
            result.problem(INDEX_FILE, format!("says that {tensor} is in {file}, which lacks it"));
        }
        for (key, given, found) in
            [("total_size", index.total_size, total.0), ("total_parameters", index.total_parameters, total.1)]
        {
            if given.is_some_and(|given| given != found) {
                result.problem(INDEX_FILE, format!("{key} is {}, the shards have {found}", given.unwrap_or(0)));
            }
        }
    }
    Ok(())
}

fn lint_file(path: &Path, name: &str, result: &mut Verification) -> Option<Header> {
    let header = match Mapping::open(path).map(|file| Header::parse(file.bytes())) {
        Ok(Ok(header)) => header,
        Ok(Err(e)) => {
            result.problem(name, e.to_string());
            return None;
        }
        Err(e) => {
            result.problem(name, e.to_string());
            return None;
        }
    };
    for line in &header.lint {
        result.problem(name, line.clone());
    }
    if header.metadata.get("format").map(String::as_str) != Some("pt") {
        result.notes.push(format!("{name} lacks the metadata format=pt, without which old transformers refuse it"));
    }
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_checksums_as_sha256sum_writes_them_and_nothing_else() {
        let digest = "0".repeat(64);
        assert_eq!(parse_sum(&format!("{digest}  a/b.txt")), Some((digest.as_str(), "a/b.txt")));
        assert_eq!(parse_sum(&format!("{digest} *b.txt")).map(|(_, n)| n), Some("b.txt"));
        for name in ["../x", "/etc/passwd", "", "a/../../x", "."] {
            assert_eq!(parse_sum(&format!("{digest}  {name}")), None, "{name}");
        }
        assert_eq!(parse_sum("xyz"), None);
        assert_eq!(parse_sum(&format!("{}é  a", "0".repeat(63))), None);
    }
}
