//! Adapters of other tools: as PEFT, transformers, Unsloth, DeepSpeed and torch.compile leave them. Each is merged like
//! its plain form, or refused with a way out. Bases are in `brought_bases`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::workbench::{Bench, Data, bf16_noise, f32_noise};

pub(crate) const EXPORT: &str = "export --merge-lora --base base --adapter adapter --out out";
pub(crate) const ADAPTER: &str = "adapter/adapter_model.safetensors";

/// A base and an adapter, and what the plain export of both gives.
pub(crate) fn bench() -> (Bench, BTreeMap<String, Data>) {
    let bench = Bench::new();
    bench.base(32);
    bench.adapter("adapter", 32);
    bench.ok("export --merge-lora --base base --adapter adapter --out plain");
    let merged = bench.model("plain");
    (bench, merged)
}

fn renamed(tensors: BTreeMap<String, Data>, to: impl Fn(&str) -> String) -> BTreeMap<String, Data> {
    tensors.into_iter().map(|(name, data)| (to(&name), data)).collect()
}

/// Sets keys of the base's config.json.
pub(crate) fn configure(bench: &Bench, keys: Value) {
    let mut config = bench.json("base/config.json");
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    bench.write("base/config.json", config.to_string());
}

#[test]
fn wrappers_of_training_leave_no_mark() {
    let (bench, merged) = bench();
    let adapter = bench.model("adapter");
    type Rename = fn(&str) -> String;
    let around: [Rename; 4] = [
        |name| format!("_orig_mod.{name}"),
        |name| name.replace("base_model.model.", "base_model.model._orig_mod."),
        |name| name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn._checkpoint_wrapped_module."),
        |name| format!("module.{name}"),
    ];
    for rename in around {
        bench.tensors(ADAPTER, &renamed(adapter.clone(), rename));
        bench.ok(&format!("{EXPORT} --overwrite"));
        assert!(bench.model("out") == merged);
    }
}

#[test]
fn a_saved_embedding_may_be_there_three_times() {
    for (rows, tied) in [(53, false), (53, true), (41, false), (48, false)] {
        let bench = Bench::new();
        let mut base = bench.base(32);
        if tied {
            base.remove("lm_head.weight");
            bench.tensors("base/model.safetensors", &base);
            configure(&bench, json!({"tie_word_embeddings": true}));
        }
        let mut adapter = bench.adapter("adapter", 32);
        for (seed, module) in [(7, "model.embed_tokens"), (if tied { 7 } else { 8 }, "lm_head")] {
            let trained = (Dtype::BF16, vec![rows, 32], bf16_noise(rows * 32, seed));
            let key = |part: &str| format!("base_model.model.{module}{part}.weight");
            adapter.insert(key(""), trained.clone());
            adapter.insert(key(".modules_to_save"), trained);
            adapter.insert(key(".original_module"), (Dtype::BF16, vec![rows, 32], bf16_noise(rows * 32, 70 + seed)));
        }
        bench.tensors(ADAPTER, &adapter);
        bench.adapter_config("adapter", json!({"modules_to_save": ["embed_tokens", "lm_head"]}));
        bench.ok(EXPORT);
        let out = bench.model("out");
        assert!(out["model.embed_tokens.weight"].2 == bf16_noise(rows * 32, 7), "{rows} {tied}");
        assert_eq!(out.get("lm_head.weight").map(|head| head.1.clone()), (!tied).then(|| vec![rows, 32]));
        let config = bench.json("out/config.json");
        assert_eq!((&config["vocab_size"], &config["tie_word_embeddings"]), (&json!(rows), &json!(tied)));
        bench.ok("verify out --audit --base base --adapter adapter");

        // Two values for one tensor are no spelling.
        let other = (Dtype::BF16, vec![rows, 32], bf16_noise(rows * 32, 99));
        adapter.insert("base_model.model.lm_head.modules_to_save.weight".to_owned(), other);
        bench.tensors(ADAPTER, &adapter);
        bench.refuses(&format!("{EXPORT} --overwrite"), &["lm_head", "with two spellings and different values"]);
        adapter.retain(|name, _| !name.contains("lm_head") || name.contains("original_module"));
        bench.tensors(ADAPTER, &adapter);
        bench.refuses(&format!("{EXPORT} --overwrite"), &["lm_head.original_module", "trained values are missing"]);
    }
}

