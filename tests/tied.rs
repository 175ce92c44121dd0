//! Tied embeddings beyond the golden cases: resized while tied, and heads that are stored although they are tied.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::json;

use crate::workbench::{Bench, Data, bf16_noise, f32_noise};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const EXPORT: &str = "export --merge-lora --base base --adapter adapter --out out";

/// A base of 32 columns whose head is tied; stored in the file or not.
fn bench(stored: bool) -> Bench {
    let bench = Bench::new();
    let mut tensors = bench.base(32);
    tensors.remove(HEAD);
    if stored {
        tensors.insert(HEAD.to_owned(), tensors[EMBEDDING].clone());
    }
    bench.tensors("base/model.safetensors", &tensors);
    let config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 48, "tie_word_embeddings": true});
    bench.write("base/config.json", config.to_string());
    bench
}

/// A LoRA of rank 4 on one side, and that side's base layer with `rows` rows, as PEFT saves it.
fn adapter(bench: &Bench, side: &str, rows: usize, base_layer: &[u8]) {
    let (module, a, b) = match side {
        EMBEDDING => ("model.embed_tokens", ("lora_embedding_A", vec![4, rows]), ("lora_embedding_B", vec![32, 4])),
        _ => ("lm_head", ("lora_A.weight", vec![4, 32]), ("lora_B.weight", vec![rows, 4])),
    };
    let key = |part: &str| format!("base_model.model.{module}.{part}");
    let mut tensors: BTreeMap<String, Data> = BTreeMap::new();
    tensors.insert(key(a.0), f32_noise(&a.1, 1));
    tensors.insert(key(b.0), f32_noise(&b.1, 2));
    tensors.insert(key("base_layer.weight"), (Dtype::BF16, vec![rows, 32], base_layer.to_vec()));
    bench.tensors("adapter/adapter_model.safetensors", &tensors);
    bench.adapter_config("adapter", json!({}));
}

#[test]
fn a_resized_vocabulary_reaches_the_side_that_was_not_trained() {
    for (trained, other) in [(EMBEDDING, HEAD), (HEAD, EMBEDDING)] {
        let bench = bench(false);
        let resized = bf16_noise(52 * 32, 7);
        adapter(&bench, trained, 52, &resized);
        bench.ok(EXPORT);
        let out = bench.model("out");
        assert_eq!(out[other], (Dtype::BF16, vec![52, 32], resized.clone()), "{other} is the resized base");
        assert_eq!(out[trained].1, [52, 32]);
        assert_ne!(out[trained].2, resized, "{trained} is merged");
        let config = bench.json("out/config.json");
        assert_eq!((&config["tie_word_embeddings"], &config["vocab_size"]), (&json!(false), &json!(52)));
    }
}

#[test]
fn a_stored_head_is_untied_by_the_flag_alone() {
    for (trained, other) in [(EMBEDDING, HEAD), (HEAD, EMBEDDING)] {
        let bench = bench(true);
        let base = bench.model("base");
        adapter(&bench, trained, 48, &base[EMBEDDING].2);
        bench.ok(EXPORT);
        let out = bench.model("out");
        assert!(out[other] == base[other] && out[trained] != base[trained]);
        assert_eq!(bench.json("out/config.json")["tie_word_embeddings"], false);
    }
}

#[test]
fn rows_of_values_go_to_both_sides_of_a_stored_pair() {
    let bench = bench(true);
    let rows = f32_noise(&[2, 32], 3);
    let key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta".to_owned();
    bench.tensors("adapter/adapter_model.safetensors", &[(key, rows)].into());
    bench.adapter_config("adapter", json!({"trainable_token_indices": [40, 3]}));
    bench.ok(EXPORT);
    let (out, base) = (bench.model("out"), bench.model("base"));
    assert!(out[EMBEDDING] == out[HEAD] && out[HEAD] != base[HEAD]);
    assert_eq!(bench.json("out/config.json")["tie_word_embeddings"], true);
}

/// The flag that ties the head of an encoder-decoder ties both sides' embeddings, too.
#[test]
fn what_is_untied_from_a_shared_embedding_is_written_for_all() {
    let bench = Bench::new();
    let mut tensors = bench.base(32);
    tensors.remove(HEAD);
    let shared = tensors.remove(EMBEDDING).unwrap();
    tensors.insert("model.shared.weight".to_owned(), shared.clone());
    bench.tensors("base/model.safetensors", &tensors);
    let config = json!({"architectures": ["BartForConditionalGeneration"], "model_type": "bart", "vocab_size": 48, "tie_word_embeddings": true});
    bench.write("base/config.json", config.to_string());
    adapter(&bench, HEAD, 48, &shared.2);
    bench.ok(EXPORT);
    let out = bench.model("out");
    for name in ["model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"] {
        assert!(out[name] == shared, "{name}");
    }
    assert!(out[HEAD] != shared);
}

