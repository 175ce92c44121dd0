//! config.json and `generation_config.json` from the metadata of a GGUF file. Rotary scaling is in `rope`.

use serde_json::{Map, Value, json};

use super::keys::{Keys, tokens};
use crate::arch::Sizes;
use crate::arch::back::{Back, Switch};
use crate::arch::rope::yarn;
use crate::error::{Error, Result, escaped};
use crate::gguf::Metadata;
use crate::gguf::release::ignored;

const REMEDY: &str = "the file is incomplete: download or convert the model again";

/// The sizes of a model.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Those that tensors have.
    pub(crate) sizes: Sizes,
    /// The longest context.
    pub(crate) context: u64,
    /// Whether the file states the size of a head, rather than leaving it to be worked out.
    head_stated: bool,
}

impl Shape {
    /// Reads them. The rows of the embeddings are the vocabulary.
    pub(crate) fn read(keys: Keys<'_>, vocab: u64) -> Result<Self> {
        let optional = |key: &str| match keys.metadata.of_architecture(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|n| *n > 0 && u32::try_from(*n).is_ok()) {
                Some(size) => Ok(Some(size)),
                None => Err(Error::unsupported(
                    format!("the model's {key} is not a valid size: {:.60}", format!("{value:?}")),
                    "models whose layers differ can't be converted yet: use the original",
                )),
            },
        };
        let size =
            |key: &str| optional(key)?.ok_or_else(|| Error::inconsistent(format!("the model has no {key}"), REMEDY));
        let (hidden, query_heads) = (size("embedding_length")?, size("attention.head_count")?);
        let key_heads = optional("attention.head_count_kv")?.unwrap_or(query_heads);
        let (key, rotated) = (optional("attention.key_length")?, optional("rope.dimension_count")?);
        let head = key.or(rotated).unwrap_or(hidden / query_heads);
        let value = optional("attention.value_length")?;
        for (name, length) in [("rope.dimension_count", rotated), ("attention.value_length", value)] {
            if let Some(length) = length.filter(|length| *length != head) {
                return Err(Error::unsupported(
                    format!("the model's {name} is {length}, and its heads have {head} columns"),
                    "such models can't be converted yet: use the original",
                ));
            }
        }
        if head == 0 || !head.is_multiple_of(2) || !query_heads.is_multiple_of(key_heads) {
            return Err(Error::inconsistent(
                format!("the model can't have {query_heads} heads of {head} columns and {key_heads} key-value heads"),
                REMEDY,
            ));
        }
        let (layers, intermediate) = (size("block_count")?, size("feed_forward_length")?);
        Ok(Self {
            sizes: Sizes { vocab, hidden, intermediate, query_heads, key_heads, head, layers },
            context: size("context_length")?,
            head_stated: key.or(rotated).is_some(),
        })
    }
}

/// What config.json says beside the sizes.
pub(crate) struct Facts<'a> {
    pub(crate) family: Back,
    pub(crate) shape: &'a Shape,
    /// Whether embeddings and head are one.
    pub(crate) tied: bool,
    /// Switches of the family: biases.
    pub(crate) switches: &'a [Switch],
    /// Base of the rotary frequencies.
    pub(crate) theta: Value,
    /// `rope_scaling`.
    pub(crate) scaling: Option<Value>,
    /// The type of the weights, as config.json names it.
    pub(crate) dtype: &'static str,
}