#[test]
fn weights_that_nobody_gathered_say_how_to_gather_them() {
    let (bench, _) = bench();
    let mut adapter = bench.model("adapter");
    adapter.values_mut().for_each(|data| *data = (Dtype::F32, vec![0], Vec::new()));
    bench.tensors(ADAPTER, &adapter);
    bench.refuses(
        EXPORT,
        &["8 empty tensors of 8", "ZeRO-3", "stage3_gather_16bit_weights_on_model_save", "zero_to_fp32"],
    );
    bench.tensors(ADAPTER, &BTreeMap::new());
    bench.refuses(EXPORT, &["holds no tensor", "zero_to_fp32"]);
    // Of matrices that were split by rows, and of a base.
    adapter.values_mut().for_each(|data| data.1 = vec![0, 32]);
    bench.tensors(ADAPTER, &adapter);
    bench.refuses(EXPORT, &["8 empty tensors of 8", "of shape [0, 32]", "ZeRO-3"]);
    let mut base = bench.model("base");
    base.values_mut().for_each(|data| *data = (Dtype::BF16, vec![0], Vec::new()));
    bench.tensors("base/model.safetensors", &base);
    bench.refuses("export --base base --out never", &["empty tensors of", "ZeRO-3"]);
}

/// transformers names a part of a model one way in memory, and its file has it another way.
#[test]
fn a_module_is_found_by_every_name_that_its_class_has_for_it() {
    let rows: [(&str, &str); 9] = [
        ("model.layers.", "model.language_model.layers."),
        ("model.layers.", "language_model.model.layers."),
        ("model.layers.", "thinker.model.layers."),
        ("model.language_model.layers.", "thinker.model.layers."),
        ("thinker.model.language_model.layers.", "thinker.model.layers."),
        ("model.language_model.layers.", "language_model.model.layers."),
        ("model.vision_tower.encoder.layers.", "vision_tower.vision_model.encoder.layers."),
        ("model.vision_tower.layers.", "vision_tower.layers."),
        ("model.visual.blocks.", "visual.blocks."),
    ];
    for (class, disk) in rows {
        let (bench, merged) = bench();
        let on_disk = |name: &str| name.replace("model.layers.", disk);
        bench.tensors("base/model.safetensors", &renamed(bench.model("base"), on_disk));
        let in_class =
            |name: &str| name.replace("base_model.model.model.layers.", &format!("base_model.model.{class}"));
        bench.tensors(ADAPTER, &renamed(bench.model("adapter"), in_class));
        bench.ok(EXPORT);
        assert!(bench.model("out") == renamed(merged, on_disk), "{class} is {disk}");
    }
}

#[test]
fn a_text_adapter_leaves_the_other_models_of_its_base_alone() {
    let (bench, merged) = bench();
    let mut base = renamed(bench.model("base"), |name| format!("thinker.{name}"));
    for (name, data) in bench.model("base") {
        base.insert(format!("talker.{name}"), data);
    }
    bench.tensors("base/model.safetensors", &base);
    bench.ok(EXPORT);
    let out = bench.model("out");
    for (name, data) in merged {
        assert!(out[&format!("thinker.{name}")] == data, "{name}");
        let talker = format!("talker.{name}");
        assert!(out[&talker] == base[&talker], "{talker}");
    }
}

