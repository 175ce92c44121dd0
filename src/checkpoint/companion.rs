//! Companions: the files that travel beside the weights (tokenizer, templates, configs, code, licence), whose tokenizer
//! wins, and what stays behind. config.json is not one: the export rewrites it. What loaders make of them: `rules`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::shard_index::resolve_member;
use crate::error::{Error, Result, escaped, shown};
use crate::files::{open_regular, read_text};

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

/// A file that does not travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name; that of a directory ends in a slash.
    pub name: String,
    /// Whose file it is.
    pub source: CompanionSource,
    /// Why it stays.
    pub why: &'static str,
}

/// Everything that lies beside the weights, and what becomes of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Companions {
    /// What travels, sorted by name.
    pub files: Vec<Companion>,
    /// What does not.
    pub left_out: Vec<LeftOut>,
}

/// Whose tokenizer a release has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerChoice {
    /// That of the last adapter that has one, else the base's.
    #[default]
    Auto,
    /// The base's.
    Base,
    /// The last adapter's.
    Adapter,
}

impl std::str::FromStr for TokenizerChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "base" => Ok(Self::Base),
            "adapter" => Ok(Self::Adapter),
            _ => Err("it is base, adapter or auto".to_owned()),
        }
    }
}

/// Files that hold a vocabulary: a directory without any has no tokenizer.
const VOCABULARIES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
];
/// What else belongs to a tokenizer. Such a file is nothing without its vocabulary: both come from one directory.
const TOKENIZER_PARTS: [&str; 4] =
    ["added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"];
/// Files that an adapter may bring its own copies of, one by one.
const REPLACEABLE: [&str; 5] = [
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
];
/// Files of other kinds that model classes open by name: Qwen2.5-Omni's voices, Qwen-Audio, Qwen-VL, sparse embeddings.
pub(super) const OPENED_BY_NAME: [&str; 4] = ["spk_dict.pt", "mel_filters.npz", "SimSun.ttf", "sparse_weights.pt"];
/// The list of sentence-transformers' modules, each of which may have a directory.
const MODULES: &str = "modules.json";
/// Most files of one such directory.
const MAX_MODULE_FILES: usize = 256;

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

/// The companions of a base and its adapters. A tokenizer comes whole from one directory, as `choice` says.
pub fn companions(base: &Path, adapters: &[&Path], choice: TokenizerChoice) -> Result<Companions> {
    let mut found: BTreeMap<String, Companion> = BTreeMap::new();
    let mut left_out = Vec::new();
    let mut leave = |name: &str, source, why| left_out.push(LeftOut { name: name.to_owned(), source, why });
    for name in files_of(base)? {
        match way_of(&name) {
            Way::Travels => insert(&mut found, base, name, CompanionSource::Base)?,
            Way::Stays(why) => leave(&name, CompanionSource::Base, why),
            Way::Silent => {}
        }
    }
    let folders = module_folders(base)?;
    for folder in &folders {
        for name in files_below(base, folder)? {
            insert(&mut found, base, name, CompanionSource::Base)?;
        }
    }
    for folder in directories_of(base)? {
        let named = folders.iter().any(|path| path.split('/').next() == Some(folder.as_str()));
        if !named && folder != TEMPLATE_DIR {
            leave(&format!("{folder}/"), CompanionSource::Base, "no file names this directory");
        }
    }
    let winner = tokenizer_of(adapters, choice)?;
    for adapter in adapters {
        let own = files_of(adapter)?;
        let wins = winner == Some(*adapter);
        if wins {
            let replaced: Vec<String> =
                found.keys().filter(|name| is_tokenizer(name) && !own.contains(name)).cloned().collect();
            for name in replaced {
                leave(&name, CompanionSource::Base, "the adapter's tokenizer replaces the base's");
                found.remove(&name);
            }
        }
        let has_template = own.iter().any(|name| name.starts_with("chat_template"));
        // A template inside the adapter's tokenizer_config.json loses to a .jinja file of the base, so that must go.
        if wins && template_inside(adapter) && !has_template {
            found.retain(|name, _| !name.starts_with("chat_template") && !name.starts_with(TEMPLATE_DIR));
        }
        for name in own {
            let replaces = REPLACEABLE.contains(&name.as_str()) || name.starts_with(TEMPLATE_DIR);
            if (is_tokenizer(&name) && wins) || (replaces && choice != TokenizerChoice::Base) {
                insert(&mut found, adapter, name, CompanionSource::Adapter)?;
            } else if is_tokenizer(&name) || replaces {
                let why = match choice {
                    TokenizerChoice::Base => "the base's tokenizer was requested",
                    _ if winner.is_none() => "the adapter has no vocabulary beside it",
                    _ => "another adapter's tokenizer is used",
                };
                leave(&name, CompanionSource::Adapter, why);
            }
        }
    }
    Ok(Companions { files: found.into_values().collect(), left_out })
}

