//! What a file or a directory is that is not the weights that it should be, and what to do about it.

use std::path::{Path, PathBuf};

use super::hub::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH};
use super::shard_index::SINGLE_FILE;
use super::{BadHeader, SafetensorsFile};
use crate::error::{Error, escaped, quoted, shown};
use crate::spelling::edits;

/// Files that lie where a model's safetensors should, and what to do about them.
const OTHER: [(&str, &str); 6] = [
    ("pytorch_model.bin", "qft runs no pickle: save the model again with safe_serialization=True"),
    ("pytorch_model.bin.index.json", "qft runs no pickle: save the model again with safe_serialization=True"),
    ("tf_model.h5", "convert the TensorFlow weights to safetensors first"),
    ("flax_model.msgpack", "convert the Flax weights to safetensors first"),
    ("consolidated.safetensors", "these are Mistral's own weight names: use the Hugging Face files of the model"),
    (ADAPTER_WEIGHTS, "these are an adapter's weights without its adapter_config.json: save the adapter again, whole"),
];

/// What to do where a model has the files `names`, none of which is known to be its weights.
pub(super) fn remedy_for<'n>(names: &(impl Iterator<Item = &'n str> + Clone)) -> Option<String> {
    if let Some((_, remedy)) = OTHER.iter().find(|(file, _)| names.clone().any(|name| name == *file)) {
        return Some((*remedy).to_owned());
    }
    let gguf = names.clone().find(|name| name.ends_with(".gguf"))?;
    Some(format!("{} is a GGUF model: {GGUF}", escaped(gguf)))
}

/// What can be done with a GGUF model.
const GGUF: &str = "quantize it with qft quantize, or make a directory of it with qft to-hf";

/// Says what the file is that stands where a model's directory is expected.
pub(super) fn no_directory(file: &Path) -> Error {
    let problem = format!("{} is no directory", shown(file));
    if file.extension().is_some_and(|ending| ending == "gguf") {
        return Error::invalid(format!("{problem}, but a GGUF model"), GGUF);
    }
    Error::invalid(problem, "give the directory that the model's files are in")
}

/// Says that there is no directory `spec`, and which are called nearly so. It may be a Hub id, too.
pub(super) fn no_such_directory(spec: &str, may_be_id: bool) -> Error {
    let near = nearly(Path::new(spec));
    let remedy = if may_be_id {
        format!("check the path; or, for the model of that name on the Hub, give {}@main", escaped(spec))
    } else {
        "check the path, or give a Hub id: org/name or org/name@revision".to_owned()
    };
    Error::not_found(format!("no such directory: {}{near}", escaped(spec)), remedy)
}

/// The directories that are called nearly as `path`, as a part of a sentence; nothing where there is none.
pub(super) fn nearly(path: &Path) -> String {
    let near: Vec<String> = near(path).iter().map(|path| shown(path)).collect();
    if near.is_empty() { String::new() } else { format!(" (there is {})", near.join(", ")) }
}

/// Most names that are suggested.
const NEAR: usize = 3;

/// The directories beside `path` whose names are nearly its own, the nearest first.
fn near(path: &Path) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let wanted = name.to_string_lossy().to_lowercase();
    let here = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(entries) = std::fs::read_dir(here) else { return Vec::new() };
    let mut found: Vec<(usize, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| {
            (edits(&wanted, &entry.file_name().to_string_lossy().to_lowercase()), parent.join(entry.file_name()))
        })
        .filter(|(distance, _)| *distance <= wanted.len().div_ceil(3))
        .collect();
    found.sort();
    found.into_iter().take(NEAR).map(|(_, path)| path).collect()
}

/// Says what the directory of an adapter is, where a base was expected.
pub(super) fn adapter(dir: &Path) -> Option<String> {
    let is_adapter = dir.join(ADAPTER_CONFIG).exists();
    is_adapter.then(|| {
        format!(
            "this is a LoRA adapter, not a base: merge it with qft export ⟦merge_lora⟧ ⟦adapter {}⟧, and give what that \
             writes",
            quoted(dir)
        )
    })
}

/// What to do with the only safetensors file of a directory, which has another name.
pub(super) fn only(dir: &Path, name: &str) -> String {
    let is_lora = |file: &SafetensorsFile| file.header().tensors.iter().any(|tensor| tensor.name.contains("lora_"));
    if SafetensorsFile::open(&dir.join(name)).is_ok_and(|file| is_lora(&file)) {
        return format!("these are the weights of a LoRA adapter: give the directory with its {ADAPTER_CONFIG}");
    }
    format!("rename it to {SINGLE_FILE}")
}

/// Says what the file at `path` is, whose bytes begin with no safetensors header.
pub(super) fn no_safetensors(path: &Path, bytes: &[u8], error: &BadHeader) -> Error {
    let is_named = path.extension().is_some_and(|ending| ending == "safetensors");
    let (problem, remedy) = if bytes.starts_with(b"version https://git-lfs") {
        ("is a Git LFS pointer, not the file itself".to_owned(), "fetch it with git lfs pull, or download it again")
    } else if bytes.starts_with(b"PK") || bytes.starts_with(b"\x80\x02") {
        let remedy = "save it again as safetensors; of an adapter, give the directory";
        (format!("is a file of torch.save, no safetensors (qft reads it as {ADAPTER_WEIGHTS_TORCH} only)"), remedy)
    } else if !is_named {
        ("is no safetensors file".to_owned(), "give a .safetensors or .gguf file, or a model's directory")
    } else {
        (escaped(&error.to_string()), "download or save the file again: it is damaged or hostile")
    };
    Error::malformed(path, problem, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_instead_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content, part) in [
            ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            ("adapter_model.bin", "PK\u{3}\u{4}", "of an adapter, give the directory"),
            ("README.md", "# A model card, and no model", "is no safetensors file"),
            ("model.safetensors", "damaged", "download or save the file again"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let text = SafetensorsFile::open(&path).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_directory_of_nearly_that_name_is_suggested() {
        let dir = tempfile::tempdir().unwrap();
        ["model", "modem", "other", "Modal-2"]
            .iter()
            .for_each(|name| std::fs::create_dir(dir.path().join(name)).unwrap());
        std::fs::write(dir.path().join("modle.txt"), "").unwrap();
        let names = |name: &str| -> Vec<String> {
            let near = near(&dir.path().join(name));
            near.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names("modle"), ["model", "modem"]);
        assert_eq!(names("MODEL"), ["model", "modem"]);
        assert_eq!(names("elsewhere"), [""; 0]);
        assert!(near(Path::new("no/such/parent")).is_empty());
    }

    #[test]
    fn files_in_the_place_of_weights_have_a_way_out() {
        let remedy = |names: &[&str]| remedy_for(&names.iter().copied()).unwrap_or_default();
        assert!(remedy(&["config.json", "pytorch_model.bin"]).contains("runs no pickle"));
        assert!(remedy(&["consolidated.safetensors", "tekken.json"]).contains("Hugging Face files"));
        assert!(remedy(&["x-Q4_K_M.gguf"]).contains("x-Q4_K_M.gguf is a GGUF model: quantize it"));
        assert!(remedy(&["adapter_model.safetensors"]).contains("without its adapter_config.json"));
        assert_eq!(remedy(&["config.json", "weights.safetensors"]), "");
    }
}
