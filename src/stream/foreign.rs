//! What of a directory is no part of the model in it: what would be lost if another took its place.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::publish::{DISPLACED, RECORD};
use super::staging::JOURNAL;
use crate::error::{Error, Result, shown};
use crate::files::read_text_if_there;

/// Whether what lies at a destination may be exchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Nothing may be there.
    #[default]
    No,
    /// A model may be, and nothing else.
    Model,
    /// A model with whatever lies beside it.
    All,
}

impl Overwrite {
    /// Whether anything may be exchanged.
    pub fn is_allowed(self) -> bool {
        self != Self::No
    }
}

/// The list of what a release holds, of which it is part itself.
const CHECKSUMS: &str = "SHA256SUMS";
/// Files of a model in the Hub's form, where no list says what belongs to it. Model cards and licences are the user's own text.
const NAMES: [&str; 21] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "qft-manifest.json",
    ".gitattributes",
];
/// Endings of its weights.
const ENDINGS: [&str; 4] = [".safetensors", ".safetensors.index.json", ".gguf", ".bin"];
/// What downloads and clones of the Hub leave: no loader reads it, and no export writes it.
const LEFT: [&str; 3] = [".cache/", ".git/", ".gitattributes"];

/// Endings of the hidden names that qft gives to what is being written, exchanged or deleted.
const HIDDEN: [&str; 3] = [".qft-staging", ".qft-old", ".qft-gone"];

/// The files below `dir`, by their path from there in order, that are no part of the model in it.
pub(super) fn foreign(dir: &Path) -> Result<BTreeSet<String>> {
    let list = read_text_if_there(&dir.join(CHECKSUMS))?;
    let listed: Option<BTreeSet<&str>> =
        list.as_deref().map(|text| text.lines().filter_map(|line| Some(line.split_once("  ")?.1)).collect());
    let belongs = |name: &str| match &listed {
        Some(listed) => listed.contains(name) || name == CHECKSUMS,
        None => NAMES.contains(&name) || (!name.contains('/') && ENDINGS.iter().any(|ending| name.ends_with(ending))),
    };
    let mut found = files_below(dir)?;
    found.retain(|name| !belongs(name) && !name.starts_with(LEFT[0]));
    Ok(found)
}

/// The files of the model in `dir`, hidden ones too, but for what downloads and clones leave; no empty directory. One in
/// the making is refused, whatever it holds by now.
pub(crate) fn files_of_model(dir: &Path) -> Result<Vec<String>> {
    check_finished(dir)?;
    let left = |name: &str| LEFT.iter().any(|left| name.starts_with(left)) || dir.join(name).is_dir();
    Ok(files_below(dir)?.into_iter().filter(|name| !left(name)).collect())
}

/// Refuses a directory in which qft was interrupted.
pub(crate) fn check_finished(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let is_hidden = name.starts_with('.') && HIDDEN.iter().any(|ending| name.ends_with(ending));
    if is_hidden || [JOURNAL, RECORD, DISPLACED].iter().any(|name| dir.join(name).exists()) {
        return Err(Error::invalid(
            format!("{} remains from an interrupted qft, and is not a model", shown(dir)),
            "run its command again, with ⟦resume⟧; a training run with ⟦resume_from_checkpoint true⟧",
        ));
    }
    Ok(())
}

/// The files below `dir` by their path from there; an empty directory counts as one, and a link is what it is.
fn files_below(dir: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    walk(dir, "", &mut found)?;
    Ok(found)
}

fn walk(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(Error::io("look at", &entry.path()))?;
        let is_full = kind.is_dir() && fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_some());
        if is_full {
            walk(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever it holds: nobody may take it for a model.
    #[test]
    fn a_model_in_the_making_is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors"), "").unwrap();
        assert_eq!(files_of_model(dir.path()).unwrap(), ["model.safetensors"]);
        fs::write(dir.path().join(JOURNAL), "{}").unwrap();
        assert!(files_of_model(dir.path()).unwrap_err().to_string().contains("⟦resume"));
        for (name, is_model) in [(".a.qft-gone", false), (".a.qft-old", false), ("a.qft-old", true), (".a", true)] {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            assert_eq!(files_of_model(&dir).is_ok(), is_model, "{name}");
        }
    }

    #[test]
    fn a_list_says_what_belongs_and_else_the_names_do() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = || foreign(dir.path()).unwrap().into_iter().collect::<Vec<_>>();
        for name in ["config.json", "model-00001-of-00002.safetensors", ".cache/huggingface/x", "model-Q8_0.gguf"] {
            put(name, "");
        }
        assert_eq!(found(), [""; 0]);
        for name in ["README.md", "src/main.py", "eval/tokenizer.json", "eval/model.safetensors"] {
            put(name, "");
        }
        fs::create_dir(dir.path().join("empty")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let expected = ["README.md", "empty", "eval/model.safetensors", "eval/tokenizer.json", "link", "src/main.py"];
        assert_eq!(found(), expected);
        put("SHA256SUMS", "00  config.json\n00  README.md\n00  model-00001-of-00002.safetensors\n");
        assert!(!found().contains(&"README.md".to_owned()) && found().contains(&"model-Q8_0.gguf".to_owned()));
    }
}
