//! Qwen2 and Qwen2.5.

use super::family::Family;
use super::names::{Bias, Dim, Row};
use super::vocabulary::QWEN_TOKENIZERS;

/// See the file's header.
pub(crate) const QWEN2: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
    layer: LAYER,
    permutes: false,
    generates_rope_factors: false,
    writes_vocab_size: false,
    vocabulary: &QWEN_TOKENIZERS,
};

const LAYER: &[Row] = &[
    Row::norm("input_layernorm", "attn_norm", Dim::Width),
    Row::linear("self_attn.q_proj", "attn_q", [Dim::Query, Dim::Width], Bias::Always),
    Row::linear("self_attn.k_proj", "attn_k", [Dim::Key, Dim::Width], Bias::Always),
    Row::linear("self_attn.v_proj", "attn_v", [Dim::Key, Dim::Width], Bias::Always),
    Row::linear("self_attn.o_proj", "attn_output", [Dim::Width, Dim::Query], Bias::Never),
    Row::norm("post_attention_layernorm", "ffn_norm", Dim::Width),
    Row::linear("mlp.gate_proj", "ffn_gate", [Dim::Hidden, Dim::Width], Bias::Never),
    Row::linear("mlp.up_proj", "ffn_up", [Dim::Hidden, Dim::Width], Bias::Never),
    Row::linear("mlp.down_proj", "ffn_down", [Dim::Width, Dim::Hidden], Bias::Never),
];
