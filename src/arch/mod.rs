//! The families of models, one file and one row each: what config.json says of a model's sizes, its tensors' names in
//! transformers and in GGUF, its rotary embedding, which tokenizer it has. Knows no GGUF file and no device.

pub(crate) mod back;
pub(crate) mod compute;
pub(crate) mod family;
mod llama;
mod mistral;
pub(crate) mod names;
mod qwen2;
mod qwen3;
pub(crate) mod rope;
pub(crate) mod settings;
mod spec;
mod tensors;
mod vocabulary;

use serde_json::Value as Json;

use self::family::Family;
pub(crate) use self::names::Sizes;
pub use self::rope::Rope;
pub(crate) use self::rope::llama3::Scaling;
pub use self::spec::{Heads, Projection, Spec};
pub use self::tensors::{GgufTensor, HfTensor, Rows};
#[cfg(test)]
pub(crate) use self::vocabulary::{LLAMA_TOKENIZERS, QWEN_TOKENIZERS};
pub use self::vocabulary::{Recipe, TokenizerKind};
use crate::error::{Error, Result, escaped};

/// All families. A new one is a file and a row here.
pub(crate) const FAMILIES: [Family; 4] = [llama::LLAMA, mistral::MISTRAL, qwen2::QWEN2, qwen3::QWEN3];

/// Parts of architectures' names that say why they have no family: what such a model is.
const OTHERS: [(&str, &str); 4] = [
    ("Moe", "a mixture of experts"),
    ("Mixtral", "a mixture of experts"),
    ("ForConditionalGeneration", "a model of images or sound"),
    ("ForSequenceClassification", "a classifier"),
];

/// What to do with a model that has no family here, whether it is a directory or what an export would write.
pub(crate) const BY_LLAMA_CPP: &str =
    "convert the safetensors (which an export without --gguf writes) with llama.cpp's convert_hf_to_gguf.py";

/// Whether a family is called so in `general.architecture`.
pub(crate) fn is_known(architecture: &str) -> bool {
    FAMILIES.iter().any(|family| family.name == architecture)
}

/// The family of the model with this config.json.
pub(crate) fn family(config: &Json) -> Result<&'static Family> {
    let name = config.get("architectures").and_then(|list| list.get(0)).and_then(Json::as_str);
    let Some(name) = name else {
        return Err(Error::refused("config.json names no architecture", "take config.json from the model's source"));
    };
    if let Some(family) = FAMILIES.iter().find(|family| family.architectures.contains(&name)) {
        return Ok(family);
    }
    let known = FAMILIES.iter().map(|family| family.architectures[0]).collect::<Vec<_>>().join(", ");
    let what = OTHERS.iter().find(|row| name.contains(row.0)).map_or(String::new(), |row| format!(", {}", row.1));
    let problem = format!("GGUF is made of {known}, and this model is {}{what}", escaped(name));
    Err(Error::refused(problem, BY_LLAMA_CPP))
}
