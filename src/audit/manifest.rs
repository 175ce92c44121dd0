//! The audit of the manifest: every entry is made again from base, adapters and the files that are there, and compared.
//! Facts that the files don't have, such as the source of a base, are compared as far as possible, or named.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::Inputs;
use super::gguf::GgufFound;
use crate::adapter::{ADAPTER_CONFIG, Adapter};
use crate::checkpoint::Checkpoint;
use crate::digest::{Hasher, Hex, sha256};
use crate::error::{Error, Result, escaped};
use crate::export::{Described, Digests, OutputQuality, Provenance, Run, described};
use crate::files::read_small;
use crate::ggml::Quality;
use crate::gguf::GgufModel;
use crate::manifest::claims::Claims;
use crate::manifest::{CHECKSUMS, EncodedFile, EncodedForm, MANIFEST, Named, Options, QualitySums};
use crate::stream::files_of_model;

/// The options of the release's manifest, by what the audit takes them for.
pub(super) fn expected_options(claims: &Claims, inputs: &Inputs<'_>) -> Options {
    let Inputs { dtype, overflow, tokenizer, .. } = *inputs;
    Options { max_shard: claims.max_shard(), dtype, overflow, tokenizer }
}

/// Says what is wrong with the manifest's options, which all else of the audit follows.
pub(super) fn problem_of_options(claims: &Claims, expected: Options) -> Option<String> {
    match claims.document().get("options") {
        None => Some("lacks options".to_owned()),
        Some(found) => difference("options", &json!(expected), found),
    }
}

/// Where the base comes from, by the manifest.
pub(super) fn claimed_provenance(claims: &Claims) -> Provenance {
    Provenance { repo: claims.repo().map(str::to_owned), revision: claims.revision().map(str::to_owned) }
}

/// Makes the manifest of the release in `dir` again; gives the first entry in which `claims` differ, and what nothing
/// tells.
pub(super) fn compare_manifest(
    dir: &Path,
    claims: &Claims,
    of: &Described<'_>,
    options: Options,
    models: &[(GgufModel, GgufFound)],
    how: &Run<'_>,
) -> Result<(Option<String>, Vec<String>)> {
    let mut unchecked = Vec::new();
    let mut digests = Digests {
        files: files(dir, claims)?,
        base: BTreeMap::new(),
        base_config: of.base.config.as_ref().map(|config| sha256(config.text().as_bytes())),
        adapters: of.adapters.iter().map(digest_adapter).collect::<Result<_>>()?,
    };
    let provenance = match provenance(of, claims, &mut unchecked) {
        Ok(provenance) => provenance,
        Err(problem) => return Ok((Some(problem), unchecked)),
    };
    if let Some((model, _)) = models.iter().find(|(_, found)| found.contradicts) {
        let repo = &claims.document()["base"]["repo"];
        let file = model.files.first().map(|file| file.name()).unwrap_or_default();
        return Ok((Some(format!("says that base.repo is {repo}, and {file} has another value")), unchecked));
    }
    digests.base = digest_tensors(of.base, how)?;
    let of = Described { provenance: &provenance, ..*of };
    let mut expected = described(&of, options, &digests);
    if let Some(version) = claims.version().filter(|version| *version != expected.qft && is_version(version)) {
        unchecked
            .push(format!("qft: version {version} made it according to {MANIFEST}, and this is \"{}\"", expected.qft));
        version.clone_into(&mut expected.qft);
    }
    if !models.is_empty() {
        let (files, sums) = describe_gguf(models, claims);
        (expected.gguf, expected.gguf_quality) = (Some(files), Some(sums));
    }
    Ok((members("", &json!(expected), claims.document()), unchecked))
}

/// Size and digest of every file that is there, as `verify` has compared them.
fn files(dir: &Path, claims: &Claims) -> Result<BTreeMap<String, (u64, Hex)>> {
    let names = files_of_model(dir)?.into_iter().filter(|name| ![CHECKSUMS, MANIFEST].contains(&name.as_str()));
    let entry = |name: String| {
        let path = dir.join(&name);
        let size = path.metadata().map_err(Error::io("look at", &path))?.len();
        let digest = claims.sha256(&name).unwrap_or_default().to_owned();
        Ok((name, (size, digest)))
    };
    names.map(entry).collect()
}

