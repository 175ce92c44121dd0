//! All families, and which of them a config.json asks for.

use serde_json::Value as Json;

use super::family::Family;
use super::{llama, mistral, qwen2, qwen3};
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
    "convert the safetensors (which an export without ⟦gguf⟧ writes) with llama.cpp's convert_hf_to_gguf.py";

/// Whether a family is called so in `general.architecture`.
pub(crate) fn is_known(architecture: &str) -> bool {
    FAMILIES.iter().any(|family| family.name == architecture)
}

/// The family of the model with this config.json.
pub(crate) fn family(config: &Json) -> Result<&'static Family> {
    let name = config.get("architectures").and_then(|list| list.get(0)).and_then(Json::as_str);
    let Some(name) = name else {
        return Err(Error::inconsistent(
            "config.json names no architecture",
            "take config.json from the model's source",
        ));
    };
    if let Some(family) = FAMILIES.iter().find(|family| family.architectures.contains(&name)) {
        return Ok(family);
    }
    let known = FAMILIES.iter().map(|family| family.architectures[0]).collect::<Vec<_>>().join(", ");
    let what = OTHERS.iter().find(|row| name.contains(row.0)).map_or(String::new(), |row| format!(", {}", row.1));
    let problem = format!("qft converts {known} to GGUF, and this model is {}{what}", escaped(name));
    Err(Error::unsupported(problem, BY_LLAMA_CPP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Projection;
    use crate::arch::row::Heads;

    /// What `model` reads of a layer; another tensor would be left out silently.
    #[test]
    fn a_computed_family_has_no_rows_that_are_not_computed() {
        let norms = ["input_layernorm", "post_attention_layernorm"].map(str::to_owned);
        let read = |row: &str| {
            norms.contains(&row.to_owned())
                || Projection::ALL.iter().any(|p| p.path(0) == format!("model.layers.0.{row}"))
        };
        for family in FAMILIES.iter().filter(|family| family.computed) {
            let idle: Vec<_> = family.layer.iter().map(|row| row.theirs).filter(|row| !read(row)).collect();
            assert_eq!(idle, Vec::<&str>::new(), "{}", family.name);
        }
    }

    /// A norm of each head's values would have to be reordered with the rows of its projection.
    #[test]
    fn a_family_that_permutes_has_no_norms_of_heads() {
        for family in FAMILIES.iter().filter(|family| family.permutes) {
            let heads = |name: &str| name.contains("q_norm") || name.contains("k_norm");
            assert!(!family.layer.iter().any(|row| heads(row.theirs)), "{}", family.name);
            assert!(family.layer.iter().any(|row| row.heads != Heads::None), "{}", family.name);
        }
    }
}