/// The adapter whose tokenizer the release has; `None` for the base's.
fn tokenizer_of<'a>(adapters: &[&'a Path], choice: TokenizerChoice) -> Result<Option<&'a Path>> {
    if choice == TokenizerChoice::Base {
        return Ok(None);
    }
    for adapter in adapters.iter().rev() {
        if files_of(adapter)?.iter().any(|name| is_vocabulary(name)) {
            return Ok(Some(adapter));
        }
    }
    if choice == TokenizerChoice::Auto {
        return Ok(None);
    }
    let problem = "the adapter's tokenizer was requested, but no adapter has a vocabulary";
    Err(Error::not_found(
        problem,
        "give an adapter with its tokenizer files beside it; or, in an export, take the base's with ⟦tokenizer base⟧",
    ))
}

/// What becomes of a file of the base.
enum Way {
    Travels,
    Stays(&'static str),
    /// It needs no word: weights and config.json, which are written again, and what downloads leave.
    Silent,
}

fn way_of(name: &str) -> Way {
    let is_index = name.ends_with(".index.json");
    if name.starts_with('.') || name == "config.json" || name.ends_with(".safetensors") || is_index {
        return Way::Silent;
    }
    let ending = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if OPENED_BY_NAME.contains(&name) || (has_companion_name(name) && !NEVER.contains(&name)) {
        return Way::Travels;
    }
    Way::Stays(match name {
        "README.md" => "it describes the base",
        _ if NEVER.contains(&name) => "it is of another run",
        "SHA256SUMS" => "it lists other files",
        _ if ending(&[".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt"]) => {
            "weights in another form"
        }
        _ => "no loader is known to read it",
    })
}

/// The directories that modules.json names, as paths within `dir`.
pub(super) fn module_folders(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join(MODULES);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let list: Value = serde_json::from_str(&read_text(&path)?).unwrap_or_default();
    let paths = list.as_array().into_iter().flatten().filter_map(|module| module.get("path")?.as_str());
    let plain = |path: &&str| {
        !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\\'))
    };
    Ok(paths.filter(plain).map(str::to_owned).collect())
}

/// The files of `folder` in `dir`, at most three levels deep, as paths within `dir`.
fn files_below(dir: &Path, folder: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut pending = vec![(folder.to_owned(), 0)];
    while let Some((at, depth)) = pending.pop() {
        let path = dir.join(&at);
        if !path.is_dir() || depth > 3 {
            continue;
        }
        for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
            let entry = entry.map_err(Error::io("list", &path))?;
            let name = format!("{at}/{}", entry.file_name().to_string_lossy());
            // A link to a directory may lead back here.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push((name, depth + 1));
            } else {
                names.push(name);
            }
        }
        if names.len() > MAX_MODULE_FILES {
            let problem = format!("names {} with more than {MAX_MODULE_FILES} files", escaped(folder));
            return Err(Error::malformed(
                &dir.join(MODULES),
                problem,
                "move other files out of the directory, or correct modules.json",
            ));
        }
    }
    names.sort();
    Ok(names)
}

