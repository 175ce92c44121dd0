//! Which tensors may change their type at all, what part a tensor plays, and the order of tensors in llama-quantize's
//! output. All of it goes by names, as in llama-quant.cpp.

use crate::ggml::TensorType;

/// What a tensor does in the model, as far as mixtures care: `tensor_category` of llama-quant.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Output,
    Embedding,
    /// `attn_v`, and what holds it among others: the most sensitive weights.
    Values,
    Keys,
    AttentionOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

/// Parts of a name and the role they give, the first that matches.
const ROLES: [(&str, Role); 8] = [
    ("attn_qkv.weight", Role::Values),
    ("attn_kv_b.weight", Role::Values),
    ("attn_v.weight", Role::Values),
    ("attn_k.weight", Role::Keys),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_up", Role::FfnUp),
    ("ffn_gate", Role::FfnGate),
    ("ffn_down", Role::FfnDown),
];

/// The table of a per-layer embedding (Gemma 3n).
pub(super) const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";

/// The output head.
pub(super) const OUTPUT: &str = "output.weight";

/// Whether `name` is an embedding of tokens.
pub(crate) fn is_embedding(name: &str) -> bool {
    name == "token_embd.weight" || name == PER_LAYER_EMBEDDING
}

impl Role {
    pub(super) fn of(name: &str) -> Self {
        match name {
            OUTPUT => Self::Output,
            _ if is_embedding(name) => Self::Embedding,
            // attn_q is above attn_output in llama.cpp's list, but no name has both.
            _ => ROLES.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |row| row.1),
        }
    }
}

/// Names of tensors that keep their type.
const KEPT: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// Parts of the names of tensors that keep their type: too small, or too sensitive.
const KEPT_PARTS: [&str; 35] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whether the tensor may get another type: a matrix (axes of length 1 don't count) of weights that isn't kept.
pub(super) fn may_change(name: &str, shape: &[usize]) -> bool {
    let is_matrix = shape.split_last().is_some_and(|(_, outer)| outer.iter().any(|axis| *axis > 1));
    // llama-quantize takes every name of five bytes for one that ends so: a position that is not found, plus one.
    let is_weight = name.ends_with("weight") || name.len() == 5;
    is_matrix && is_weight && !KEPT.contains(&name) && !KEPT_PARTS.iter().any(|part| name.contains(part))
}

/// Tensors whose type llama-quantize refuses without an imatrix: 2-bit blocks of the smaller `Q2_K` mixture.
pub(super) fn needs_importance(name: &str, kind: TensorType, file_type: super::FileType) -> bool {
    let is_tiny = kind == TensorType::Q2_K && file_type == super::FileType::Q2_K_S;
    is_tiny && !is_embedding(name) && name != OUTPUT
}

/// The block that a name is of: the number after "blk.", -1 if there is none. As C's `sscanf("blk.%d.")`, which takes
/// white space and a sign before the number, and anything after it.
pub(super) fn block_of(name: &str) -> i32 {
    let Some(rest) = name.strip_prefix("blk.") else { return -1 };
    let rest = rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let (sign, digits) = match rest.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, rest.strip_prefix('+').unwrap_or(rest)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return -1;
    }
    // A number that no 64 bits hold is the largest that they do, of which C keeps the lower half.
    let number = digits[..end].parse().map_or(if sign < 0 { i64::MIN } else { i64::MAX }, |n: i64| sign * n);
    number as i32
}

/// The order of tensors in llama-quantize's output, as indices into `names`: those of no block first, then block by
/// block, by name within each. Types are chosen in that order too, since some rules count tensors.
pub fn order<S: AsRef<str>>(names: &[S]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|i| (block_of(names[*i].as_ref()), names[*i].as_ref()));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_no_block_come_first_then_blocks_by_number() {
        let names = [
            "token_embd.weight",
            "blk.10.attn_v.weight",
            "blk.2.attn_v.weight",
            "blk.2.attn_k.weight",
            "output.weight",
        ];
        let ordered: Vec<_> = order(&names).into_iter().map(|i| names[i]).collect();
        assert_eq!(
            ordered,
            [
                "output.weight",
                "token_embd.weight",
                "blk.2.attn_k.weight",
                "blk.2.attn_v.weight",
                "blk.10.attn_v.weight"
            ]
        );
    }

    #[test]
    fn blocks_are_read_as_c_does() {
        let cases = [
            ("blk.7.attn_q.weight", 7),
            ("blk.07x", 7),
            ("blk. +3.x", 3),
            ("blk.-2.x", -2),
            ("blk..x", -1),
            ("v.blk.3.x", -1),
            ("blk.4294967297.x", 1),
            ("blk.99999999999999999999.x", -1),
            ("blk.-99999999999999999999.x", 0),
        ];
        for (name, block) in cases {
            assert_eq!(block_of(name), block, "{name}");
        }
    }

    #[test]
    fn only_matrices_of_weights_change() {
        assert!(may_change("blk.0.attn_q.weight", &[64, 32]) && may_change("blk.0.ffn_up_exps.weight", &[4, 1, 32]));
        assert!(!may_change("blk.0.attn_q.weight", &[1, 32]), "an axis of one is none");
        assert!(!may_change("blk.0.attn_q.bias", &[64, 32]) && !may_change("rope_freqs.weight", &[32]));
        assert!(!may_change("blk.0.attn_q_norm.weight", &[64, 32]) && !may_change("position_embd.weight", &[64, 32]));
        assert!(!may_change("blk.0.ffn_gate_inp.weight", &[8, 32]) && !may_change("", &[]));
        assert!(may_change("abcde", &[64, 32]), "five bytes, as llama-quantize");
    }
}
