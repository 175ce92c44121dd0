//! Llama and whatever has its shape: Llama 2 and 3, `SmolLM2`, and others that call themselves `LlamaForCausalLM`.

use super::family::{ConfigClass, Default, Family, Window};
use super::row::{Bias, Dim, Heads, Row};
use super::vocabulary::LLAMA_TOKENIZERS;

/// See the file's header.
pub(crate) const LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"],
    classes: &[CONFIG],
    layer: LAYER,
    computed: true,
    permutes: true,
    generates_rope_factors: true,
    writes_vocab_size: true,
    has_embedders: false,
    vocabulary: &LLAMA_TOKENIZERS,
};

const LAYER: &[Row] = &[
    Row::norm("input_layernorm", "attn_norm", Dim::Hidden),
    Row::linear("self_attn.q_proj", "attn_q", [Dim::Query, Dim::Hidden], Bias::If("attention_bias")).of(Heads::Query),
    Row::linear("self_attn.k_proj", "attn_k", [Dim::Key, Dim::Hidden], Bias::If("attention_bias")).of(Heads::Key),
    Row::linear("self_attn.v_proj", "attn_v", [Dim::Key, Dim::Hidden], Bias::If("attention_bias")),
    Row::linear("self_attn.o_proj", "attn_output", [Dim::Hidden, Dim::Query], Bias::If("attention_bias")),
    Row::norm("post_attention_layernorm", "ffn_norm", Dim::Hidden),
    Row::linear("mlp.gate_proj", "ffn_gate", [Dim::Intermediate, Dim::Hidden], Bias::If("mlp_bias")),
    Row::linear("mlp.up_proj", "ffn_up", [Dim::Intermediate, Dim::Hidden], Bias::If("mlp_bias")),
    Row::linear("mlp.down_proj", "ffn_down", [Dim::Hidden, Dim::Intermediate], Bias::If("mlp_bias")),
];

/// Its configuration class.
pub(super) const CONFIG: ConfigClass = ConfigClass {
    model_type: "llama",
    with_layer_types: None,
    defaults: &[&[
        ("vocab_size", Default::Int(32_000)),
        ("hidden_size", Default::Int(4096)),
        ("intermediate_size", Default::Int(11_008)),
        ("num_hidden_layers", Default::Int(32)),
        ("num_attention_heads", Default::Int(32)),
        ("num_key_value_heads", Default::Heads),
        ("max_position_embeddings", Default::Int(2048)),
        ("rms_norm_eps", Default::Float(1e-6)),
        ("tie_word_embeddings", Default::Off),
        ("attention_bias", Default::Off),
        ("mlp_bias", Default::Off),
        ("head_dim", Default::HeadDim),
    ]],
    window: Window::Never,
    nests_rope: false,
    divides_heads: true,
};