/// Experts as gpt-oss keeps them, `(E, in, out)`, and adapters of lists of linear layers, as its class for 4-bit weights
/// has.
#[test]
fn lists_of_experts_are_slices_of_the_stack() {
    let bench = Bench::new();
    bench.base(32);
    configure(&bench, json!({"model_type": "gpt_oss"}));
    let mut base = bench.model("base");
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    base.insert(name.to_owned(), (Dtype::F32, vec![3, 32, 24], f32_noise(&[3, 32, 24], 5).2));
    bench.tensors("base/model.safetensors", &base);
    let (a, b) = (f32_noise(&[4, 32], 11), f32_noise(&[24, 4], 12));
    let key = |part: &str| format!("base_model.model.model.layers.0.mlp.experts.gate_up_projs.1.lora_{part}.weight");
    bench.tensors(ADAPTER, &[(key("A"), a.clone()), (key("B"), b.clone())].into());
    bench.adapter_config("adapter", json!({}));
    bench.ok(EXPORT);
    let floats = |data: &Data| -> Vec<f32> {
        data.2.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let (before, after) = (floats(&base[name]), floats(&bench.model("out")[name]));
    let (a, b) = (floats(&a), floats(&b));
    for at in 0..before.len() {
        let (expert, input, output) = (at / (32 * 24), at / 24 % 32, at % 24);
        let delta =
            if expert == 1 { 2.0 * (0..4).map(|k| b[output * 4 + k] * a[k * 32 + input]).sum::<f32>() } else { 0.0 };
        assert!((after[at] - before[at] - delta).abs() < 1e-6, "{expert} {input} {output}");
    }
    bench.tensors(
        ADAPTER,
        &[
            (key("A").replace(".1.", ".3."), f32_noise(&[4, 32], 1)),
            (key("B").replace(".1.", ".3."), f32_noise(&[24, 4], 1)),
        ]
        .into(),
    );
    bench.refuses(&format!("{EXPORT} --overwrite"), &["gate_up_projs.3"]);
}

/// PEFT lists a parameter by both of its names where `target_modules` and `target_parameters` meant it.
#[test]
fn a_parameter_that_is_named_twice_has_one_wrapper() {
    let bench = Bench::new();
    let mut base = bench.base(32);
    for (name, shape) in [("gate_up_proj", [3, 24, 32]), ("down_proj", [3, 32, 12])] {
        let bytes = bf16_noise(shape.iter().product(), 5);
        base.insert(format!("model.layers.0.mlp.experts.{name}"), (Dtype::BF16, shape.to_vec(), bytes));
    }
    bench.tensors("base/model.safetensors", &base);
    let key = |part: &str| format!("base_model.model.model.layers.0.mlp.experts.{part}.weight");
    bench.tensors(
        ADAPTER,
        &[
            (key("base_layer.lora_A"), f32_noise(&[24, 32], 1)),
            (key("base_layer.lora_B"), f32_noise(&[24, 24], 2)),
            (key("lora_A"), f32_noise(&[12, 12], 3)),
            (key("lora_B"), f32_noise(&[32, 12], 4)),
        ]
        .into(),
    );
    let twice = ["down_proj", "mlp.experts.down_proj", "gate_up_proj", "mlp.experts.gate_up_proj"];
    let patterns = json!({".*\\.gate_up_proj": 8});
    for (names, out) in [(&twice[..], "twice"), (&[twice[1], twice[3]][..], "once")] {
        bench.adapter_config(
            "adapter",
            json!({"target_parameters": names, "rank_pattern": patterns, "alpha_pattern": {".*\\.gate_up_proj": 16}}),
        );
        bench.ok(&format!("export --merge-lora --base base --adapter adapter --out {out}"));
    }
    assert!(bench.model("twice") == bench.model("once") && bench.model("once") != base);
}

#[test]
fn a_head_of_its_own_stays_apart_whatever_the_flag_says() {
    let bench = Bench::new();
    let base = bench.base(32);
    configure(&bench, json!({"tie_word_embeddings": true}));
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let key = |part: &str| format!("base_model.model.lm_head.{part}.weight");
    let pair = [(key("lora_A"), f32_noise(&[4, 32], 1)), (key("lora_B"), f32_noise(&[48, 4], 2))];
    bench.tensors(ADAPTER, &pair.into());
    bench.adapter_config("adapter", json!({}));
    let said = bench.ok(EXPORT);
    assert!(said.err.contains("separate values") && said.err.contains("transformers 4"), "{}", said.err);
    let out = bench.model("out");
    assert!(out[embedding] == base[embedding] && out[head] != base[head] && out[head] != base[embedding]);
    assert_eq!(bench.json("out/config.json")["tie_word_embeddings"], false);

    let rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta".to_owned();
    bench.tensors(ADAPTER, &[(rows, f32_noise(&[2, 32], 3))].into());
    bench.adapter_config("adapter", json!({"trainable_token_indices": [3, 5]}));
    bench.ok(&format!("{EXPORT} --overwrite"));
    // PEFT goes by the flag, and trains the same rows of both; the other rows of each keep their own bytes.
    let out = bench.model("out");
    for name in [embedding, head] {
        let rows = out[name].2.chunks_exact(64).zip(base[name].2.chunks_exact(64)).enumerate();
        let changed: Vec<usize> = rows.filter(|(_, (a, b))| a != b).map(|(row, _)| row).collect();
        assert_eq!(changed, [3, 5], "{name}");
    }

    // Without an adapter, too: what is published says one thing.
    bench.ok("export --base base --out plain");
    assert_eq!(bench.json("plain/config.json")["tie_word_embeddings"], false);
    let said = bench.qft("verify base");
    assert_eq!(said.code, Some(3), "{}", said.out);
    assert!(said.out.contains("lm_head.weight has separate values"), "{}", said.out);
}

#[test]
fn a_classifier_is_published_under_its_class() {
    for (task, labels, class) in [
        ("SEQ_CLS", 1, "LlamaForSequenceClassification"),
        ("SEQ_CLS", 5, "LlamaForSequenceClassification"),
        ("TOKEN_CLS", 3, "LlamaForTokenClassification"),
    ] {
        let (bench, _) = bench();
        let mut adapter = bench.model("adapter");
        adapter.insert("base_model.model.score.weight".to_owned(), f32_noise(&[labels, 32], 1));
        bench.tensors(ADAPTER, &adapter);
        bench.adapter_config("adapter", json!({"task_type": task, "modules_to_save": ["score"]}));
        bench.ok(EXPORT);
        let config = bench.json("out/config.json");
        assert_eq!(config["architectures"], json!([class]));
        assert_eq!(config["id2label"].as_object().unwrap().len(), labels);
        assert_eq!(config["label2id"]["LABEL_0"], 0);
        assert_eq!(bench.model("out")["score.weight"].1, [labels, 32]);
        assert_eq!(bench.qft("verify out").code, Some(0));
        // A number that somebody wrote by hand.
        configure(&bench, json!({"num_labels": 2}));
        bench.ok(&format!("{EXPORT} --overwrite"));
        assert_eq!(bench.json("out/config.json")["num_labels"], labels);
        bench.adapter_config("adapter", json!({"modules_to_save": ["score"]}));
        bench.refuses(&format!("{EXPORT} --overwrite"), &["score.weight", "task_type", "SEQ_CLS"]);
    }
}

/// `fixtures/make_torch.py` saved one adapter with torch.save and as safetensors.
#[test]
fn a_file_of_torch_save_gives_what_safetensors_give() {
    let (bench, _) = bench();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/torch");
    let put = |name: &str| {
        for old in ["adapter_model.safetensors", "adapter_model.bin"] {
            let _ = fs::remove_file(bench.path("adapter").join(old));
        }
        fs::copy(fixture.join(name), bench.path("adapter").join(name)).unwrap();
    };
    put("adapter_model.safetensors");
    bench.ok("export --merge-lora --base base --adapter adapter --out safe");
    put("adapter_model.bin");
    bench.ok(EXPORT);
    assert!(bench.model("out") == bench.model("safe"));
    let digest = &bench.json("out/qft-manifest.json")["adapters"][0]["files"]["adapter_model.bin"]["sha256"];
    let sum = std::process::Command::new("sha256sum").arg(bench.path("adapter/adapter_model.bin")).output().unwrap();
    assert!(String::from_utf8(sum.stdout).unwrap().starts_with(digest.as_str().unwrap()));
    assert!(bench.ok("verify out --audit --base base --adapter adapter").out.contains("clean"));
    let whole = fs::read(bench.path("adapter/adapter_model.bin")).unwrap();
    bench.write("adapter/adapter_model.bin", &whole[..whole.len() / 2]);
    bench.refuses(&format!("{EXPORT} --overwrite"), &["adapter_model.bin", "save it again"]);
    bench.write("adapter/adapter_model.bin", b"\x80\x02cos\nsystem\n.");
    bench.refuses(&format!("{EXPORT} --overwrite"), &["older than 1.6"]);
}

#[test]
fn a_base_that_is_not_here_says_who_named_it() {
    let (bench, _) = bench();
    bench.adapter_config("adapter", json!({"base_model_name_or_path": "/home/other/models/base"}));
    let words = ["adapter_config.json of adapter names /home/other/models/base as the base", "--base"];
    bench.refuses("export --merge-lora --adapter adapter --out out", &words);
    bench.ok(EXPORT);
    // A copy with 4-bit weights is told by its name, before it is downloaded.
    bench.adapter_config("adapter", json!({"base_model_name_or_path": "unsloth/Qwen2.5-7B-bnb-4bit"}));
    let said = bench
        .refuses("export --merge-lora --adapter adapter --out never", &["4 or 8 bits", "--base unsloth/Qwen2.5-7B"]);
    assert!(!said.err.contains("downloading"), "{}", said.err);
    bench.ok(&format!("{EXPORT} --overwrite"));
}

/// A base model learns to end its turns from a chat template that its generation_config.json knows nothing of.
#[test]
fn what_ends_a_turn_ends_an_answer() {
    let bench = Bench::new();
    bench.trainee("base", "qwen2");
    bench.tensors(
        ADAPTER,
        &[
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".to_owned(), f32_noise(&[4, 32], 1)),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight".to_owned(), f32_noise(&[32, 4], 2)),
        ]
        .into(),
    );
    bench.adapter_config("adapter", json!({}));
    let stops = |out: &str| bench.json(format!("{out}/generation_config.json"))["eos_token_id"].clone();
    // 376 is <|endoftext|>, 378 is <|im_end|>.
    for (generation, expected) in [
        (json!({"eos_token_id": 376, "do_sample": true}), json!([376, 378])),
        (json!({"eos_token_id": [376]}), json!([376, 378])),
        (json!({"do_sample": false}), json!([378])),
        (json!({"eos_token_id": [376, 378]}), json!([376, 378])),
        (json!({"eos_token_id": 378}), json!(378)),
    ] {
        bench.write("base/generation_config.json", generation.to_string());
        let plan = bench.ok(&format!("{EXPORT} --overwrite --dry-run")).out;
        bench.ok(&format!("{EXPORT} --overwrite"));
        assert_eq!(stops("out"), expected, "{generation}");
        let changed = stops("out") != generation["eos_token_id"];
        assert_eq!(plan.contains("<|im_end|> ends a turn"), changed, "{plan}");
        let manifest = bench.json("out/qft-manifest.json")["config_changes"].to_string();
        assert_eq!(manifest.contains("378"), changed, "{manifest}");
        assert!(bench.ok("verify out --audit --base base --adapter adapter").out.contains("clean"));
    }
    fs::remove_file(bench.path("base/generation_config.json")).unwrap();
    let mut config = bench.json("base/config.json");
    config["eos_token_id"] = json!(376);
    config["bos_token_id"] = json!(0);
    bench.write("base/config.json", config.to_string());
    bench.ok(&format!("{EXPORT} --overwrite"));
    assert_eq!(bench.json("out/generation_config.json"), json!({"bos_token_id": 0, "eos_token_id": [376, 378]}));
    // What somebody else made is not mended, but said.
    bench.ok("export --base base --out plain");
    assert!(!bench.path("plain/generation_config.json").exists());
    assert!(bench.ok("verify plain").out.contains("answers end with <|im_end|> (id 378)"));
}

