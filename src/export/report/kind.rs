//! What a GGUF tensor's name says of its place in a model: its layer, and what it is there.

/// Kinds in the order in which a model applies them; all others come after these, by name.
const ORDER: [&str; 33] = [
    "token_embd",
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_q_a",
    "attn_q_b",
    "attn_kv_a_mqa",
    "attn_kv_b",
    "attn_k_b",
    "attn_v_b",
    "attn_q_norm",
    "attn_k_norm",
    "attn_output",
    "post_attention_norm",
    "ffn_norm",
    "ffn_gate_inp",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
    "ffn_gate_inp_shexp",
    "post_ffw_norm",
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
    "output_norm",
];

/// Where `kind` stands among kinds.
pub(super) fn rank(kind: &str) -> usize {
    let last = usize::from(kind == "output");
    ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len() + last)
}

/// The layer and the kind of the tensor `name`: `blk.3.attn_q.weight` is (3, `attn_q`), `token_embd.weight` is
/// (none, `token_embd`). A number beside the layer's is an expert's, and no part of the kind.
pub(super) fn place(name: &str) -> (Option<u32>, String) {
    let mut words: Vec<&str> = name.split('.').collect();
    if words.last() == Some(&"weight") && words.len() > 1 {
        words.pop();
    }
    let number = |word: &str| word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse::<u32>().ok()).flatten();
    let block = words.windows(2).position(|pair| pair[0] == "blk" && number(pair[1]).is_some());
    let layer = block.and_then(|at| {
        let layer = number(words[at + 1]);
        words.drain(at..at + 2);
        words.retain(|word| number(word).is_none());
        layer
    });
    if words.is_empty() { (layer, name.to_owned()) } else { (layer, words.join(".")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_places() {
        let cases = [
            ("token_embd.weight", None, "token_embd"),
            ("blk.3.attn_q.weight", Some(3), "attn_q"),
            ("blk.12.attn_q.bias", Some(12), "attn_q.bias"),
            ("blk.0.ffn_gate.7.weight", Some(0), "ffn_gate"),
            ("enc.blk.1.attn_q.weight", Some(1), "enc.attn_q"),
            ("blk.99999999999.x", None, "blk.99999999999.x"),
            ("blk.1", Some(1), "blk.1"),
            ("weight", None, "weight"),
            ("", None, ""),
        ];
        for (name, layer, kind) in cases {
            assert_eq!(place(name), (layer, kind.to_owned()), "{name}");
        }
        assert!(rank("attn_q") < rank("ffn_down") && rank("output_norm") < rank("odd") && rank("odd") < rank("output"));
    }
}
