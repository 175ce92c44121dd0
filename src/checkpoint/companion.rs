//! Companions: the files that travel beside the weights (tokenizer, templates, configs, code, licence), which of two
//! copies wins, and a lint for those that a loader would choke on. config.json is not one: the export rewrites it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::open::{open_regular, read_small, read_text};
use super::shard_index::resolve_member;
use crate::error::{Error, Result, escaped, shown};

/// Where a companion comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompanionSource {
    /// The base model's directory.
    Base,
    /// The adapter's directory.
    Adapter,
}

/// One file to copy beside the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// Its path in the output, relative; also its path in the source's directory.
    pub name: String,
    /// The file to copy.
    pub path: PathBuf,
    /// Whose file it is.
    pub source: CompanionSource,
}

/// Tokenizer and template files, which an adapter may bring its own copies of.
const TOKENIZER_FILES: [&str; 16] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Endings of files that a base model's companions have.
const ENDINGS: [&str; 7] = [".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".spm"];
/// Beginnings of the names of licence files.
const LICENCES: [&str; 6] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING", "COPYRIGHT"];
/// Files with those endings that speak of weights, of training or of another export.
const NEVER: [&str; 12] = [
    "config.json",
    "adapter_config.json",
    "additional_config.json",
    "args.json",
    "trainer_state.json",
    "training_args.json",
    "train_results.json",
    "all_results.json",
    "eval_results.json",
    "quantize_config.json",
    "qft-manifest.json",
    "qft-journal.json",
];
/// A directory of named chat templates that transformers reads.
pub(super) const TEMPLATE_DIR: &str = "additional_chat_templates";

/// The companions of a base and its adapters: the base's, with the tokenizer and template files of the last adapter
/// that has any winning over them. Sorted by name.
pub fn companions(base: &Path, adapters: &[&Path]) -> Result<Vec<Companion>> {
    let mut found: BTreeMap<String, Companion> = BTreeMap::new();
    for name in files_of(base)?.into_iter().filter(|name| travels(name)) {
        insert(&mut found, base, name, CompanionSource::Base)?;
    }
    for adapter in adapters {
        let own: Vec<String> = files_of(adapter)?.into_iter().filter(|n| is_tokenizer_file(n)).collect();
        // A template inside the adapter's tokenizer_config.json loses to a .jinja file of the base, so that must go.
        if template_inside(adapter) && !own.iter().any(|n| n.starts_with("chat_template")) {
            found.retain(|name, _| !name.starts_with("chat_template") && !name.starts_with(TEMPLATE_DIR));
        }
        for name in own {
            insert(&mut found, adapter, name, CompanionSource::Adapter)?;
        }
    }
    Ok(found.into_values().collect())
}

/// The files of the tokenizer and the templates in `dir`. Sorted by name.
pub fn tokenizer_files(dir: &Path) -> Result<Vec<Companion>> {
    let mut found = BTreeMap::new();
    for name in files_of(dir)?.into_iter().filter(|n| is_tokenizer_file(n)) {
        insert(&mut found, dir, name, CompanionSource::Base)?;
    }
    if found.is_empty() {
        return Err(Error::refused(
            format!("{} has no tokenizer", shown(dir)),
            "name the directory of the original model",
        ));
    }
    Ok(found.into_values().collect())
}

fn is_tokenizer_file(name: &str) -> bool {
    TOKENIZER_FILES.contains(&name) || name.starts_with(TEMPLATE_DIR)
}

fn insert(found: &mut BTreeMap<String, Companion>, dir: &Path, name: String, source: CompanionSource) -> Result<()> {
    if name.contains(|c: char| c.is_control() || c == '\\') {
        let problem = format!("the name {} can't be listed in checksums", escaped(&name));
        return Err(Error::malformed(dir, problem, "rename the file"));
    }
    let path = resolve_member(dir, &name)?;
    open_regular(&path)?;
    found.insert(name.clone(), Companion { name, path, source });
    Ok(())
}

/// Whether a file is a companion by its name's beginning or ending.
pub(super) fn has_companion_name(name: &str) -> bool {
    let licence = LICENCES.iter().any(|prefix| name.to_ascii_uppercase().starts_with(prefix));
    licence || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn travels(name: &str) -> bool {
    has_companion_name(name) && !NEVER.contains(&name) && !name.ends_with(".index.json") && !name.starts_with('.')
}

/// Names of all that is no directory in `dir`, and in its directory of chat templates, sorted.
fn files_of(dir: &Path) -> Result<Vec<String>> {
    let list = |dir: &Path, prefix: &str| -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let entry = entry.map_err(Error::io("list", dir))?;
            if !entry.path().is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(format!("{prefix}{name}"));
            }
        }
        names.sort();
        Ok(names)
    };
    let mut names = list(dir, "")?;
    let templates = dir.join(TEMPLATE_DIR);
    if templates.is_dir() {
        names.extend(list(&templates, &format!("{TEMPLATE_DIR}/"))?.into_iter().filter(|n| n.ends_with(".jinja")));
    }
    Ok(names)
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_str(&read_text(path).ok()?).ok()
}

/// Whether the file is JSON, without building its value: a tokenizer.json may have 10 MB.
fn is_json(path: &Path) -> bool {
    read_small(path).is_ok_and(|text| serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok())
}