#[test]
fn a_head_that_goes_by_an_unknown_name_is_not_made_up() {
    let bench = bench(false);
    let config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 48, "tie_word_embeddings": false});
    bench.write("base/config.json", config.to_string());
    adapter(&bench, HEAD, 48, &bench.model("base")[EMBEDDING].2);
    bench.refuses(EXPORT, &["the base has no lm_head.weight"]);
    // Rows of an embedding whose head is not known, either.
    let mut tensors = bench.model("base");
    let embedding = tensors.remove(EMBEDDING).unwrap();
    tensors.insert("odd.words.weight".to_owned(), embedding);
    bench.tensors("base/model.safetensors", &tensors);
    bench.write("base/config.json", json!({"architectures": ["OddForCausalLM"], "vocab_size": 48}).to_string());
    let key = "base_model.model.odd.words.token_adapter.trainable_tokens_delta".to_owned();
    bench.tensors("adapter/adapter_model.safetensors", &[(key, f32_noise(&[2, 32], 3))].into());
    bench.adapter_config("adapter", json!({"trainable_token_indices": {"words": [40, 3]}}));
    bench.refuses(EXPORT, &["may be tied to a head", "tie_word_embeddings"]);
    bench.tensors(
        "adapter/adapter_model.safetensors",
        &[("base_model.model.odd.words.weight".to_owned(), f32_noise(&[48, 32], 3))].into(),
    );
    bench.adapter_config("adapter", json!({"modules_to_save": ["words"]}));
    bench.refuses(EXPORT, &["may be tied to a head", "tie_word_embeddings"]);
}

/// PEFT writes both sides of a resized pair, whatever the embedding is called.
#[test]
fn a_head_that_comes_with_its_embedding_stays_tied() {
    let bench = Bench::new();
    let mut tensors = bench.base(32);
    tensors.remove(HEAD);
    let embedding = tensors.remove(EMBEDDING).unwrap();
    tensors.insert("transformer.wte.weight".to_owned(), embedding);
    bench.tensors("base/model.safetensors", &tensors);
    let config = json!({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 48, "tie_word_embeddings": true});
    bench.write("base/config.json", config.to_string());
    let grown = (Dtype::BF16, vec![59, 32], bf16_noise(59 * 32, 7));
    let file = "adapter/adapter_model.safetensors";
    let key = |module: &str| format!("base_model.model.{module}.weight");
    bench.tensors(file, &[(key("transformer.wte"), grown.clone()), (key("lm_head"), grown.clone())].into());
    bench.adapter_config("adapter", json!({}));
    bench.ok(EXPORT);
    let out = bench.model("out");
    assert!(out["transformer.wte.weight"] == grown && !out.contains_key(HEAD));
    let config = bench.json("out/config.json");
    assert_eq!((&config["tie_word_embeddings"], &config["vocab_size"]), (&json!(true), &json!(59)));
    // The embedding alone: the head's new rows would be anyone's guess.
    bench.tensors(file, &[(key("transformer.wte"), grown)].into());
    bench.refuses(&format!("{EXPORT} --overwrite"), &["the head's new rows are in no file"]);
}

/// PEFT trains the head's rows with the embedding's where the whole model's flag ties them, not where a section's does.
#[test]
fn token_rows_reach_a_head_of_its_own_by_the_flag_of_the_whole() {
    let bench = bench(true);
    let mut base = bench.model("base");
    base.insert(HEAD.to_owned(), (Dtype::BF16, vec![48, 32], bf16_noise(48 * 32, 9)));
    bench.tensors("base/model.safetensors", &base);
    let key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta".to_owned();
    bench.tensors("adapter/adapter_model.safetensors", &[(key, f32_noise(&[2, 32], 3))].into());
    bench.adapter_config("adapter", json!({"trainable_token_indices": [40, 3]}));
    for whole in [true, false] {
        let config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 48, "tie_word_embeddings": whole,
            "text_config": {"tie_word_embeddings": true, "vocab_size": 48}});
        bench.write("base/config.json", config.to_string());
        bench.ok(&format!("{EXPORT} --overwrite"));
        let out = bench.model("out");
        assert!(out[EMBEDDING] != base[EMBEDDING]);
        assert_eq!(out[HEAD] != base[HEAD], whole);
    }
}
