//! What people bring: adapters and bases as PEFT, transformers, Unsloth, DeepSpeed and torch.compile leave them. Each is
//! merged like its plain form, or refused with a way out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::workbench::{Bench, Data, bf16_noise, f32_noise};

const EXPORT: &str = "export --merge-lora --base base --adapter adapter --out out";
const ADAPTER: &str = "adapter/adapter_model.safetensors";

/// A base and an adapter, and what the plain export of both gives.
fn bench() -> (Bench, BTreeMap<String, Data>) {
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
fn configure(bench: &Bench, keys: Value) {
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
        bench.refuses(&format!("{EXPORT} --overwrite"), &["lm_head", "under two spellings and with two values"]);
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
    assert!(said.err.contains("values of its own") && said.err.contains("transformers 4"), "{}", said.err);
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
    assert!(said.out.contains("lm_head.weight has values of its own"), "{}", said.out);
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
        bench.adapter_config("adapter", json!({"modules_to_save": ["score"]}));
        bench.refuses(&format!("{EXPORT} --overwrite"), &["score.weight", "task_type", "SEQ_CLS"]);
    }
}

#[test]
fn numbered_shards_need_no_index() {
    let (bench, merged) = bench();
    bench.ok("export --base base --max-shard 8KB --out sharded");
    fs::remove_file(bench.path("sharded/model.safetensors.index.json")).unwrap();
    let said = bench.ok("export --merge-lora --base sharded --adapter adapter --out out");
    assert!(said.err.contains("index.json is missing"), "{}", said.err);
    assert!(bench.model("out") == merged);
    bench.ok("export --base sharded --max-shard 8KB --out again");
    assert!(bench.path("again/model.safetensors.index.json").exists());
    let shard = bench.files("sharded").into_keys().rfind(|name| name.starts_with("model-")).unwrap();
    fs::remove_file(bench.path(format!("sharded/{shard}"))).unwrap();
    bench.refuses("export --base sharded --out never", &[&shard, "is missing"]);
}