/// The files of the tokenizer and the templates in `dir`. Sorted by name.
pub fn tokenizer_files(dir: &Path) -> Result<Vec<Companion>> {
    let mut found = BTreeMap::new();
    let belongs =
        |name: &String| is_tokenizer(name) || REPLACEABLE.contains(&name.as_str()) || name.starts_with(TEMPLATE_DIR);
    for name in files_of(dir)?.into_iter().filter(belongs) {
        insert(&mut found, dir, name, CompanionSource::Base)?;
    }
    if found.is_empty() {
        return Err(Error::not_found(
            format!("{} has no tokenizer", shown(dir)),
            "name the directory of the original model",
        ));
    }
    Ok(found.into_values().collect())
}

fn is_vocabulary(name: &str) -> bool {
    VOCABULARIES.contains(&name) || name.ends_with(".tiktoken")
}

fn is_tokenizer(name: &str) -> bool {
    is_vocabulary(name) || TOKENIZER_PARTS.contains(&name)
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

/// Names of the directories in `dir`, sorted, but for those that downloads leave.
fn directories_of(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_str(&read_text(path).ok()?).ok()
}

fn template_inside(dir: &Path) -> bool {
    json(&dir.join("tokenizer_config.json")).is_some_and(|config| config.get("chat_template").is_some())
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
        let found = companions(base.path(), &adapters, TokenizerChoice::Auto).unwrap();
        found.files.into_iter().map(|c| (c.name, c.source)).collect()
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
        ];
        assert_eq!(names(&base, Some(&adapter)), expected, "the base's .jinja would hide the adapter's template");
    }

    #[test]
    fn a_tokenizer_comes_whole_from_one_directory() {
        let base = dir(&[("tokenizer.model", ""), ("special_tokens_map.json", "{}"), ("added_tokens.json", "{}")]);
        let adapter = dir(&[("tokenizer.json", "{}"), ("tokenizer_config.json", "{}")]);
        let of = |choice| companions(base.path(), &[adapter.path()], choice).unwrap();
        let names = |found: &Companions| found.files.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        let auto = of(TokenizerChoice::Auto);
        assert_eq!(names(&auto), ["tokenizer.json", "tokenizer_config.json"]);
        assert_eq!(auto.left_out.len(), 3, "{:?}", auto.left_out);
        let base_s = of(TokenizerChoice::Base);
        assert_eq!(names(&base_s), ["added_tokens.json", "special_tokens_map.json", "tokenizer.model"]);
        assert_eq!(base_s.left_out.len(), 2);
        fs::remove_file(adapter.path().join("tokenizer.json")).unwrap();
        assert_eq!(names(&of(TokenizerChoice::Auto)), names(&base_s), "a config without a vocabulary is no tokenizer");
        assert!(companions(base.path(), &[adapter.path()], TokenizerChoice::Adapter).is_err());
    }

    #[test]
    fn what_other_files_name_comes_along_and_what_stays_is_listed() {
        let modules = r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "../x"}, {"path": "2_Dense"}]"#;
        let base = dir(&[
            ("modules.json", modules),
            ("1_Pooling/config.json", "{}"),
            ("2_Dense/model.safetensors", "w"),
            ("spk_dict.pt", ""),
            ("pytorch_model.bin", ""),
            ("onnx/model.onnx", ""),
            ("README.md", ""),
            (".cache/x", ""),
        ]);
        let found = companions(base.path(), &[], TokenizerChoice::Auto).unwrap();
        let names: Vec<&str> = found.files.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["1_Pooling/config.json", "2_Dense/model.safetensors", "modules.json", "spk_dict.pt"]);
        let left: Vec<&str> = found.left_out.iter().map(|left| left.name.as_str()).collect();
        assert_eq!(left, ["README.md", "pytorch_model.bin", "onnx/"]);
    }
}
