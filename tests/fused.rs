//! Checkpoints that hold in one tensor what the model's class has apart, or in several what it has in one: deltas land on
//! the right rows, with the bytes that an adapter of the stored tensor gives.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::json;

use crate::workbench::{Bench, Data, bf16_noise, f32_noise};

const EXPORT: &str = "export --merge-lora --base base --adapter adapter --out out --overwrite";
const ADAPTER: &str = "adapter/adapter_model.safetensors";
const COLUMNS: usize = 8;

/// A base of one `model_type` with tensors of these shapes.
fn base(model_type: &str, tensors: &[(&str, &[usize])]) -> Bench {
    let bench = Bench::new();
    let noise = |(seed, (name, shape)): (usize, &(&str, &[usize]))| {
        let bytes = bf16_noise(shape.iter().product(), seed as u64 + 1);
        ((*name).to_owned(), (Dtype::BF16, shape.to_vec(), bytes))
    };
    bench.tensors("base/model.safetensors", &tensors.iter().enumerate().map(noise).collect());
    bench.write("base/config.json", json!({"model_type": model_type, "tie_word_embeddings": false}).to_string());
    bench.adapter_config("adapter", json!({}));
    bench
}

/// The pair of `module`: `a` as it is, and rows `rows` of `b`.
fn pair(module: &str, a: &Data, b: &Data, rows: std::ops::Range<usize>) -> BTreeMap<String, Data> {
    let row = b.2.len() / b.1[0];
    let part = (b.0, vec![rows.len(), b.1[1]], b.2[rows.start * row..rows.end * row].to_vec());
    let key = |factor: &str| format!("base_model.model.{module}.lora_{factor}.weight");
    [(key("A"), a.clone()), (key("B"), part)].into()
}

/// The model that the adapter of these pairs gives.
fn merged(bench: &Bench, pairs: impl IntoIterator<Item = BTreeMap<String, Data>>) -> BTreeMap<String, Data> {
    bench.tensors(ADAPTER, &pairs.into_iter().flatten().collect());
    bench.ok(EXPORT);
    bench.model("out")
}

#[test]
fn rows_of_a_tensor_that_holds_others() {
    let (attention, mlp) =
        ("model.transformer.blocks.0.self_attn.att_proj.weight", "model.transformer.blocks.0.mlp.ff_proj.weight");
    let bench = base("molmo2", &[(attention, &[16, COLUMNS]), (mlp, &[12, COLUMNS])]);
    let (a, b, up) = (f32_noise(&[4, COLUMNS], 11), f32_noise(&[16, 4], 12), f32_noise(&[12, 4], 13));
    let stored = |tensor: &str| tensor.trim_end_matches(".weight").to_owned();
    let expected = merged(&bench, [pair(&stored(attention), &a, &b, 0..16), pair(&stored(mlp), &a, &up, 0..12)]);
    let module = |name: &str| format!("model.language_model.layers.0.{name}");
    let pairs = || {
        vec![
            pair(&module("self_attn.q_proj"), &a, &b, 0..8),
            pair(&module("self_attn.k_proj"), &a, &b, 8..12),
            pair(&module("self_attn.v_proj"), &a, &b, 12..16),
            pair(&module("mlp.up_proj"), &a, &up, 0..6),
            pair(&module("mlp.gate_proj"), &a, &up, 6..12),
        ]
    };
    assert!(merged(&bench, pairs()) == expected);
    // A class without what stands around it, and one part alone: the others keep their bytes.
    let alone = merged(&bench, [pair("language_model.layers.0.self_attn.k_proj", &a, &b, 8..12)]);
    let (before, row) = (bench.model("base")[attention].2.clone(), COLUMNS * 2);
    assert!(alone[attention].2[8 * row..12 * row] == expected[attention].2[8 * row..12 * row]);
    assert!(alone[attention].2[..8 * row] == before[..8 * row] && alone[attention].2[12 * row..] == before[12 * row..]);
    // Heights that no such tensor has, and what only a whole tensor can take.
    bench.tensors(ADAPTER, &pair(&module("mlp.up_proj"), &a, &up, 0..5));
    bench.refuses(EXPORT, &["mlp.up_proj.lora_A", "do not fit model.transformer.blocks.0.mlp.ff_proj"]);
    let mut dora = pair(&module("mlp.up_proj"), &a, &up, 0..6);
    let norms = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_magnitude_vector";
    dora.insert(norms.to_owned(), f32_noise(&[6], 14));
    bench.tensors(ADAPTER, &dora);
    bench.refuses(EXPORT, &["only an ordinary delta can be added", "serve the adapter beside the base with PEFT"]);
}