#[test]
fn an_index_may_name_what_no_loader_asks_for() {
    let (bench, merged) = bench();
    configure(&bench, json!({"num_hidden_layers": 2}));
    bench.ok("export --base base --max-shard 8KB --out sharded");
    let index = bench.json("sharded/model.safetensors.index.json");
    let with = |name: &str| {
        let mut index = index.clone();
        index["weight_map"][name] = index["weight_map"]["model.norm.weight"].clone();
        bench.write("sharded/model.safetensors.index.json", index.to_string());
    };
    let export = "export --merge-lora --base sharded --adapter adapter --out out --overwrite";
    for name in ["model.layers.2.self_attn.q_proj.weight", "model.layers.9.mtp.weight", "mtp.norm.weight"] {
        with(name);
        assert!(bench.ok(export).err.contains(name));
        assert!(bench.model("out") == merged);
    }
    with("model.layers.1.mlp.up_proj.weight");
    bench.ok(export);
    fs::remove_file(bench.path("sharded/model.safetensors.index.json")).unwrap();
    // A layer that others have is needed.
    let file = |name: &str| index["weight_map"][name].as_str().unwrap().to_owned();
    let shard = format!("sharded/{}", file("model.layers.1.self_attn.q_proj.weight"));
    let mut tensors = BTreeMap::new();
    for (name, view) in safetensors::SafeTensors::deserialize(&fs::read(bench.path(&shard)).unwrap()).unwrap().tensors()
    {
        if !name.contains("layers.1.self_attn.q_proj") {
            tensors.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    bench.tensors(&shard, &tensors);
    bench.write("sharded/model.safetensors.index.json", index.to_string());
    bench.refuses(export, &["layers.1.self_attn.q_proj.weight", "download the model again"]);
}

#[test]
fn links_are_followed_where_they_are_weights_or_a_hubs_cache() {
    let (bench, merged) = bench();
    let blobs = bench.path("cache/models--org--m/blobs");
    fs::create_dir_all(&blobs).unwrap();
    for (at, name) in ["model.safetensors", "config.json", "tokenizer.json"].into_iter().enumerate() {
        let blob = blobs.join(format!("{at}"));
        fs::rename(bench.path(format!("base/{name}")), &blob).unwrap();
        std::os::unix::fs::symlink(&blob, bench.path(format!("base/{name}"))).unwrap();
    }
    bench.ok(EXPORT);
    assert!(bench.model("out") == merged);
    // Elsewhere, weights may be links, but no file that is copied: it could be anybody's.
    fs::rename(bench.path("cache/models--org--m"), bench.path("cache/plain")).unwrap();
    for (at, name) in ["model.safetensors", "config.json", "tokenizer.json"].into_iter().enumerate() {
        let link = bench.path(format!("base/{name}"));
        fs::remove_file(&link).unwrap();
        let target = bench.path(format!("cache/plain/blobs/{at}"));
        if name == "model.safetensors" {
            std::os::unix::fs::symlink(target, link).unwrap();
        } else {
            fs::copy(target, link).unwrap();
        }
    }
    bench.ok(&format!("{EXPORT} --overwrite"));
    fs::remove_file(bench.path("base/tokenizer.json")).unwrap();
    std::os::unix::fs::symlink(bench.path("cache/plain/blobs/2"), bench.path("base/tokenizer.json")).unwrap();
    let said = bench.refuses(&format!("{EXPORT} --overwrite"), &["tokenizer.json", "link", "cp -rL base DIR"]);
    assert!(said.err.contains("remedy"));
    // The remedy, done.
    assert!(
        std::process::Command::new("cp")
            .args(["-rL"])
            .arg(bench.path("base"))
            .arg(bench.path("copy"))
            .status()
            .unwrap()
            .success()
    );
    bench.ok("export --merge-lora --base copy --adapter adapter --out out --overwrite");
    assert!(bench.model("out") == merged);
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

#[test]
fn what_is_quantized_elsewhere_is_merged_where_it_is_not() {
    let (bench, merged) = bench();
    let mut base = bench.model("base");
    let experts = "model.layers.0.mlp.experts.gate_up_proj_blocks".to_owned();
    base.insert(experts.clone(), (Dtype::U8, vec![2, 4], vec![7; 8]));
    bench.tensors("base/model.safetensors", &base);
    configure(&bench, json!({"quantization_config": {"quant_method": "mxfp4"}}));
    bench.ok(EXPORT);
    let mut out = bench.model("out");
    assert!(out.remove(&experts) == base.remove(&experts) && out == merged);
    assert_eq!(bench.json("out/config.json")["quantization_config"]["quant_method"], "mxfp4");
    bench.ok("verify out --audit --base base --adapter adapter");
    let down = "model.layers.1.mlp.down_proj.weight".to_owned();
    base.insert(down, (Dtype::U8, vec![32, 64], vec![7; 32 * 64]));
    bench.tensors("base/model.safetensors", &base);
    bench.refuses(&format!("{EXPORT} --overwrite"), &["down_proj", "quantized (mxfp4)", "16-bit model"]);

    // Nothing is quantized any more, whatever the config says.
    base.insert("model.layers.1.mlp.down_proj.weight".to_owned(), (Dtype::BF16, vec![32, 64], bf16_noise(32 * 64, 1)));
    bench.tensors("base/model.safetensors", &base);
    bench.ok(&format!("{EXPORT} --overwrite"));
    assert!(bench.json("out/config.json").get("quantization_config").is_none());
}

/// Block FP8 as DeepSeek-V3 and Qwen3-FP8 store it: `W = code * scale`, plus the delta, rounded once to bf16.
#[test]
fn block_fp8_is_decoded_where_a_delta_touches_it() {
    let bench = Bench::new();
    let plain = bench.base(32);
    let adapter = bench.adapter("adapter", 32);
    let mut base = plain.clone();
    let scales = [0.5f32, 0.25, 1.0, 2.0, 0.125, 4.0, 0.75, 1.5];
    let names = ["self_attn.q_proj", "mlp.down_proj"].map(|part| format!("model.layers.0.{part}.weight"));
    let code = |at: usize| (at * 37 % 120) as u8 | if at.is_multiple_of(3) { 0x80 } else { 0 };
    for name in &names {
        let shape = base[name].1.clone();
        let codes: Vec<u8> = (0..shape.iter().product()).map(code).collect();
        let blocks = vec![shape[0].div_ceil(16), shape[1].div_ceil(24)];
        let values = (0..blocks[0] * blocks[1]).flat_map(|at| scales[at % 8].to_le_bytes()).collect();
        base.insert(format!("{name}_scale_inv"), (Dtype::F32, blocks, values));
        base.insert(name.clone(), (Dtype::F8_E4M3, shape, codes));
    }
    bench.tensors("base/model.safetensors", &base);
    configure(&bench, json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 24]}}));
    let said = bench.ok(EXPORT);
    assert!(said.err.contains("2 weights are decoded from FP8"), "{}", said.err);
    let out = bench.model("out");
    assert!(bench.json("out/config.json").get("quantization_config").is_none());
    assert_eq!(out.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>(), "the scales are gone");
    let decode = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
        if code & 0x80 == 0 { size } else { -size }
    };
    for name in &names {
        let (shape, key) = (&plain[name].1, format!("base_model.model.{}", name.trim_end_matches(".weight")));
        let float = |part: &str, at: usize| {
            f32::from_le_bytes(adapter[&format!("{key}.lora_{part}.weight")].2[4 * at..4 * at + 4].try_into().unwrap())
        };
        let (columns, across) = (shape[1], shape[1].div_ceil(24));
        for (at, bytes) in out[name].2.chunks_exact(2).enumerate() {
            let (row, column) = (at / columns, at % columns);
            let base = decode(code(at)) * scales[(row / 16 * across + column / 24) % 8];
            let sum = (0..4).fold(0.0, |sum, k| float("B", row * 4 + k).mul_add(float("A", k * columns + column), sum));
            let expected = half::bf16::from_f32(2f32.mul_add(sum, base));
            assert_eq!(half::bf16::from_le_bytes(bytes.try_into().unwrap()), expected, "{name} {row} {column}");
        }
    }
    assert!(bench.ok("verify out --audit --base base --adapter adapter").out.contains("clean"));

    // A delta that touches none of it leaves it as it is stored.
    let attention = "model.layers.1.self_attn.q_proj";
    bench.tensors(ADAPTER, &adapter.into_iter().filter(|(name, _)| name.contains(attention)).collect());
    bench.ok(&format!("{EXPORT} --overwrite"));
    let out = bench.model("out");
    assert!(names.iter().all(|name| out[name] == base[name] && out.contains_key(&format!("{name}_scale_inv"))));
    assert_eq!(bench.json("out/config.json")["quantization_config"]["quant_method"], "fp8");
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
