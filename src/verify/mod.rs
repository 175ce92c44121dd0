//! Checking a release: every digest, a strict lint of its safetensors files, their index, and its GGUF files, and the
//! release rules of `rules`.
//! Recomputing its tensors is `audit`.
//!
//! ```no_run
//! use std::path::Path;
//!
//! let found = qft::verify::verify(Path::new("release"), &qft::export::Run::default())?;
//! for problem in &found.problems {
//!     println!("{}: {}", problem.file, problem.problem);
//! }
//! # Ok::<(), qft::Error>(())
//! ```

mod gguf;
mod loaders;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use crate::adapter::ADAPTER_CONFIG;
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE, SafetensorsFile, ShardIndex, TensorInfo, stale_shards};
use crate::digest::{Hex, digest_files};
use crate::error::{Error, Result, escaped};
use crate::files::read_text_if_there;
use crate::gguf::is_gguf;
use crate::manifest::claims::Claims;
use crate::manifest::{CHECKSUMS, MANIFEST};
use crate::stream::{Run, files_of_model};

/// A model's configuration.
const CONFIG: &str = "config.json";
/// Models below a directory that are named.
const MODELS: usize = 5;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, relative to the directory; `.` for the whole.
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
    /// What some loaders stumble over.
    pub warnings: Vec<Problem>,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
}

impl Verification {
    fn problem(&mut self, file: &str, problem: impl Into<String>) {
        self.problems.push(Problem { file: escaped(file), problem: escaped(&problem.into()) });
    }

    /// Makes a problem of `error`, which came of reading the release in `dir`; once, if it comes again.
    fn unreadable(&mut self, dir: &Path, error: &Error) {
        self.extend([Problem::of(dir, error)], []);
    }

    /// Adds what an audit found, but for problems that are known.
    pub fn extend(&mut self, problems: impl IntoIterator<Item = Problem>, notes: impl IntoIterator<Item = String>) {
        for problem in problems {
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
        self.notes.extend(notes);
    }
}

impl Problem {
    /// What is wrong by `error`, which came of reading the release in `dir`.
    pub(crate) fn of(dir: &Path, error: &Error) -> Self {
        let text = error.to_string();
        let (path, problem) = match error {
            Error::Malformed { path, problem, .. } => (path.as_path(), problem.as_str()),
            Error::Io { path, .. } => (path.as_path(), first_line(&text)),
            _ => (dir, first_line(&text)),
        };
        let file = path.strip_prefix(dir).unwrap_or(path).to_string_lossy();
        Self { file: escaped(if file.is_empty() { "." } else { &file }), problem: escaped(problem) }
    }
}

/// An error's text without its remedy.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Verifies the release in `dir`, or the one GGUF file that `dir` is. Of `how`, the threads, the stop from outside and the
/// progress are heeded. Problems are in the result.
///
/// # Errors
///
/// If `dir` can't be listed, and [`Error::Interrupted`].
pub fn verify(dir: &Path, how: &Run<'_>) -> Result<Verification> {
    let mut result = Verification::default();
    if is_gguf(dir)? {
        gguf::lint_lone(dir, &mut result);
        return Ok(result);
    }
    let expected = expected_digests(dir, &mut result)?;
    let files = present(dir, &expected, &mut result);
    let paths: Vec<(PathBuf, u64)> = files.iter().map(|(name, len)| (dir.join(name), *len)).collect();
    for ((name, len), found) in files.iter().zip(digest_files(&paths, how.jobs, how.cancel, how.progress)?) {
        match found {
            Ok(found) if found != expected[*name] => {
                result.problem(name, "its SHA-256 is not the listed one: the file was changed or damaged");
            }
            Ok(_) => {}
            Err(error) => {
                result.unreadable(dir, &error);
                continue;
            }
        }
        result.digests += 1;
        result.bytes += len;
    }
    if let Some(problem) = no_model(dir, &expected)? {
        result.problem(".", problem);
    }
    lint(dir, &mut result)?;
    loaders::hold(dir, &mut result)?;
    Ok(result)
}

type Listed = BTreeMap<String, Hex>;

/// A file that lists digests.
enum List {
    Absent,
    /// What is wrong with it is recorded.
    Broken,
    Of(Listed),
}

/// The digests that SHA256SUMS and the manifest give, which must agree. Either must list every other file.
fn expected_digests(dir: &Path, result: &mut Verification) -> Result<Listed> {
    let sums = read_list(dir, CHECKSUMS, parse_sums, result);
    let manifest = read_list(dir, MANIFEST, parse_manifest, result);
    match (&sums, &manifest) {
        (List::Absent, List::Absent) => {
            result.notes.push(format!("there is neither {CHECKSUMS} nor {MANIFEST} to compare digests with"));
        }
        (List::Absent, _) => result.problem(CHECKSUMS, format!("is missing, though {MANIFEST} exists")),
        _ => {}
    }
    let complete: Option<(&Listed, &[&str])> = match (&sums, &manifest) {
        (List::Of(sums), _) => Some((sums, &[CHECKSUMS])),
        (_, List::Of(files)) => Some((files, &[MANIFEST, CHECKSUMS])),
        _ => None,
    };
    if let Some((listed, lists)) = complete {
        for name in unlisted(dir, listed, lists)? {
            result.problem(&name, format!("is not in {}", lists[0]));
        }
    }
    let [mut expected, manifest] = [sums, manifest].map(|list| if let List::Of(l) = list { l } else { Listed::new() });
    for (name, digest) in manifest {
        if *expected.entry(name.clone()).or_insert_with(|| digest.clone()) != digest {
            result.problem(&name, format!("{MANIFEST} and {CHECKSUMS} disagree"));
        }
    }
    Ok(expected)
}

type Parse = fn(&str, &mut Verification) -> List;

fn read_list(dir: &Path, name: &str, parse: Parse, result: &mut Verification) -> List {
    match read_text_if_there(&dir.join(name)) {
        Ok(None) => List::Absent,
        Ok(Some(text)) => parse(&text, result),
        Err(error) => {
            result.unreadable(dir, &error);
            List::Broken
        }
    }
}

fn parse_sums(text: &str, result: &mut Verification) -> List {
    let mut listed = Listed::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        match parse_sum(line) {
            Some((digest, name)) => {
                if listed.insert(name.to_owned(), digest.to_ascii_lowercase()).is_some() {
                    result.problem(CHECKSUMS, format!("lists {name} twice"));
                }
            }
            None => result.problem(CHECKSUMS, format!("has a line that is not a checksum: {line:.80}")),
        }
    }
    List::Of(listed)
}

