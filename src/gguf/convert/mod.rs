//! From a Hugging Face model to the keys and tensors of a GGUF, as `convert_hf_to_gguf.py` makes them. What differs between
//! families is a row in `arch`; the vocabulary's own keys are made in `vocab`.

mod keys;

use serde_json::Value as Json;

use super::card::{describe, lineage_keys};
use super::{Lineage, Metadata, Value};
use crate::arch::family::Family;
use crate::arch::settings::Settings;
use crate::arch::{BY_LLAMA_CPP, GgufTensor, HfTensor, Recipe, family, names, rope};
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};

/// What the caller decides.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// `general.file_type` of the unquantized file: 0 F32, 1 F16, 32 BF16.
    pub file_type: u32,
    /// `general.name`, in place of what the model's files say.
    pub name: Option<String>,
    /// The adapters that were merged, in order. Empty: the keys are the converter's.
    pub lineage: Vec<Lineage>,
}

/// The keys and tensors of a GGUF, but for the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversion {
    /// Keys before the vocabulary's.
    pub before_vocab: Metadata,
    /// Keys to set after the vocabulary's: one that is there already gets the new value in its place.
    pub after_vocab: Metadata,
    /// Tensors in the converter's order.
    pub tensors: Vec<GgufTensor>,
    /// What was left out or guessed, for the reader.
    pub warnings: Vec<String>,
}

/// Converts the model of `files` with these `tensors`, which come in the order of the converter: file by file, each
/// file's in the order of their names.
pub fn convert(files: &ModelFiles, tensors: &[HfTensor], options: &Options) -> Result<Conversion> {
    let mut warnings = Vec::new();
    let family = family(&files.config)?;
    refuse_special(family, files)?;
    let settings = Settings::complete(&files.config)?;
    let mut placed = Vec::with_capacity(tensors.len() + 1);
    if family.generates_rope_factors {
        placed.extend(rope::llama3::factors(&settings)?);
    }
    placed.extend(names::place(family, &settings, tensors, &mut warnings)?);
    let mut before_vocab = Metadata::default();
    before_vocab.set("general.architecture", Value::string(family.name));
    before_vocab.set("general.type", Value::string("model"));
    let described = describe(files, parameters(&placed), options.name.as_deref(), &options.lineage, &mut warnings)?;
    described.iter().for_each(|(key, value)| before_vocab.set(key, value.clone()));
    keys::write(family, &settings, options.file_type, &mut before_vocab, &mut warnings)?;
    let mut after_vocab = Metadata::default();
    lineage_keys(&options.lineage).iter().for_each(|(key, value)| after_vocab.set(key, value.clone()));
    Ok(Conversion { before_vocab, after_vocab, tensors: placed, warnings })
}

/// How the vocabulary's keys of the model with this config.json are made, and how many tokens they have.
pub fn vocabulary(config: &Json) -> Result<(&'static Recipe, usize)> {
    let vocab_size = Settings::complete(config)?.require("vocab_size")?;
    Ok((family(config)?.vocabulary, vocab_size as usize))
}

/// The number of values of all tensors.
fn parameters(tensors: &[GgufTensor]) -> u64 {
    let count = |tensor: &GgufTensor| tensor.shape.iter().fold(1_u64, |n, dim| n.saturating_mul(*dim as u64));
    tensors.iter().map(count).fold(0, u64::saturating_add)
}

/// Refuses what the converter treats in ways of its own.
fn refuse_special(family: &Family, files: &ModelFiles) -> Result<()> {
    let has = |key: &str| files.config.get(key).is_some_and(|value| !value.is_null());
    let is_file = |name: &str| files.paths.contains_key(name);
    if has("quantization_config") || is_file("hf_quant_config.json") {
        return Err(Error::unsupported(
            "the model's weights are quantized already",
            "give the 16-bit model that it was made from; block FP8 is decoded by `qft export ⟦base DIR⟧ ⟦dtype bf16⟧ \
             ⟦out OTHER⟧`",
        ));
    }
    let cases = [
        (has("text_config"), "the model is one of several in its config.json (text_config)"),
        (has("draft_vocab_size"), "the model is a draft model (EAGLE-3)"),
        (
            family.has_embedders && (has("classifier_pooling") || is_file("modules.json")),
            "the model embeds sentences (modules.json)",
        ),
        (family.has_embedders && is_reranker(files)?, "the model is a reranker"),
        (is_file("tekken.json") && !is_file("tokenizer.json"), "the model has tekken.json, but no tokenizer.json"),
    ];
    match cases.into_iter().find(|case| case.0) {
        Some((_, problem)) => Err(Error::unsupported(problem, BY_LLAMA_CPP)),
        None => Ok(()),
    }
}

/// Whether the model is a Qwen3-Reranker by its names (`_is_qwen3_reranker` in conversion/qwen.py).
fn is_reranker(files: &ModelFiles) -> Result<bool> {
    let card = files.bytes("README.md")?.map(|card| String::from_utf8_lossy(&card).to_lowercase()).unwrap_or_default();
    let path = files.config.get("_name_or_path").and_then(Json::as_str).unwrap_or_default();
    let named = [files.directory.as_str(), path].iter().any(|name| name.to_lowercase().contains("qwen3-reranker"));
    Ok(named || card.contains("# qwen3-reranker"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(config: Json, file: &str) -> String {
        let mut files = ModelFiles { config, ..ModelFiles::default() };
        files.paths.insert(file.to_owned(), file.into());
        convert(&files, &[], &Options::default()).unwrap_err().to_string()
    }

    #[test]
    fn what_has_no_family_is_refused_by_name() {
        let of = |name: &str| refusal(json!({"architectures": [name]}), "x");
        assert!(of("MixtralForCausalLM").contains("mixture of experts"));
        assert!(of("Qwen3MoeForCausalLM").contains("mixture of experts"));
        assert!(of("Qwen2VLForConditionalGeneration").contains("images"));
        assert!(of("GPT\u{1b}[2J").contains("GPT\\u{1b}"));
        assert!(refusal(json!({}), "x").contains("names no architecture"));
        assert!(refusal(json!(null), "x").contains("names no architecture"));
    }

    #[test]
    fn what_the_converter_treats_apart_is_refused() {
        let with = |key: &str, value: Json, file: &str| {
            let mut config = json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"});
            config[key] = value;
            refusal(config, file)
        };
        assert!(with("quantization_config", json!({"quant_method": "gptq"}), "x").contains("quantized"));
        assert!(with("_name_or_path", json!("Qwen/Qwen3-Reranker-0.6B"), "x").contains("reranker"));
        assert!(with("x", json!(1), "modules.json").contains("sentences"));
        assert!(with("x", json!(1), "tekken.json").contains("tekken"));
    }
}