fn template_inside(dir: &Path) -> bool {
    json(&dir.join("tokenizer_config.json")).is_some_and(|config| config.get("chat_template").is_some())
}

/// Warnings about companions that transformers or vLLM would choke on, each with what will fail.
pub fn lint_companions(companions: &[Companion]) -> Vec<String> {
    type Lint = fn(&Value) -> Vec<String>;
    const LINTS: [(&str, Lint); 2] =
        [("tokenizer_config.json", lint_tokenizer), ("generation_config.json", lint_generation)];
    let mut warnings = Vec::new();
    for companion in companions.iter().filter(|c| c.name.ends_with(".json")) {
        if !is_json(&companion.path) {
            warnings.push(format!("{} is no valid JSON; loading it will fail", escaped(&companion.name)));
        }
        for (_, lint) in LINTS.iter().filter(|(file, _)| *file == companion.name) {
            let found = json(&companion.path).map(|value| lint(&value)).unwrap_or_default();
            warnings.extend(found.into_iter().map(|w| format!("{}: {w}", companion.name)));
        }
    }
    let has = |name: &str| companions.iter().any(|c| c.name == name);
    let any_tokenizer = ["tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "vocab.txt", "spiece.model"];
    if !any_tokenizer.iter().any(|name| has(name)) {
        warnings.push("no tokenizer beside the base or the adapter; serving the release will need one".to_owned());
    }
    warnings
}

fn lint_tokenizer(config: &Value) -> Vec<String> {
    let list = config.get("extra_special_tokens").is_some_and(Value::is_array);
    let problem = "extra_special_tokens is a list; transformers 4 and vLLM fail to load it \
                   (AttributeError: 'list' object has no attribute 'keys'): make it an object, or move the tokens to \
                   additional_special_tokens";
    if list { vec![problem.to_owned()] } else { Vec::new() }
}

/// Sampling settings, each with the value at which it has no effect, NaN if there is none (transformers'
/// `GenerationConfig.validate`).
const SAMPLING: [(&str, f64); 8] = [
    ("temperature", 1.0),
    ("top_p", 1.0),
    ("top_k", 50.0),
    ("min_p", f64::NAN),
    ("typical_p", 1.0),
    ("top_h", f64::NAN),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
];

fn lint_generation(config: &Value) -> Vec<String> {
    if config.get("do_sample").and_then(Value::as_bool).unwrap_or(false) {
        return Vec::new();
    }
    let set = SAMPLING.iter().filter(|(key, neutral)| {
        config.get(*key).and_then(Value::as_f64).is_some_and(|v| (v - neutral).abs() > f64::EPSILON || neutral.is_nan())
    });
    set.map(|(key, _)| {
        format!("{key} is set while do_sample is off; save_pretrained on the loaded model will refuse: drop it or set do_sample")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn names(base: &tempfile::TempDir, adapter: Option<&tempfile::TempDir>) -> Vec<(String, CompanionSource)> {
        let adapters: Vec<&Path> = adapter.iter().map(|a| a.path()).collect();
        companions(base.path(), &adapters).unwrap().into_iter().map(|c| (c.name, c.source)).collect()
    }

    #[test]
    fn takes_what_a_loader_needs_and_no_weights() {
        let base = dir(&[
            ("config.json", "{}"),
            ("model.safetensors", ""),
            ("model.safetensors.index.json", "{}"),
            ("pytorch_model.bin", ""),
            ("README.md", ""),
            ("tokenizer.json", "{}"),
            ("LICENSE", ""),
            ("modeling_x.py", ""),
            ("merges.txt", ""),
            (".gitattributes", ""),
            ("additional_chat_templates/tool.jinja", ""),
        ]);
        let found: Vec<String> = names(&base, None).into_iter().map(|(name, _)| name).collect();
        let expected =
            ["LICENSE", "additional_chat_templates/tool.jinja", "merges.txt", "modeling_x.py", "tokenizer.json"];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_adapters_tokenizer_and_template_win() {
        let base = dir(&[("tokenizer.json", "b"), ("chat_template.jinja", "b"), ("vocab.json", "{}")]);
        let adapter = dir(&[
            ("tokenizer.json", "a"),
            ("tokenizer_config.json", r#"{"chat_template":"x"}"#),
            ("trainer_state.json", "{}"),
        ]);
        let expected = [
            ("tokenizer.json".to_owned(), CompanionSource::Adapter),
            ("tokenizer_config.json".to_owned(), CompanionSource::Adapter),
            ("vocab.json".to_owned(), CompanionSource::Base),
        ];
        assert_eq!(names(&base, Some(&adapter)), expected, "the base's .jinja would hide the adapter's template");
    }

    #[test]
    fn warns_of_what_will_fail() {
        let base = dir(&[
            ("tokenizer_config.json", r#"{"extra_special_tokens":["<x>"]}"#),
            ("generation_config.json", r#"{"do_sample":false,"temperature":0.7,"top_p":1.0}"#),
            ("vocab.json", "{"),
        ]);
        let warnings = lint_companions(&companions(base.path(), &[]).unwrap()).join("\n");
        for part in ["extra_special_tokens is a list", "temperature is set", "vocab.json is no valid JSON"] {
            assert!(warnings.contains(part), "{warnings}");
        }
        assert!(!warnings.contains("top_p"), "{warnings}");
    }
}
