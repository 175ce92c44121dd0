//! Qwen2 and Qwen2.5.

use super::family::{ConfigClass, Default, Family, Setting, Window};
use super::row::{Bias, Dim, Row};
use super::vocabulary::QWEN_TOKENIZERS;

/// See the file's header.
pub(crate) const QWEN2: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
    classes: &[CONFIG],
    layer: LAYER,
    computed: true,
    permutes: false,
    generates_rope_factors: false,
    writes_vocab_size: false,
    has_embedders: true,
    vocabulary: &QWEN_TOKENIZERS,
};

const LAYER: &[Row] = &[
    Row::norm("input_layernorm", "attn_norm", Dim::Hidden),
    Row::linear("self_attn.q_proj", "attn_q", [Dim::Query, Dim::Hidden], Bias::Always),
    Row::linear("self_attn.k_proj", "attn_k", [Dim::Key, Dim::Hidden], Bias::Always),
    Row::linear("self_attn.v_proj", "attn_v", [Dim::Key, Dim::Hidden], Bias::Always),
    Row::linear("self_attn.o_proj", "attn_output", [Dim::Hidden, Dim::Query], Bias::Never),
    Row::norm("post_attention_layernorm", "ffn_norm", Dim::Hidden),
    Row::linear("mlp.gate_proj", "ffn_gate", [Dim::Intermediate, Dim::Hidden], Bias::Never),
    Row::linear("mlp.up_proj", "ffn_up", [Dim::Intermediate, Dim::Hidden], Bias::Never),
    Row::linear("mlp.down_proj", "ffn_down", [Dim::Hidden, Dim::Intermediate], Bias::Never),
];

/// Its configuration class.
pub(super) const CONFIG: ConfigClass = ConfigClass {
    model_type: "qwen2",
    with_layer_types: None,
    defaults: &[SIZES],
    window: Window::Switched,
    nests_rope: true,
    divides_heads: false,
};

/// What Qwen3 shares.
pub(super) const SIZES: &[Setting] = &[
    ("vocab_size", Default::Int(151_936)),
    ("hidden_size", Default::Int(4096)),
    ("intermediate_size", Default::Int(22_016)),
    ("num_hidden_layers", Default::Int(32)),
    ("num_attention_heads", Default::Int(32)),
    ("num_key_value_heads", Default::IntOrHeads(32)),
    ("max_position_embeddings", Default::Int(32_768)),
    ("rms_norm_eps", Default::Float(1e-6)),
    ("tie_word_embeddings", Default::Off),
];