fn digest_adapter(adapter: &Adapter) -> Result<(Hex, Hex)> {
    Ok((sha256(&read_small(&adapter.dir.join(ADAPTER_CONFIG))?), sha256(adapter.file.bytes())))
}

/// BLAKE3 of every tensor of `base`, by name.
fn digest_tensors(base: &Checkpoint, how: &Run<'_>) -> Result<BTreeMap<String, Hex>> {
    how.progress.start(&[("digest of the base".to_owned(), base.tensor_bytes())]);
    let tensors: Vec<_> = base.tensors.iter().collect();
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some((name, tensor)) = tensors.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut hasher = Hasher::blake3();
            for chunk in tensor.bytes().chunks(8 << 20) {
                if how.cancel.load(Ordering::Relaxed) {
                    return;
                }
                hasher.update(chunk);
                how.progress.advance(0, chunk.len() as u64);
            }
            digests.lock().unwrap_or_else(PoisonError::into_inner).insert((*name).clone(), hasher.finish());
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..how.jobs {
            scope.spawn(work);
        }
        work();
    });
    how.progress.finish(0);
    let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
    if digests.len() < tensors.len() {
        return Err(Error::Interrupted { kept: None, finished: 0, shards: 0 });
    }
    Ok(digests)
}

/// What the manifest should say of the GGUF files: of each its tensors, and the sums over them. The sums are taken over the
/// figures that it gives itself, which are held against those of the audit.
fn describe_gguf(models: &[(GgufModel, GgufFound)], claims: &Claims) -> (Named<EncodedFile>, Vec<QualitySums>) {
    let mut files = Vec::new();
    let mut outputs = Vec::new();
    for (model, GgufFound { mixture, quality, .. }) in models {
        let Some(mixture) = mixture else { continue };
        let mut given: BTreeMap<String, Quality> = BTreeMap::new();
        for file in &model.files {
            let name = file.name();
            let mut tensors = Vec::new();
            for info in file.tensors() {
                let quality = quality.get(&info.name).copied();
                tensors.push((info.name.clone(), EncodedForm { kind: info.kind.name().to_owned(), quality }));
                given.extend(claims.quality(&name, &info.name).map(|quality| (info.name.clone(), quality)));
            }
            files.push((name, EncodedFile { mixture: mixture.name().to_owned(), tensors: Named(tensors) }));
        }
        outputs.push(OutputQuality::of_model(model, *mixture, &given));
    }
    // They stand in the order in which they were asked for.
    outputs.sort_by_key(|output| claims.place_of_sums(&output.file).unwrap_or(usize::MAX));
    (Named(files), outputs.iter().map(OutputQuality::sums).collect())
}

/// Whether it could be the version of a program.
fn is_version(text: &str) -> bool {
    let mut parts = text.splitn(3, '.');
    let number = |part: Option<&str>| part.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    number(parts.next()) && number(parts.next()) && text.len() < 40 && parts.next().is_some_and(|rest| !rest.is_empty())
}

/// Where the base comes from by the manifest, if what is known here bears it out; the error is the problem.
fn provenance(
    of: &Described<'_>,
    claims: &Claims,
    unchecked: &mut Vec<String>,
) -> std::result::Result<Provenance, String> {
    let claimed = claimed_provenance(claims);
    let Provenance { repo, revision } = of.provenance;
    let given = |given: &str, key: &str, claimed: &str| {
        let (given, claimed) = (escaped(given), escaped(claimed));
        Err(format!("says that base.{key} is {claimed}, and the given base has {given}"))
    };
    let names = || of.adapters.iter().filter_map(|adapter| adapter.config.base_model.as_deref());
    match (&claimed.repo, repo) {
        (Some(claimed), Some(repo)) if claimed != repo => return given(repo, "repo", claimed),
        (Some(claimed), None) if !names().any(|name| name == claimed) => {
            let dir = of.base.dir.canonicalize().unwrap_or_default();
            let mut places = names().map(last).chain([last(&dir.to_string_lossy())]);
            let other = names().find(|name| is_hub_id(name));
            if other.is_some() || !places.any(|place| place == last(claimed)) {
                return Err(format!(
                    "says that base.repo is {}, which neither the adapters nor the given base confirm: give the base by \
                     its Hub id if it is that one",
                    escaped(claimed)
                ));
            }
            unchecked.push(format!("base.repo: {} has this name, and was given as a directory", escaped(claimed)));
        }
        (None, Some(repo)) => unchecked.push(format!("base.repo: it is missing, and the given base is {repo}")),
        _ => {}
    }
    match (&claimed.revision, revision) {
        (Some(claimed), Some(revision)) if claimed != revision => return given(revision, "revision", claimed),
        (Some(claimed), None) if !of.adapters.iter().any(|a| a.config.revision.as_ref() == Some(claimed)) => {
            unchecked.push(format!("base.revision: {}; the base was given without a revision", escaped(claimed)));
        }
        _ => {}
    }
    Ok(claimed)
}

