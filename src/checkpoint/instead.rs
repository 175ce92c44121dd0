//! What a file or a directory is that is not the weights that it should be, and what to do about it.

use std::path::Path;

use super::names::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, SINGLE_FILE};
use super::tensor::SafetensorsFile;
use crate::error::{Error, escaped, quoted, shown};

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

#[cfg(test)]
mod tests {
    use super::*;

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