/// Digest and name of a line as `sha256sum` writes it, in text or binary mode; names must stay in the directory.
fn parse_sum(line: &str) -> Option<(&str, &str)> {
    let (digest, name) = line.split_at_checked(64)?;
    let name = name.strip_prefix("  ").or_else(|| name.strip_prefix(" *"))?;
    let plain = !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    (plain && digest.bytes().all(|b| b.is_ascii_hexdigit())).then_some((digest, name))
}

fn parse_manifest(text: &str, result: &mut Verification) -> List {
    let claims = match Claims::parse(text) {
        Ok(claims) => claims,
        Err(e) => {
            result.problem(MANIFEST, format!("is not JSON: {e}"));
            return List::Broken;
        }
    };
    let Some(files) = claims.files() else {
        result.problem(MANIFEST, "has no list of files");
        return List::Broken;
    };
    let mut listed = Listed::new();
    for (name, digest) in files {
        match parse_sum(&format!("{digest}  {name}")) {
            Some((digest, name)) => drop(listed.insert(name.to_owned(), digest.to_ascii_lowercase())),
            None => result.problem(MANIFEST, format!("has a bad entry for {name}")),
        }
    }
    List::Of(listed)
}

/// Files of `dir` that are neither listed nor one of `lists`.
fn unlisted(dir: &Path, listed: &Listed, lists: &[&str]) -> Result<Vec<String>> {
    let names = files_of_model(dir)?.into_iter();
    Ok(names.filter(|name| !lists.contains(&name.as_str()) && !listed.contains_key(name)).collect())
}

/// Why what is in `dir` is no release, if it is none. What lies below it is a part of one only where a list says so.
fn no_model(dir: &Path, listed: &Listed) -> Result<Option<String>> {
    let files = files_of_model(dir)?;
    let is_weights =
        |name: &String| [".safetensors", ".gguf", ".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end));
    let (here, below): (Vec<&String>, Vec<&String>) = files
        .iter()
        .filter(|name| is_weights(name))
        .partition(|name| !name.contains('/') || listed.contains_key(*name));
    if !here.is_empty() {
        let is_adapter = files.iter().any(|name| name == ADAPTER_CONFIG) && !files.iter().any(|name| name == CONFIG);
        return Ok(
            is_adapter.then(|| "holds an adapter, which is not a release: `qft export ⟦adapter⟧` merges it".to_owned())
        );
    }
    let mut models: Vec<&str> = below.iter().filter_map(|name| Some(name.rsplit_once('/')?.0)).collect();
    models.dedup();
    let some: Vec<&str> = models.iter().take(MODELS).copied().collect();
    Ok(Some(match (some.is_empty(), models.len() - some.len()) {
        (true, _) => "holds no weights of a model".to_owned(),
        (_, 0) => format!("is not a release, and holds several: verify each separately ({})", some.join(", ")),
        (_, more) => {
            format!("is not a release, and holds several: verify each separately ({} and {more} more)", some.join(", "))
        }
    }))
}

/// The listed files that are there, with their sizes.
fn present<'a>(dir: &Path, expected: &'a Listed, result: &mut Verification) -> Vec<(&'a String, u64)> {
    let mut files = Vec::new();
    for name in expected.keys() {
        let path = dir.join(name);
        match fs::metadata(&path) {
            Ok(meta) => files.push((name, meta.len())),
            Err(e) if e.kind() == ErrorKind::NotFound => result.problem(name, "is missing"),
            Err(e) => result.unreadable(dir, &Error::io("look at", &path)(e)),
        }
    }
    files
}

