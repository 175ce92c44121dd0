//! The keys `<architecture>.*`: which setting of config.json each comes from, and of what type it is, in the order of
//! `TextModel.set_gguf_parameters` in conversion/base.py.

use serde_json::{Map, Value as Json};

use crate::arch::compute;
use crate::arch::family::Family;
use crate::arch::rope::yarn;
use crate::arch::settings::{Settings, number, whole};
use crate::error::{Error, Result, escaped};
use crate::gguf::{Array, Metadata, Value};

/// Type of a key's value.
#[derive(Clone, Copy)]
enum Kind {
    U32,
    F32,
}

/// A key after the architecture's name, and the settings that it comes from: the first that is there.
type Row = (&'static str, &'static [&'static str], Kind);

/// Keys before those of the rotary embedding.
const DIMENSIONS: [Row; 6] = [
    ("block_count", &["n_layers", "num_hidden_layers", "n_layer", "num_layers"], Kind::U32),
    (
        "context_length",
        &["max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"],
        Kind::U32,
    ),
    ("embedding_length", &["hidden_size", "n_embd", "dim"], Kind::U32),
    (
        "feed_forward_length",
        &["prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"],
        Kind::U32,
    ),
    ("attention.head_count", &["num_attention_heads", "n_head", "n_heads"], Kind::U32),
    ("attention.head_count_kv", &["num_key_value_heads", "n_kv_heads"], Kind::U32),
];

/// Keys after those of the rotary embedding.
const REST: [Row; 8] = [
    ("attention.layer_norm_rms_epsilon", &["rms_norm_eps", "norm_eps"], Kind::F32),
    ("attention.layer_norm_epsilon", &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"], Kind::F32),
    ("expert_count", &["num_local_experts", "num_experts", "n_routed_experts"], Kind::U32),
    ("expert_used_count", &["num_experts_per_tok", "num_experts_per_token", "top_k_experts"], Kind::U32),
    ("expert_group_count", &["n_group"], Kind::U32),
    ("expert_group_used_count", &["topk_group"], Kind::U32),
    ("attention.key_length", &["head_dim"], Kind::U32),
    ("attention.value_length", &["head_dim"], Kind::U32),
];

/// Keys of a rotary embedding stretched by `YaRN`, after its type: members of its settings, whether it must be there.
const YARN: [(Row, bool); 3] = [
    (("rope.scaling.factor", &["factor"], Kind::F32), true),
    (("rope.scaling.original_context_length", &["original_max_position_embeddings"], Kind::U32), true),
    (("rope.scaling.yarn_ext_factor", &["extrapolation_factor"], Kind::F32), false),
];

/// The same, after the factor of attention.
const YARN_BANDS: [Row; 2] = [
    ("rope.scaling.yarn_beta_fast", &["beta_fast"], Kind::F32),
    ("rope.scaling.yarn_beta_slow", &["beta_slow"], Kind::F32),
];

/// Writes the keys of `family` for a model with these settings to `to`, and the file's type.
pub(super) fn write(
    family: &Family,
    settings: &Settings,
    file_type: u32,
    to: &mut Metadata,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let mut keys = Keys { prefix: family.name, to };
    DIMENSIONS.iter().try_for_each(|row| keys.setting(row, settings))?;
    if settings.get("is_causal") == Some(&Json::Bool(false)) {
        keys.set("attention.causal", Value::Bool(false));
    }
    compute::check(family, settings, warnings)?;
    rope(family, settings, &mut keys)?;
    REST.iter().try_for_each(|row| keys.setting(row, settings))?;
    keys.to.set("general.file_type", Value::U32(file_type));
    if family.writes_vocab_size {
        let vocab = settings.require("vocab_size")?;
        keys.set("vocab_size", Value::U32(vocab as u32));
        keys.set("rope.dimension_count", Value::U32(settings.head_dim()? as u32));
    }
    keys.to.set("general.quantization_version", Value::U32(2));
    Ok(())
}

/// The keys of the rotary embedding.
fn rope(family: &Family, settings: &Settings, keys: &mut Keys<'_>) -> Result<()> {
    let rope = settings.rope();
    match settings.rope_type() {
        // Of dynamic scaling, `compute` warns.
        None | Some("default" | "dynamic") => {}
        Some("linear") => {
            keys.set("rope.scaling.type", Value::string("linear"));
            keys.member(&YARN[0].0, rope, true)?;
        }
        Some("yarn") => {
            keys.set("rope.scaling.type", Value::string("yarn"));
            YARN.iter().try_for_each(|(row, must)| keys.member(row, rope, *must))?;
            if let Some(times) = yarn::attn_factor(rope)? {
                // The converter's key, which llama.cpp does not read for these families, and the one that it reads.
                [yarn::CONVERTERS, yarn::ATTN_FACTOR].iter().for_each(|key| keys.set(key, Value::F32(times)));
            }
            YARN_BANDS.iter().try_for_each(|row| keys.member(row, rope, false))?;
        }
        Some(kind) if kind.eq_ignore_ascii_case("llama3") && family.generates_rope_factors => {}
        Some(kind) => {
            let problem = format!(
                "the rotary embedding of type \"{}\" can't be expressed in a GGUF of {}",
                escaped(kind),
                family.name
            );
            let remedy = "set rope_type to \"default\" in rope_scaling, or in rope_parameters, of config.json; or \
                          serve the safetensors (which an export without ⟦gguf⟧ writes)";
            return Err(Error::unsupported(problem, remedy));
        }
    }
    if let Some(sections) = settings.all_rope().get("mrope_section").and_then(Json::as_array) {
        let mut sections: Vec<i32> =
            sections.iter().map(|v| whole("mrope_section", v).map(u32::cast_signed)).collect::<Result<_>>()?;
        sections.resize(4, 0);
        keys.set("rope.dimension_sections", Value::Array(Array::I32(sections)));
    }
    keys.member(&("rope.freq_base", &["rope_theta"], Kind::F32), rope, false)?;
    if let Some(Json::Object(sliding)) = settings.all_rope().get("sliding_attention") {
        keys.member(&("rope.freq_base_swa", &["rope_theta"], Kind::F32), sliding, false)?;
    }
    Ok(())
}

/// The keys of one architecture.
struct Keys<'a> {
    prefix: &'a str,
    to: &'a mut Metadata,
}

impl Keys<'_> {
    fn set(&mut self, key: &str, value: Value) {
        self.to.set(&format!("{}.{key}", self.prefix), value);
    }

    /// Writes a row that comes from a setting, if that is there.
    fn setting(&mut self, (key, from, kind): &Row, settings: &Settings) -> Result<()> {
        if let Some((name, value)) = settings.first(from) {
            self.set(key, typed(name, value, *kind)?);
        }
        Ok(())
    }

    /// Writes a row that comes from a member of the rotary embedding's settings.
    fn member(&mut self, (key, from, kind): &Row, rope: &Map<String, Json>, must: bool) -> Result<()> {
        match from.iter().find_map(|name| rope.get(*name).map(|value| (name, value))) {
            Some((name, value)) if !value.is_null() => self.set(key, typed(name, value, *kind)?),
            _ if must => {
                let problem = format!("config.json: the scaling of the rotary embedding has no {}", from[0]);
                return Err(Error::inconsistent(problem, "take config.json from the model's source"));
            }
            _ => {}
        }
        Ok(())
    }
}

fn typed(name: &str, value: &Json, kind: Kind) -> Result<Value> {
    Ok(match kind {
        Kind::U32 => Value::U32(whole(name, value)?),
        Kind::F32 => Value::F32(number(name, value)? as f32),
    })
}
