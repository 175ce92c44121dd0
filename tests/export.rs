//! The main command: what it finds, what it writes, what it says.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::workbench::{Bench, bf16_noise, f32_noise};

/// A base and an adapter, 32 columns wide.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.base(32);
    bench.adapter("adapter", 32);
    bench
}

const EXPORT: &str = "export --merge-lora --base base --adapter adapter --out out";

#[test]
fn the_bare_command_takes_the_newest_checkpoint() {
    let bench = bench();
    for (run, steps) in [("output/v0-old", [100, 900]), ("output/v1-new", [20, 100])] {
        for step in steps {
            bench.adapter(&format!("{run}/checkpoint-{step}"), 32);
        }
    }
    let said = bench.ok("export --merge-lora --max-shard 2GB");
    assert!(said.err.contains("output/v1-new/checkpoint-100 "), "{}", said.err);
    assert!(bench.path("output/v1-new/checkpoint-100-merged/model.safetensors").exists());
    // The merged directory is no checkpoint, so the same command finds the same adapter and refuses to overwrite.
    let again = bench.refuses("export --merge-lora --max-shard 2GB", &["checkpoint-100-merged", "--overwrite"]);
    assert!(again.out.is_empty());
    bench.ok("export --merge-lora --max-shard 2GB --overwrite");
}