#[test]
fn the_tokenizer_is_one_set() {
    let (bench, _) = bench();
    bench.write("base/tokenizer.model", "sentencepiece");
    bench.write("base/special_tokens_map.json", r#"{"eos_token": "<old>"}"#);
    bench.write("base/added_tokens.json", "{}");
    let added = json!([{"id": 47, "content": "<new>", "special": true}]);
    bench.write("adapter/tokenizer.json", json!({"model": {"vocab": {"a": 0}}, "added_tokens": added}).to_string());
    bench.write("adapter/tokenizer_config.json", r#"{"eos_token": "<new>"}"#);
    let said = bench.ok(EXPORT);
    let tokenizer =
        |out: &str| -> Vec<String> { bench.files(out).into_keys().filter(|name| name.contains("token")).collect() };
    assert_eq!(tokenizer("out"), ["tokenizer.json", "tokenizer_config.json"]);
    assert!(!said.err.contains("token"), "{}", said.err);
    bench.ok(&format!("{EXPORT} --overwrite --tokenizer base"));
    assert_eq!(tokenizer("out"), ["added_tokens.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model"]);
    assert_eq!(bench.read("out/tokenizer.json"), "{}");

    let beyond = json!({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 48, "content": "<new>"}]});
    bench.write("adapter/tokenizer.json", beyond.to_string());
    bench.write("adapter/tokenizer_config.json", r#"{"tokenizer_class": "TokenizersBackend"}"#);
    let said = bench.ok(&format!("{EXPORT} --overwrite"));
    for word in ["ids up to 48 (<new> ...)", "48 rows", "--tokenizer base", "TokenizersBackend"] {
        assert!(said.err.contains(word), "{}", said.err);
    }
    assert!(bench.ok("verify out").out.contains("warning: tokenizer.json: has ids up to 48"));
    fs::remove_file(bench.path("adapter/tokenizer.json")).unwrap();
    bench.refuses(
        &format!("{EXPORT} --overwrite --tokenizer adapter"),
        &["no adapter has a vocabulary", "--tokenizer base"],
    );
}

#[test]
fn verify_looks_at_any_directory_as_loaders_do() {
    let bench = Bench::new();
    bench.base(32);
    configure(&bench, json!({"num_hidden_layers": 3, "vocab_size": 50}));
    let said = bench.qft("verify base");
    assert_eq!(said.code, Some(3));
    for word in ["num_hidden_layers is 3, but layer 2 has no tensor", "vocab_size is 50"] {
        assert!(said.out.contains(word), "{}", said.out);
    }
    bench.refuses("export --base base --out out", &["would not load", "num_hidden_layers is 3"]);
    configure(&bench, json!({"num_hidden_layers": 2, "vocab_size": 48}));
    assert_eq!(bench.qft("verify base").code, Some(0));
    bench.write("base/modules.json", r#"[{"path": ""}, {"path": "1_Pooling"}]"#);
    assert!(bench.ok("verify base").out.contains("warning: modules.json: names 1_Pooling"));
    bench.write("base/1_Pooling/config.json", "{}");
    bench.ok("export --base base --out out");
    assert!(bench.path("out/1_Pooling/config.json").exists() && !bench.ok("verify out").out.contains("1_Pooling"));
}