/// The last part of a path or an id, as ModelScope's cache spells dots, too.
fn last(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase().replace("___", ".")
}

fn is_hub_id(name: &str) -> bool {
    name.matches('/').count() == 1 && !name.starts_with(['.', '/', '~'])
}

/// Relative difference up to which figures of quality are the same: sums were taken in another order.
const CLOSE: f64 = 1e-5;
/// Most characters of a value that is shown.
const SHOWN: usize = 80;

/// The first place below `path` where `found` is not `expected`, in words.
fn difference(path: &str, expected: &Value, found: &Value) -> Option<String> {
    let show = |value: &Value| escaped(&value.to_string().chars().take(SHOWN).collect::<String>());
    match (expected, found) {
        (Value::Object(_), Value::Object(_)) => members(path, expected, found),
        (Value::Array(all), Value::Array(list)) if all.len() == list.len() => {
            let mut pairs = all.iter().zip(list).enumerate();
            pairs.find_map(|(i, (expected, found))| difference(&format!("{path}[{i}]"), expected, found))
        }
        (Value::Number(a), Value::Number(b)) if same(path, a.as_f64(), b.as_f64()) => None,
        _ if expected == found => None,
        _ => Some(format!("says that {} is {}, and it should be {}", escaped(path), show(found), show(expected))),
    }
}

/// The same, of the members of two objects.
fn members(path: &str, expected: &Value, found: &Value) -> Option<String> {
    let (Some(all), Some(there)) = (expected.as_object(), found.as_object()) else {
        return Some(format!("has no members where {} should be", if path.is_empty() { "all" } else { path }));
    };
    let at = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let differs = |(key, value): (&String, &Value)| match there.get(key) {
        Some(found) => difference(&at(key), value, found),
        None => Some(format!("lacks {}", escaped(&at(key)))),
    };
    let extra = || there.keys().find(|key| !all.contains_key(*key));
    all.iter().find_map(differs).or_else(|| Some(format!("has {}, which no export writes", escaped(&at(extra()?)))))
}

/// Whether two numbers are one: figures of quality need be close only.
fn same(path: &str, a: Option<f64>, b: Option<f64>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    a.to_bits() == b.to_bits() || path.starts_with("gguf") && (a - b).abs() <= CLOSE * a.abs().max(b.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_that_differs_is_named() {
        let expected = json!({"a": {"b": [1, 2.5]}, "gguf": {"q": 0.5}, "n": null});
        let of = |found: Value| members("", &expected, &found).unwrap_or_default();
        assert_eq!(of(json!({"n": null, "a": {"b": [1.0, 2.5]}, "gguf": {"q": 0.500_000_1}})), "");
        assert_eq!(of(json!({"a": {"b": [1, 2.500_000_1]}})), "says that a.b[1] is 2.5000001, and it should be 2.5");
        assert_eq!(of(json!({"a": {"b": [1]}})), "says that a.b is [1], and it should be [1,2.5]");
        assert_eq!(of(json!({"a": {}})), "lacks a.b");
        let wrong = json!({"a": {"b": [1, 2.5]}, "gguf": {"q": 0.501}, "n": null});
        assert_eq!(of(wrong), "says that gguf.q is 0.501, and it should be 0.5");
        let more = json!({"a": {"b": [1, 2.5]}, "gguf": {"q": 0.5}, "n": null, "x\u{1b}": 1});
        assert_eq!(of(more), "has x\\u{1b}, which no export writes");
        assert_eq!(of(json!([])), "has no members where all should be");
    }

    #[test]
    fn versions_are_told_from_other_words() {
        assert!(is_version("0.1.0") && is_version("1.12.3-rc.1"));
        assert!(!is_version("evil") && !is_version("1.2") && !is_version("1..2"));
    }
}
