//! Llama and whatever has its shape: Llama 2 and 3, `SmolLM2`, and others that call themselves `LlamaForCausalLM`.

use super::family::Family;
use super::names::{Bias, Dim, Heads, Row};
use super::vocabulary::LLAMA_TOKENIZERS;

/// See the file's header.
pub(crate) const LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"],
    layer: LAYER,
    permutes: true,
    generates_rope_factors: true,
    writes_vocab_size: true,
    vocabulary: &LLAMA_TOKENIZERS,
};

const LAYER: &[Row] = &[
    Row::norm("input_layernorm", "attn_norm", Dim::Width),
    Row::linear("self_attn.q_proj", "attn_q", [Dim::Query, Dim::Width], Bias::If("attention_bias")).of(Heads::Query),
    Row::linear("self_attn.k_proj", "attn_k", [Dim::Key, Dim::Width], Bias::If("attention_bias")).of(Heads::Key),
    Row::linear("self_attn.v_proj", "attn_v", [Dim::Key, Dim::Width], Bias::If("attention_bias")),
    Row::linear("self_attn.o_proj", "attn_output", [Dim::Width, Dim::Query], Bias::If("attention_bias")),
    Row::norm("post_attention_layernorm", "ffn_norm", Dim::Width),
    Row::linear("mlp.gate_proj", "ffn_gate", [Dim::Hidden, Dim::Width], Bias::If("mlp_bias")),
    Row::linear("mlp.up_proj", "ffn_up", [Dim::Hidden, Dim::Width], Bias::If("mlp_bias")),
    Row::linear("mlp.down_proj", "ffn_down", [Dim::Width, Dim::Hidden], Bias::If("mlp_bias")),
];