#[test]
fn a_weight_that_two_tensors_hold() {
    let stored = |name: &str| format!("language_model.model.layers.0.block_sparse_moe.shared_experts.{name}");
    let (gate, up) = (stored("gate_proj"), stored("up_proj"));
    let shapes: [(&str, &[usize]); 2] =
        [(&format!("{gate}.weight"), &[6, COLUMNS]), (&format!("{up}.weight"), &[6, COLUMNS])];
    let bench = base("minimax_m3_vl", &shapes);
    let (a, b) = (f32_noise(&[4, COLUMNS], 11), f32_noise(&[12, 4], 12));
    let expected = merged(&bench, [pair(&gate, &a, &b, 0..6), pair(&up, &a, &b, 6..12)]);
    let module = "model.language_model.layers.0.mlp.shared_experts.gate_up_proj";
    assert!(merged(&bench, [pair(module, &a, &b, 0..12)]) == expected);
    bench.tensors(ADAPTER, &pair(module, &a, &b, 0..10));
    bench.refuses(EXPORT, &["do not fit"]);
}

#[test]
fn experts_whose_projections_are_stacks_of_their_own() {
    let [gate, up] = ["gate_proj", "up_proj"].map(|name| format!("model.layers.1.moe.{name}.weight"));
    let shapes: [(&str, &[usize]); 2] = [(&gate, &[3, 5, COLUMNS]), (&up, &[3, 5, COLUMNS])];
    let bench = base("step3p7", &shapes);
    let config = json!({"target_parameters": ["mlp.experts.gate_up_proj"]});
    bench.adapter_config("adapter", config);
    let module = "model.language_model.layers.1.mlp.experts";
    let factors = pair(module, &f32_noise(&[12, COLUMNS], 11), &f32_noise(&[10, 12], 12), 0..10);
    let apart = merged(&bench, [factors.clone()]);
    // The same experts as one parameter.
    let stacks = bench.model("base");
    let expert = 5 * COLUMNS * 2;
    let halves = |expert: std::ops::Range<usize>| [&gate, &up].map(|half| stacks[half].2[expert.clone()].to_vec());
    let bytes: Vec<u8> = (0..3).flat_map(|e| halves(e * expert..(e + 1) * expert)).flatten().collect();
    let one = "model.language_model.layers.1.mlp.experts.gate_up_proj";
    let whole = [(one.to_owned(), (Dtype::BF16, vec![3, 10, COLUMNS], bytes))].into();
    bench.tensors("base/model.safetensors", &whole);
    let whole = merged(&bench, [factors])[one].2.clone();
    for (at, name) in [&gate, &up].into_iter().enumerate() {
        let rows = (0..3).flat_map(|e| whole[(2 * e + at) * expert..(2 * e + at + 1) * expert].to_vec());
        assert!(apart[name].2 == rows.collect::<Vec<u8>>() && apart[name].2 != stacks[name].2, "{name}");
    }
}

#[test]
fn what_has_an_order_of_its_own_is_refused_by_name() {
    let qkv = "vision_tower.encoder.blocks.0.wqkv.weight";
    let bench = base("kimi_k25", &[(qkv, &[24, COLUMNS])]);
    let (a, b) = (f32_noise(&[4, COLUMNS], 11), f32_noise(&[8, 4], 12));
    let module = |name: &str| format!("model.vision_tower.layers.0.attn.{name}_proj");
    bench.tensors(ADAPTER, &pair(&module("q"), &a, &b, 0..8));
    bench.refuses(EXPORT, &[qkv, "in another order", "train without these modules"]);
    // The last third is in order.
    let out = merged(&bench, [pair(&module("v"), &a, &b, 0..8)])[qkv].2.clone();
    let before = &bench.model("base")[qkv].2;
    let row = COLUMNS * 2;
    assert!(out[..16 * row] == before[..16 * row] && out[16 * row..] != before[16 * row..]);
    // An encoder's weight that is the decoder's, too.
    let shared = "model.decoder.layers.0.mlp.up_proj.weight";
    let bench = base("diffusion_gemma", &[(shared, &[8, COLUMNS])]);
    bench.tensors(ADAPTER, &pair("model.encoder.language_model.layers.0.mlp.up_proj", &a, &b, 0..8));
    bench.refuses(EXPORT, &[shared, "which another part of the model shares"]);
}