/// What the headers of all weight files hold.
#[derive(Default)]
struct Weights {
    /// Each tensor's file.
    file_of: BTreeMap<String, String>,
    bytes: u64,
    parameters: u64,
}

/// The rules of the format and of a sharded model, on every weight file in `dir`.
fn lint(dir: &Path, result: &mut Verification) -> Result<()> {
    let index = read_index(dir, result);
    let single = dir.join(SINGLE_FILE).exists();
    let mut names: BTreeSet<String> = index.iter().flat_map(ShardIndex::files).map(str::to_owned).collect();
    if single {
        names.insert(SINGLE_FILE.to_owned());
    }
    if single && index.is_some() {
        result.problem(SINGLE_FILE, format!("lies beside {INDEX_FILE}; loaders disagree on which one counts"));
    }
    let has_gguf = gguf::lint_all(dir, result)?;
    if names.is_empty() && !has_gguf {
        result.notes.push(format!("there is neither {SINGLE_FILE} nor an index of shards"));
    }
    for stale in stale_shards(dir, &names.iter().cloned().collect::<Vec<_>>())? {
        result.problem(&stale, "belongs to no index; loaders that read every shard would mix it in");
    }
    let mut weights = Weights::default();
    for name in &names {
        lint_file(dir, name, &mut weights, result);
    }
    result.tensors += weights.file_of.len();
    if let Some(index) = &index {
        lint_index(index, &weights, single, result);
    }
    Ok(())
}

fn read_index(dir: &Path, result: &mut Verification) -> Option<ShardIndex> {
    let path = dir.join(INDEX_FILE);
    if !path.exists() {
        return None;
    }
    ShardIndex::read(&path).map_err(|error| result.unreadable(dir, &error)).ok()
}

fn lint_file(dir: &Path, name: &str, weights: &mut Weights, result: &mut Verification) {
    let file = match SafetensorsFile::open(&dir.join(name)) {
        Ok(file) => file,
        Err(error) => return result.unreadable(dir, &error),
    };
    let header = file.header();
    for line in &header.lint {
        result.problem(name, line.clone());
    }
    if header.metadata.get("format").map(String::as_str) != Some("pt") {
        result.notes.push(format!("{name} lacks the metadata format=pt, which old versions of transformers require"));
    }
    for TensorInfo { name: tensor, shape, start, end, .. } in &header.tensors {
        weights.bytes += (end - start) as u64;
        weights.parameters += shape.iter().product::<usize>() as u64;
        if let Some(other) = weights.file_of.insert(tensor.clone(), name.to_owned()) {
            result.problem(name, format!("holds {tensor}, which {other} holds too"));
        }
    }
}

/// Holds the index against the headers, both ways.
fn lint_index(index: &ShardIndex, weights: &Weights, single: bool, result: &mut Verification) {
    for (tensor, file) in weights.file_of.iter().filter(|_| !single) {
        if index.weight_map.get(tensor) != Some(file) {
            result.problem(INDEX_FILE, format!("does not say that {tensor} is in {file}"));
        }
    }
    for (tensor, file) in index.weight_map.iter().filter(|(tensor, _)| !weights.file_of.contains_key(*tensor)) {
        result.problem(INDEX_FILE, format!("says that {tensor} is in {file}, which lacks it"));
    }
    let totals = [
        ("total_size", index.total_size, weights.bytes),
        ("total_parameters", index.total_parameters, weights.parameters),
    ];
    for (key, given, found) in totals {
        if let Some(given) = given.filter(|given| *given != found) {
            result.problem(INDEX_FILE, format!("{key} is {given}, the shards have {found}"));
        }
    }
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

    #[test]
    fn an_error_becomes_a_problem_once_and_without_its_remedy() {
        let mut result = Verification::default();
        let error = Error::malformed(Path::new("out/a/b"), "is\u{1b} bad", "none");
        result.unreadable(Path::new("out"), &error);
        result.unreadable(Path::new("out"), &error);
        result.unreadable(Path::new("out"), &Error::malformed(Path::new("out"), "is empty", "none"));
        result.unreadable(Path::new("out"), &Error::invalid("no", "none"));
        let lines: Vec<String> = result.problems.iter().map(|p| format!("{}: {}", p.file, p.problem)).collect();
        assert_eq!(lines, ["a/b: is\\u{1b} bad", ".: is empty", ".: no"]);
    }
}
