//! Qwen3, dense: Qwen2 with norms on queries and keys in place of biases.

use super::family::Family;
use super::names::{Bias, Dim, Row};
use super::qwen2::QWEN2;

/// See the file's header.
pub(crate) const QWEN3: Family =
    Family { name: "qwen3", architectures: &["Qwen3ForCausalLM", "Qwen3Model"], layer: LAYER, ..QWEN2 };

const LAYER: &[Row] = &[
    Row::norm("input_layernorm", "attn_norm", Dim::Width),
    Row::linear("self_attn.q_proj", "attn_q", [Dim::Query, Dim::Width], Bias::If("attention_bias")),
    Row::linear("self_attn.k_proj", "attn_k", [Dim::Key, Dim::Width], Bias::If("attention_bias")),
    Row::linear("self_attn.v_proj", "attn_v", [Dim::Key, Dim::Width], Bias::If("attention_bias")),
    Row::linear("self_attn.o_proj", "attn_output", [Dim::Width, Dim::Query], Bias::If("attention_bias")),
    Row::norm("self_attn.q_norm", "attn_q_norm", Dim::Head),
    Row::norm("self_attn.k_norm", "attn_k_norm", Dim::Head),
    Row::norm("post_attention_layernorm", "ffn_norm", Dim::Width),
    Row::linear("mlp.gate_proj", "ffn_gate", [Dim::Hidden, Dim::Width], Bias::Never),
    Row::linear("mlp.up_proj", "ffn_up", [Dim::Hidden, Dim::Width], Bias::Never),
    Row::linear("mlp.down_proj", "ffn_down", [Dim::Width, Dim::Hidden], Bias::Never),
];