#[test]
fn ms_swifts_flags_and_args_json_mean_what_they_mean_there() {
    let bench = bench();
    bench.adapter_config("adapter", json!({"base_model_name_or_path": null}));
    bench.write("adapter/args.json", r#"{"model": "base", "lora_rank": 4}"#);
    let swift =
        "export --ckpt_dir adapter --merge_lora true --safe_serialization true --max_shard_size 2GB --output_dir out";
    let said = bench.ok(swift);
    assert!(said.err.contains("args.json"), "{}", said.err);
    bench.ok("export --adapters adapter --model base --merge_lora --output_dir other --max-shard-size=2GB");
    assert!(bench.files("out") == bench.files("other"), "also the same bytes: nothing depends on how it was typed");
}

#[test]
fn untouched_tensors_keep_their_bytes_and_the_index_is_the_hubs() {
    let bench = bench();
    let mut base = bench.model("base");
    // Tensors that no model class knows, and types that are no floats.
    base.insert("mtp.layers.0.weight".to_owned(), (Dtype::BF16, vec![3, 5], bf16_noise(15, 9)));
    base.insert("visual.patch.weight".to_owned(), f32_noise(&[2, 3, 2], 10));
    base.insert("rotary.mask".to_owned(), (Dtype::BOOL, vec![3], vec![1, 0, 1]));
    base.insert("step".to_owned(), (Dtype::I64, vec![], 7i64.to_le_bytes().to_vec()));
    bench.tensors("base/model.safetensors", &base);
    bench.ok(&format!("{EXPORT} --max-shard 6KB"));
    let out = bench.model("out");
    assert_eq!(out.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
    let changed: Vec<&String> = out.iter().filter(|(name, data)| base[*name] != **data).map(|(name, _)| name).collect();
    assert_eq!(changed.len(), 4, "{changed:?}");
    assert!(changed.iter().all(|name| name.contains("q_proj") || name.contains("down_proj")), "{changed:?}");
    let index = bench.json("out/model.safetensors.index.json");
    let bytes: usize = out.values().map(|(_, _, b)| b.len()).sum();
    let parameters: usize = out.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    assert_eq!(index["metadata"], json!({"total_parameters": parameters, "total_size": bytes}));
    let text = bench.read("out/model.safetensors.index.json");
    assert!(text.starts_with("{\n  \"metadata\": {\n    \"total_parameters\"") && text.ends_with("}\n"), "{text}");
    for (name, file) in index["weight_map"].as_object().unwrap() {
        let path = bench.path(format!("out/{}", file.as_str().unwrap()));
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors: usize = file.tensors().iter().map(|(_, t)| t.data().len()).sum();
        assert!(tensors <= 6000 || file.len() == 1, "a shard over the limit holds one tensor");
        assert!(file.tensor(name).is_ok());
    }
}

#[test]
fn a_loader_reads_layer_by_layer() {
    let bench = bench();
    bench.ok(EXPORT);
    let bytes = fs::read(bench.path("out/model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let order = header.offset_keys();
    assert_eq!(order.first().unwrap(), "model.embed_tokens.weight");
    assert_eq!(order.last().unwrap(), "lm_head.weight");
    let layers: Vec<&String> = order.iter().filter(|name| name.contains("layers")).collect();
    assert!(layers.is_sorted());
    assert_eq!(header.metadata().clone().unwrap()["format"], "pt");
}

#[test]
fn the_config_changes_only_where_it_must() {
    let bench = bench();
    let text = "{\"model_type\": \"llama\",\n   \"torch_dtype\":\"bfloat16\", \"eps\": 1e-06}\n";
    bench.write("base/config.json", text);
    bench.ok(EXPORT);
    assert_eq!(bench.read("out/config.json"), text);
    bench.ok(&format!("{EXPORT} --overwrite --dtype f16"));
    assert_eq!(bench.read("out/config.json"), text.replace("bfloat16", "float16"));
    assert!(bench.model("out").values().all(|(dtype, ..)| *dtype == Dtype::F16));
    bench.write("base/config.json", text.replace("torch_dtype", "dtype"));
    bench.ok(&format!("{EXPORT} --overwrite --dtype f32"));
    assert_eq!(bench.read("out/config.json"), text.replace("torch_dtype", "dtype").replace("bfloat16", "float32"));
}

#[test]
fn overflow_is_refused_by_name_or_clamped() {
    let bench = bench();
    let mut base = bench.model("base");
    let huge: Vec<u8> =
        (0..32).flat_map(|i| half::bf16::from_f32(if i == 5 { -1e6 } else { 1.0 }).to_le_bytes()).collect();
    base.insert("model.norm.weight".to_owned(), (Dtype::BF16, vec![32], huge));
    bench.tensors("base/model.safetensors", &base);
    let line = format!("{EXPORT} --dtype f16");
    bench.refuses(&line, &["model.norm.weight", "column 5", "f16", "--allow-overflow"]);
    assert_eq!(bench.names(), ["adapter", "base"], "nothing is left of a refused export");
    bench.ok(&format!("{line} --allow-overflow"));
    let (_, _, bytes) = &bench.model("out")["model.norm.weight"];
    assert_eq!(half::f16::from_le_bytes([bytes[10], bytes[11]]), half::f16::MIN);
}

#[test]
fn without_an_adapter_it_reshards_and_casts() {
    let bench = bench();
    bench.ok("export --base base --max-shard 4KB");
    assert!(bench.model("base-export") == bench.model("base"));
    bench.refuses("export --out x", &["--merge-lora", "--base"]);
    bench.refuses("export --base base --adapter adapter --out x", &["--merge-lora"]);
}

#[test]
fn a_model_in_a_cache_is_exported_to_the_working_directory() {
    let bench = bench();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = format!("cache/models--org--tiny/snapshots/{commit}");
    fs::create_dir_all(bench.path(&snapshot).parent().unwrap()).unwrap();
    fs::rename(bench.path("base"), bench.path(&snapshot)).unwrap();
    bench.ok(&format!("export --base {snapshot}"));
    let base = &bench.json("tiny-export/qft-manifest.json")["base"];
    assert_eq!((base["repo"].as_str(), base["revision"].as_str()), (Some("org/tiny"), Some(commit)));
}

#[test]
fn companions_come_along_and_the_adapters_win() {
    let bench = bench();
    for name in ["generation_config.json", "merges.txt", "LICENSE", "modeling_x.py", "chat_template.jinja"] {
        bench.write(format!("base/{name}"), "{}");
    }
    for name in ["pytorch_model.bin", "README.md", "model-00001-of-00002.safetensors.index.json", "training_args.bin"] {
        bench.write(format!("base/{name}"), "no");
    }
    bench.write("adapter/tokenizer.json", "{\"mine\": 1}");
    bench.write("adapter/optimizer.pt", "no");
    bench.ok(EXPORT);
    let names: Vec<String> = bench.files("out").into_keys().collect();
    let expected = [
        "LICENSE",
        "SHA256SUMS",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_x.py",
        "qft-manifest.json",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(bench.read("out/tokenizer.json"), "{\"mine\": 1}");
    // Nothing stays behind without a word.
    let plan = bench.ok("export --merge-lora --base base --adapter adapter --out plan --dry-run");
    let json = bench.ok("export --merge-lora --base base --adapter adapter --out plan --dry-run --json");
    let json: Value = serde_json::from_str(&json.out).unwrap();
    for name in ["README.md", "merges.txt", "pytorch_model.bin", "training_args.bin"] {
        assert!(plan.out.lines().any(|line| line.contains(&format!("{name}: "))), "{name}: {}", plan.out);
        assert!(json["left_out"][name].is_string(), "{name}");
    }
    bench.ok("export --merge-lora --base base --adapter adapter --out of-base --tokenizer base");
    assert_eq!(
        (bench.read("of-base/tokenizer.json"), bench.read("of-base/merges.txt")),
        ("{}".to_owned(), "{}".to_owned())
    );
}

#[test]
fn warns_of_files_that_loaders_choke_on() {
    let bench = bench();
    bench.write("base/tokenizer_config.json", r#"{"extra_special_tokens": ["<x>"]}"#);
    bench.write("base/generation_config.json", r#"{"temperature": 0.5}"#);
    bench.write("base/model-00007-of-00009.safetensors", "stale");
    let said = bench.ok(EXPORT);
    for word in ["extra_special_tokens is a list", "temperature is set while do_sample is off", "model-00007-of-00009"]
    {
        assert!(said.err.contains(word), "{}", said.err);
    }
}

#[test]
fn checksums_are_sha256sum_s_and_the_manifest_is_complete() {
    let bench = bench();
    bench.ok(&format!("{EXPORT} --max-shard 8KB"));
    let check = std::process::Command::new("sha256sum")
        .args(["-c", "--strict", "SHA256SUMS"])
        .current_dir(bench.path("out"))
        .output();
    match check {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(e) => eprintln!("skipped the check by sha256sum: {e}"),
    }
    let manifest = bench.json("out/qft-manifest.json");
    let files = bench.files("out");
    for (name, entry) in manifest["files"].as_object().unwrap() {
        assert_eq!(entry["size"], files[name].len(), "{name}");
    }
    assert_eq!(manifest["files"].as_object().unwrap().len() + 2, files.len(), "all but the manifest and the checksums");
    let q = &manifest["tensors"]["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!(q["changes"], json!([{"adapter": 0, "kind": "low-rank", "rank": 4, "scale": 2.0}]));
    assert_eq!(q["source"], json!({"base": "model.layers.0.self_attn.q_proj.weight"}));
    assert_eq!(manifest["base"]["tensor_blake3"].as_object().unwrap().len(), bench.model("base").len());
    let text = bench.read("out/qft-manifest.json");
    assert!(!text.contains(&*bench.path("").to_string_lossy()), "no path of the machine");
}

#[test]
fn the_same_export_gives_the_same_bytes_anywhere() {
    let (one, two) = (bench(), bench());
    one.ok(&format!("{EXPORT} --max-shard 8KB --jobs 1"));
    fs::rename(two.path("base"), two.path("elsewhere")).unwrap();
    fs::rename(two.path("adapter"), two.path("tuned")).unwrap();
    two.ok("export --merge-lora --base elsewhere --adapter tuned --out release --max-shard 8KB --jobs 7");
    assert!(one.files("out") == two.files("release"));
}

#[test]
fn the_bases_digest_does_not_depend_on_its_shards() {
    let bench = bench();
    bench.ok("export --base base --out resharded --max-shard 3KB");
    bench.ok(EXPORT);
    bench.ok("export --merge-lora --base resharded --adapter adapter --out again");
    let digest = |name: &str| bench.json(format!("{name}/qft-manifest.json"))["base"]["model_blake3"].clone();
    assert_eq!(digest("out"), digest("again"));
    assert!(digest("out").as_str().is_some_and(|d| d.len() == 64));
}

#[test]
fn a_dry_run_says_everything_and_does_nothing() {
    let bench = bench();
    let said = bench.ok(&format!("{EXPORT} --max-shard 8KB --dry-run"));
    for word in ["4 tensors changed", "rank 4", "scale 2", "model-00001-of-", "of disk", "of memory", "tokenizer.json"]
    {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    let json: Value = serde_json::from_str(&bench.ok(&format!("{EXPORT} --dry-run --json")).out).unwrap();
    assert_eq!(json["changed_tensors"], 4);
    assert_eq!(json["changed"]["model.layers.1.mlp.down_proj.weight"]["changes"][0]["scale"], 2.0);
    assert!(json["needs"]["disk_bytes"].as_u64() > Some(0));
    assert_eq!(bench.names(), ["adapter", "base"]);
    let report: Value = serde_json::from_str(&bench.ok(&format!("{EXPORT} --json")).out).unwrap();
    assert_eq!(report["changed_tensors"], 4);
    assert_eq!(report["files"].as_object().unwrap().len(), bench.files("out").len());
}

#[test]
fn several_adapters_add_up_and_conflicts_are_refused() {
    let bench = bench();
    bench.adapter("other", 32);
    bench.ok("export --merge-lora --base base --adapter adapter --adapter other=-1 --out zero");
    let (zero, base) = (bench.model("zero"), bench.model("base"));
    assert!(zero == base, "the same deltas with opposite weights cancel exactly");
    let with_norm = |name: &str, seed: u64| {
        let mut tensors = bench.adapter(name, 32);
        tensors.insert("base_model.model.model.norm.weight".to_owned(), f32_noise(&[32], seed));
        bench.tensors(format!("{name}/adapter_model.safetensors"), &tensors);
    };
    let line = "export --merge-lora --base base --adapter adapter --adapter other";
    with_norm("other", 1);
    bench.refuses(&format!("{line}=0.5 --out out"), &["model.norm.weight", "weighted"]);
    with_norm("adapter", 1);
    bench.ok(&format!("{line} --out both"));
    with_norm("adapter", 2);
    bench.refuses(&format!("{line} --out out"), &["model.norm.weight", "combined"]);
}

#[test]
fn progress_and_notes_stay_off_standard_output() {
    let bench = bench();
    let said = bench.ok(EXPORT);
    assert!(said.out.lines().last().unwrap().starts_with("merged 4 of 11 tensors into out: "), "{}", said.out);
    assert!(!said.err.contains("total"), "no bars where there is no terminal: {}", said.err);
}

#[test]
fn help_man_and_completions() {
    let bench = Bench::new();
    assert!(bench.ok("export --help").out.contains("--max-shard"));
    assert!(bench.ok("completions bash").out.contains("complete -F _qft"));
    assert!(bench.ok("man").out.contains(".TH qft 1"));
    bench.ok("man --out pages");
    assert!(bench.path("pages/qft-export.1").exists());
    let wrong = bench.qft("export --max-shard 2XB");
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("2GB, 500MB or 1.5GiB"), "{}", wrong.err);
}
