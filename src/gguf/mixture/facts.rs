//! What the rules of a mixture must know of a model beside its tensors: a few numbers of a GGUF file's metadata.

use crate::error::{Error, Result, escaped};
use crate::gguf::{Array, Metadata, Value};

/// Numbers of a model that rules depend on, as llama.cpp reads them from a file's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `general.architecture`.
    pub architecture: String,
    /// Blocks, `block_count`; those that predict further tokens count too.
    pub layers: u64,
    /// Of these, blocks that predict further tokens (`nextn_predict_layers`).
    pub prediction_layers: u64,
    /// Attention heads of the first block.
    pub heads: u64,
    /// Heads of keys and values of the first block; as many as `heads` if the file doesn't say.
    pub key_value_heads: u64,
    /// Experts of a block; 0 if the model has none.
    pub experts: u64,
}

/// Models that llama.cpp calls "70B", by architecture and blocks (llama.cpp's models/*.cpp): several query heads share
/// a small `attn_v` there. Llama's 65B has as many blocks, but no shared heads.
const MODELS_70B: [(&str, u64); 6] =
    [("llama", 80), ("llama-embed", 80), ("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)];

impl Facts {
    /// Reads them from `metadata`.
    pub fn of(metadata: &Metadata) -> Result<Self> {
        let architecture = metadata.architecture().ok_or_else(|| missing("general.architecture"))?.to_owned();
        let number = |key: &str| -> Result<Option<u64>> {
            let Some(value) = metadata.of_architecture(key) else { return Ok(None) };
            let number = first_number(value).filter(|n| u32::try_from(*n).is_ok());
            number.map(Some).ok_or_else(|| {
                let key = escaped(&format!("{architecture}.{key}"));
                Error::inconsistent(
                    format!("{key} is not a number, or is out of range"),
                    "convert the model again: its GGUF metadata is broken",
                )
            })
        };
        let layers = number("block_count")?.ok_or_else(|| missing(&format!("{architecture}.block_count")))?;
        let heads = number("attention.head_count")?.unwrap_or(0);
        Ok(Self {
            layers,
            prediction_layers: number("nextn_predict_layers")?.unwrap_or(0),
            heads,
            key_value_heads: number("attention.head_count_kv")?.unwrap_or(heads),
            experts: number("expert_count")?.unwrap_or(0),
            architecture,
        })
    }

    /// Query heads that share a head of keys and values; 0 if there are none.
    pub(super) fn heads_per_group(&self) -> u64 {
        self.heads.checked_div(self.key_value_heads).unwrap_or(0)
    }

    /// Whether llama.cpp counts the model among its "70B".
    pub(super) fn is_70b(&self) -> bool {
        let layers = self.layers.saturating_sub(self.prediction_layers);
        let is_llama = self.architecture.starts_with("llama");
        MODELS_70B.iter().any(|(architecture, n)| self.architecture == *architecture && layers == *n)
            && !(is_llama && (self.experts == 8 || self.heads == self.key_value_heads))
    }
}

/// A number, or the first of an array of them (some models have one a block).
fn first_number(value: &Value) -> Option<u64> {
    match value {
        Value::Array(Array::U32(numbers)) => numbers.first().copied().map(u64::from),
        Value::Array(Array::I32(numbers)) => u64::try_from(*numbers.first()?).ok(),
        _ => value.as_u64(),
    }
}

fn missing(key: &str) -> Error {
    Error::inconsistent(
        format!("the GGUF metadata has no {}", escaped(key)),
        "use a GGUF file of a language model, made by a converter",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, Value)]) -> Metadata {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    #[test]
    fn facts_come_from_metadata_with_the_defaults_of_llama_cpp() {
        let mut file = metadata(&[
            ("general.architecture", Value::string("qwen2")),
            ("qwen2.block_count", Value::U32(24)),
            ("qwen2.attention.head_count", Value::U32(14)),
        ]);
        let facts = Facts::of(&file).unwrap();
        assert_eq!((facts.layers, facts.heads, facts.key_value_heads, facts.experts), (24, 14, 14, 0));
        file.set("qwen2.attention.head_count_kv", Value::Array(Array::I32(vec![2, 0])));
        assert_eq!(Facts::of(&file).unwrap().heads_per_group(), 7);
        file.set("qwen2.attention.head_count_kv", Value::Array(Array::I32(vec![0])));
        assert_eq!(Facts::of(&file).unwrap().heads_per_group(), 0, "as llama.cpp: not infinite");
        file.set("qwen2.block_count", Value::U64(u64::MAX));
        assert!(Facts::of(&file).is_err());
        file.remove("qwen2.block_count");
        assert!(Facts::of(&file).unwrap_err().to_string().contains("block_count"));
    }

    #[test]
    fn a_70b_is_known_by_architecture_blocks_and_shared_heads() {
        let facts = |architecture: &str, layers, key_value_heads| Facts {
            architecture: architecture.to_owned(),
            layers,
            heads: 64,
            key_value_heads,
            ..Facts::default()
        };
        assert!(facts("llama", 80, 8).is_70b() && facts("qwen2", 80, 8).is_70b() && facts("qwen2", 80, 64).is_70b());
        assert!(!facts("llama", 80, 64).is_70b() && !facts("qwen3", 80, 8).is_70b() && !facts("qwen2", 64, 8).is_70b());
        assert!(!Facts { experts: 8, ..facts("llama", 80, 8) }.is_70b());
    }
}
