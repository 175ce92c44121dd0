//! Qwen3, dense: Qwen2 with norms on queries and keys in place of biases.

use super::family::{ConfigClass, Default, Family, Setting};
use super::qwen2::{self, QWEN2};
use super::row::{Bias, Dim, Row};

/// See the file's header.
pub(crate) const QWEN3: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
    classes: &[CONFIG],
    layer: LAYER,
    computed: false,
    ..QWEN2
};

const LAYER: &[Row] = &[
    Row::norm("input_layernorm", "attn_norm", Dim::Hidden),
    Row::linear("self_attn.q_proj", "attn_q", [Dim::Query, Dim::Hidden], Bias::If("attention_bias")),
    Row::linear("self_attn.k_proj", "attn_k", [Dim::Key, Dim::Hidden], Bias::If("attention_bias")),
    Row::linear("self_attn.v_proj", "attn_v", [Dim::Key, Dim::Hidden], Bias::If("attention_bias")),
    Row::linear("self_attn.o_proj", "attn_output", [Dim::Hidden, Dim::Query], Bias::If("attention_bias")),
    Row::norm("self_attn.q_norm", "attn_q_norm", Dim::Head),
    Row::norm("self_attn.k_norm", "attn_k_norm", Dim::Head),
    Row::norm("post_attention_layernorm", "ffn_norm", Dim::Hidden),
    Row::linear("mlp.gate_proj", "ffn_gate", [Dim::Intermediate, Dim::Hidden], Bias::Never),
    Row::linear("mlp.up_proj", "ffn_up", [Dim::Intermediate, Dim::Hidden], Bias::Never),
    Row::linear("mlp.down_proj", "ffn_down", [Dim::Hidden, Dim::Intermediate], Bias::Never),
];

/// Its configuration class.
pub(super) const CONFIG: ConfigClass = ConfigClass { model_type: "qwen3", defaults: DEFAULTS, ..qwen2::CONFIG };

const DEFAULTS: &[&[Setting]] = &[qwen2::SIZES, &[("head_dim", Default::Int(128)), ("attention_bias", Default::Off)]];