/// The ids that config.json and `generation_config.json` have, where the file has them.
const IDS: [(&str, &str); 3] =
    [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id"), ("pad_token_id", "padding_token_id")];

/// The text of config.json. The names are those that every version of transformers reads: `rope_theta`,
/// `rope_scaling`, `torch_dtype`.
pub(crate) fn config(keys: Keys<'_>, facts: &Facts<'_>) -> Result<String> {
    let sizes = &facts.shape.sizes;
    let epsilon = keys
        .number_of_architecture("attention.layer_norm_rms_epsilon")?
        .ok_or_else(|| Error::inconsistent("the model has no attention.layer_norm_rms_epsilon", REMEDY))?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("architectures", json!([facts.family.class()]));
    set("model_type", json!(facts.family.model_type()));
    set("vocab_size", json!(sizes.vocab));
    set("hidden_size", json!(sizes.hidden));
    set("intermediate_size", json!(sizes.intermediate));
    set("num_hidden_layers", json!(sizes.layers));
    set("num_attention_heads", json!(sizes.query_heads));
    set("num_key_value_heads", json!(sizes.key_heads));
    if facts.shape.head_stated || sizes.head * sizes.query_heads != sizes.hidden {
        set("head_dim", json!(sizes.head));
    }
    set("max_position_embeddings", json!(facts.shape.context));
    set("hidden_act", json!("silu"));
    set("rms_norm_eps", epsilon);
    set("rope_theta", facts.theta.clone());
    if let Some(scaling) = &facts.scaling {
        set("rope_scaling", scaling.clone());
    }
    for (switch, on) in facts.switches {
        set(switch, json!(on));
    }
    set("tie_word_embeddings", json!(facts.tied));
    for (key, value) in ids(keys)? {
        set(key, json!(value));
    }
    set("torch_dtype", json!(facts.dtype));
    set("use_cache", json!(true));
    Ok(format!("{:#}\n", Value::Object(config)))
}

fn ids(keys: Keys<'_>) -> Result<Vec<(&'static str, u64)>> {
    let ids = IDS.into_iter().filter_map(|(key, stored)| Some(keys.token_id(stored).transpose()?.map(|id| (key, id))));
    ids.collect()
}

/// Warnings of ids that no token has, which are left out.
pub(crate) fn ids_without_token(metadata: &Metadata) -> Vec<String> {
    let tokens = tokens(metadata);
    let ids = metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id"));
    let outside = ids.filter_map(|(key, value)| Some((key, value.as_u64().filter(|id| *id >= tokens)?)));
    outside
        .map(|(key, id)| format!("{} is {id}, which is not one of the {tokens} tokens; it is ignored", escaped(key)))
        .collect()
}

/// Settings of sampling: in the file, in `generation_config.json`.
const SAMPLING: [(&str, &str); 5] = [
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("temp", "temperature"),
    ("penalty_repeat", "repetition_penalty"),
];

/// The text of `generation_config.json`: ids, where several tokens end a turn all of them, and how to sample.
pub(crate) fn generation_config(keys: Keys<'_>) -> Result<String> {
    let mut config = Map::new();
    for (key, id) in ids(keys)? {
        config.insert(key.to_owned(), json!(id));
    }
    let mut ends: Vec<u64> = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(keys.token_id(key)?.filter(|id| !ends.contains(id)));
    }
    if ends.len() > 1 {
        config.insert("eos_token_id".to_owned(), json!(ends));
    }
    for (stored, key) in SAMPLING {
        if let Some(value) = keys.number(&format!("general.sampling.{stored}"))? {
            config.insert("do_sample".to_owned(), json!(true));
            config.insert(key.to_owned(), value);
        }
    }
    Ok(format!("{:#}\n", Value::Object(config)))
}

/// Keys of an architecture that the config is made of, or that say nothing that it lacks.
const USED: [&str; 22] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "vocab_size",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Keys of the architecture that the config has no place for, but for those of [`without_place`].
pub(crate) fn unused_keys(metadata: &Metadata) -> Vec<String> {
    let Some(prefix) = metadata.architecture().map(|name| format!("{name}.")) else { return Vec::new() };
    let keys = metadata.iter().filter_map(|(key, _)| key.strip_prefix(&prefix).map(|rest| (key, rest)));
    let told = ignored(metadata);
    let unused = keys.filter(|(key, rest)| !USED.contains(rest) && !told.iter().any(|(name, ..)| name == key));
    unused.map(|(key, _)| escaped(key)).collect()
}

/// Warnings of keys that change what a model computes and that llama.cpp does not read for the family.
pub(crate) fn without_place(metadata: &Metadata) -> Vec<String> {
    let say = |(key, value, does): (String, String, &str)| {
        let what = if key.ends_with(yarn::CONVERTERS) {
            "llama.cpp does not read it for this architecture, and config.json has the factor that llama.cpp computes"
        } else if USED.iter().any(|used| key.ends_with(&format!(".{used}"))) {
            "config.json has it, and llama.cpp does not read it for this architecture"
        } else {
            "config.json can't express it, and the converted model computes without it; if the model requires it, use \
             the original"
        };
        format!("{} is {value}, which {does}: {what}", escaped(&key))
    };
    ignored(metadata).into_iter().map(say).collect()
}
