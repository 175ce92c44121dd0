//! Mistral and Mistral-Nemo in Hugging Face's format: a Llama to llama.cpp.

use super::family::{ConfigClass, Default, Family, Setting, Window};
use super::llama::LLAMA;

/// See the file's header.
pub(crate) const MISTRAL: Family =
    Family { architectures: &["MistralForCausalLM"], classes: &[CONFIG, MINISTRAL], ..LLAMA };

/// Its configuration class.
pub(super) const CONFIG: ConfigClass = ConfigClass {
    model_type: "mistral",
    with_layer_types: Some("ministral"),
    defaults: &[SIZES, &[("head_dim", Default::HeadDim)]],
    window: Window::Always,
    nests_rope: false,
    divides_heads: false,
};

const MINISTRAL: ConfigClass =
    ConfigClass { model_type: "ministral", with_layer_types: None, defaults: &[SIZES], ..CONFIG };

const SIZES: &[Setting] = &[
    ("vocab_size", Default::Int(32_000)),
    ("hidden_size", Default::Int(4096)),
    ("intermediate_size", Default::Int(14_336)),
    ("num_hidden_layers", Default::Int(32)),
    ("num_attention_heads", Default::Int(32)),
    ("num_key_value_heads", Default::IntOrHeads(8)),
    ("max_position_embeddings", Default::Int(131_072)),
    ("rms_norm_eps", Default::Float(1e-6)),
    ("tie_word_embeddings", Default::Off),
];
