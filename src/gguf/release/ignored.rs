//! Keys that a file of a known family can have and llama.cpp does not read for it, or that change what a model computes
//! and config.json can't express. Source: src/models/{llama,qwen2,qwen3}.cpp and llama-context.cpp of llama.cpp.

use super::Contents;
use crate::arch;
use crate::arch::rope::yarn;
use crate::error::escaped;
use crate::gguf::value::{Metadata, Value};

/// A key after the architecture's name, the value with which it changes nothing, and what it does.
type Row = (&'static str, f64, &'static str);

const KEYS: [Row; 12] = [
    ("attention.sliding_window", 0.0, "limits attention to the last tokens"),
    ("attention.scale", 0.0, "scales attention"),
    ("attention.clamp_kqv", 0.0, "limits queries, keys and values"),
    ("attention.max_alibi_bias", 0.0, "weights attention by distance"),
    ("attn_logit_softcapping", 0.0, "limits the scores of attention"),
    ("final_logit_softcapping", 0.0, "limits the logits"),
    ("logit_scale", 0.0, "scales the logits"),
    ("residual_scale", 0.0, "scales the output of each layer"),
    ("embedding_scale", 0.0, "scales the embeddings"),
    (yarn::CONVERTERS, 1.0, "scales the vectors that YaRN rotates"),
    ("rope.scaling.yarn_beta_fast", 32.0, "sets which frequencies YaRN stretches"),
    ("rope.scaling.yarn_beta_slow", 1.0, "sets which frequencies YaRN stretches"),
];

/// The keys of a known family's file that llama.cpp passes over, with their values and what they would do.
pub(crate) fn ignored(metadata: &Metadata) -> Vec<(String, String, &'static str)> {
    let Some(architecture) = metadata.architecture().filter(|name| arch::is_known(name)) else { return Vec::new() };
    let found = |(key, neutral, does): &Row| {
        // Beside the key that llama.cpp reads, the converter's says the same.
        if *key == yarn::CONVERTERS && metadata.of_architecture(yarn::ATTN_FACTOR).is_some() {
            return None;
        }
        let value = metadata.of_architecture(key).and_then(Value::as_f64)?;
        // 1 is neutral for every factor, whatever stands for a missing one.
        let is = |number: f64| value.to_bits() == number.to_bits();
        let is_neutral = is(*neutral) || key.ends_with("_scale") && is(1.0);
        (!is_neutral).then(|| (format!("{architecture}.{key}"), shown(metadata.of_architecture(key), value), *does))
    };
    KEYS.iter().filter_map(found).collect()
}

/// A number as users write it: an f32 in the fewest digits that read back as it.
fn shown(stored: Option<&Value>, number: f64) -> String {
    if let Some(Value::F32(value)) = stored { value.to_string() } else { number.to_string() }
}

/// The rule: such keys.
pub(super) fn told(contents: &Contents<'_>) -> Vec<String> {
    let say = |(key, value, does): (String, String, &str)| {
        format!("{} is {value}, which {does}; llama.cpp does not read it for this architecture", escaped(&key))
    };
    ignored(contents.metadata).into_iter().map(say).collect()
}
