//! GGUF outputs: of an export, of a model's directory, of another GGUF file; and the way back. That the bytes are
//! llama.cpp's is held by the golden files of blocks, keys, tokenizers and mixtures.

use std::collections::BTreeMap;
use std::path::Path;

use qft::ggml::TensorType;
use qft::gguf::{GgufFile, GgufModel};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::to_hf;
use crate::workbench::{Bench, Data, bf16_noise, f32_noise, read_model};

const HIDDEN: usize = 256;
const VOCABULARY: usize = 272;

/// A byte-level BPE of 256 bytes, some merges and two special tokens, whose pre-tokenizer no list knows.
pub(crate) fn write_tokenizer(bench: &Bench, dir: &str) {
    // The printable stand-ins of bytes, as GPT-2 orders them.
    let printable = |b: &u32| (33..=126).contains(b) || (161..=172).contains(b) || (174..=255).contains(b);
    let mut vocabulary = serde_json::Map::new();
    let mut add = |text: String| {
        let id = vocabulary.len();
        vocabulary.insert(text, json!(id));
    };
    let mut others = 256u32..;
    for byte in 0..256u32 {
        let stand_in = if printable(&byte) { byte } else { others.next().unwrap() };
        add(char::from_u32(stand_in).unwrap().to_string());
    }
    let merges = ["t h", "th e", "a n", "an d", "\u{120} the"];
    merges.iter().for_each(|merge| add(merge.replace(' ', "")));
    let first = 256 + merges.len();
    let special = |(i, text): (usize, &str)| {
        json!({"id": first + i, "content": text, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let added: Vec<Value> = ["<|end|>", "<|pad|>"].into_iter().enumerate().map(special).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    });
    bench.write(format!("{dir}/tokenizer.json"), tokenizer.to_string());
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|pad|>",
        "chat_template": "{{ messages }}"});
    bench.write(format!("{dir}/tokenizer_config.json"), config.to_string());
}

/// A complete Qwen2 (biases, no permutation) or Llama (permuted heads) of two layers in `base`.
fn model(bench: &Bench, llama: bool) -> BTreeMap<String, Data> {
    let mut tensors = BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let seed = 7 * tensors.len() as u64 + 1;
        tensors.insert(name.to_owned(), (Dtype::BF16, shape.to_vec(), bf16_noise(shape.iter().product(), seed)));
    };
    add("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
    add("lm_head.weight", &[VOCABULARY, HIDDEN]);
    add("model.norm.weight", &[HIDDEN]);
    for layer in 0..2 {
        let mut layer = |name: &str, shape: &[usize]| add(&format!("model.layers.{layer}.{name}"), shape);
        for (name, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", HIDDEN / 2, HIDDEN),
            ("self_attn.v_proj", HIDDEN / 2, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", 2 * HIDDEN, HIDDEN),
            ("mlp.up_proj", 2 * HIDDEN, HIDDEN),
            ("mlp.down_proj", HIDDEN, 2 * HIDDEN),
        ] {
            layer(&format!("{name}.weight"), &[rows, columns]);
            if !llama && ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].contains(&name) {
                layer(&format!("{name}.bias"), &[rows]);
            }
        }
        layer("input_layernorm.weight", &[HIDDEN]);
        layer("post_attention_layernorm.weight", &[HIDDEN]);
    }
    bench.tensors("base/model.safetensors", &tensors);
    let (architecture, kind) = if llama { ("LlamaForCausalLM", "llama") } else { ("Qwen2ForCausalLM", "qwen2") };
    let config = json!({"architectures": [architecture], "model_type": kind, "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "rms_norm_eps": 1e-06, "vocab_size": VOCABULARY,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "eos_token_id": 261, "bos_token_id": 261});
    bench.write("base/config.json", format!("{config:#}\n"));
    write_tokenizer(bench, "base");
    tensors
}

/// A LoRA of rank 4 on q_proj and down_proj in `adapter`.
fn adapter(bench: &Bench) {
    let mut tensors = BTreeMap::new();
    for layer in 0..2 {
        for (module, out, input) in [("self_attn.q_proj", HIDDEN, HIDDEN), ("mlp.down_proj", HIDDEN, 2 * HIDDEN)] {
            let key = format!("base_model.model.model.layers.{layer}.{module}");
            let seed = 100 + tensors.len() as u64;
            tensors.insert(format!("{key}.lora_A.weight"), f32_noise(&[4, input], seed));
            tensors.insert(format!("{key}.lora_B.weight"), f32_noise(&[out, 4], seed + 50));
        }
    }
    bench.tensors("adapter/adapter_model.safetensors", &tensors);
    bench.adapter_config("adapter", json!({}));
}

/// The model with its adapter.
pub(crate) fn bench(llama: bool) -> Bench {
    let bench = Bench::new();
    model(&bench, llama);
    adapter(&bench);
    bench
}

const EXPORT: &str =
    "export --merge-lora --base base --adapter adapter --pre qwen2 --name Tiny --gguf q4_k_m,q8_0,bf16 --max-shard 1MB";

/// Bytes of every tensor of a GGUF file, by name.
fn blocks(path: &Path) -> BTreeMap<String, (TensorType, Vec<u8>)> {
    let file = GgufFile::open(path).unwrap();
    file.tensors().iter().map(|t| (t.name.clone(), (t.kind, file.bytes(t).to_vec()))).collect()
}

#[test]
fn every_type_and_the_shards_from_one_run() {
    let bench = bench(false);
    bench.ok(&format!("{EXPORT} --out out"));
    let said = bench.ok("verify out");
    assert!(said.out.contains("clean"), "{}", said.out);
    let sums = bench.read("out/SHA256SUMS");
    let names = ["model-Q4_K_M.gguf", "model-Q8_0.gguf", "model-BF16.gguf"];
    assert!(names.iter().all(|name| sums.contains(name)), "{sums}");
    let manifest = bench.json("out/qft-manifest.json");
    let entry = &manifest["gguf"]["model-Q4_K_M.gguf"];
    assert_eq!(entry["type"], "Q4_K_M");
    let quality = &entry["tensors"]["blk.0.attn_q.weight"]["quality"];
    assert!(quality["cosine"].as_f64().unwrap() > 0.99 && quality["rmse"].as_f64().unwrap() > 0.0, "{entry}");
    // BF16 holds what the shards hold.
    let merged = bench.model("out");
    let stored = blocks(&bench.path("out/model-BF16.gguf"));
    assert_eq!(stored["blk.1.ffn_down.weight"].1, merged["model.layers.1.mlp.down_proj.weight"].2);
    assert_eq!(stored["token_embd.weight"].1, merged["model.embed_tokens.weight"].2);
    // The number of workers and a second run change nothing; neither do the other outputs.
    bench.ok(&format!("{EXPORT} --out again --jobs 5"));
    assert!(bench.files("out") == bench.files("again"));
    bench.ok(
        "export --merge-lora --base base --adapter adapter --pre qwen2 --gguf Q4_K --name Tiny --out alone --jobs 1",
    );
    let alone = bench.files("alone");
    assert_eq!(alone.keys().collect::<Vec<_>>(), ["SHA256SUMS", "model-Q4_K_M.gguf", "qft-manifest.json"]);
    assert!(alone["model-Q4_K_M.gguf"] == bench.files("out")["model-Q4_K_M.gguf"]);
}

#[test]
fn the_audit_encodes_every_tensor_anew() {
    let bench = bench(true);
    bench.ok("export --merge-lora --base base --adapter adapter --pre qwen2 --gguf q4_k_m,q8_0 --out out");
    let audit = "verify out --audit --base base --adapter adapter";
    assert!(bench.ok(audit).out.contains("byte for byte"));
    let path = bench.path("out/model-Q8_0.gguf");
    let at = {
        let file = GgufFile::open(&path).unwrap();
        let tensor = file.tensors().iter().find(|t| t.name == "blk.1.attn_q.weight").unwrap();
        // The second byte of a value in row 2, block 3.
        tensor.offset + 2 * (HIDDEN / 32 * 34) + 3 * 34 + 9
    };
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let said = bench.qft(audit);
    assert_eq!(said.code, Some(3));
    assert!(said.out.contains("blk.1.attn_q.weight at row 2, column 96"), "{}", said.out);
    bench.refuses("inspect out", &["several models", "model-Q4_K_M.gguf"]);
    std::fs::remove_file(path).unwrap();
    assert!(bench.ok("inspect out").out.contains("blk.1.attn_q.weight"));
}

#[test]
fn a_killed_run_is_taken_up_with_its_figures() {
    let bench = bench(false);
    bench.ok(&format!("{EXPORT} --out whole"));
    // The staging directory of a run that was stopped after two of its files.
    let staging = ".out.qft-staging";
    let stopped = bench.command().args(EXPORT.split_whitespace()).args(["--out", "out", "--jobs", "1"]).spawn();
    let mut child = stopped.unwrap();
    let journal = bench.path(format!("{staging}/qft-journal.json"));
    let gguf_finished = || std::fs::read_to_string(&journal).is_ok_and(|text| text.contains(".gguf"));
    while child.try_wait().unwrap().is_none() && !gguf_finished() {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait().unwrap();
    if bench.path("out").exists() {
        println!("the run was done before it could be killed; resume is not tried");
        return;
    }
    let said = bench.ok(&format!("{EXPORT} --out out --resume"));
    assert!(said.out.contains("taken over"), "{}", said.out);
    assert!(bench.files("whole") == bench.files("out"));
}

#[test]
fn directory_file_and_export_agree() {
    for llama in [false, true] {
        let bench = bench(llama);
        bench.ok(&format!("{EXPORT} --out out"));
        bench.ok("gguf out --type bf16 --pre qwen2 --out direct-bf16.gguf");
        for kind in ["q4_k_m", "q8_0", "q3_k_l", "iq4_xs", "q5_0", "q2_k"] {
            bench.ok(&format!("gguf out --type {kind} --pre qwen2 --out direct.gguf --overwrite"));
            bench.ok(&format!("quantize direct-bf16.gguf --type {kind} --out quantized.gguf --overwrite"));
            let [direct, quantized] =
                ["direct.gguf", "quantized.gguf"].map(|name| std::fs::read(bench.path(name)).unwrap());
            assert!(direct == quantized, "{kind}, llama: {llama}");
        }
        let exported = blocks(&bench.path("out/model-Q8_0.gguf"));
        bench.ok("gguf out --type q8_0 --pre qwen2 --out direct.gguf --overwrite");
        assert!(exported == blocks(&bench.path("direct.gguf")), "llama: {llama}");
        // The way back gives the merged weights.
        bench.ok("to-hf direct-bf16.gguf --out back");
        let (back, merged) = (read_model(&bench.path("back")), bench.model("out"));
        assert_eq!(back.keys().collect::<Vec<_>>(), merged.keys().collect::<Vec<_>>());
        for (name, data) in &merged {
            assert!(back[name] == *data, "{name}, llama: {llama}");
        }
    }
}

#[test]
fn heads_of_llama_are_interleaved_and_those_of_qwen_are_not() {
    let row = |bytes: &[u8], row: usize| bytes[row * HIDDEN * 2..(row + 1) * HIDDEN * 2].to_vec();
    for (llama, from) in [(true, 32), (false, 1)] {
        let bench = Bench::new();
        let base = model(&bench, llama);
        bench.ok("gguf base --type bf16 --pre qwen2 --out x.gguf");
        let stored = blocks(&bench.path("x.gguf"));
        let (stored, base) = (&stored["blk.0.attn_q.weight"].1, &base["model.layers.0.self_attn.q_proj.weight"].2);
        assert_eq!(row(stored, 0), row(base, 0));
        assert!(row(stored, 1) == row(base, from), "llama: {llama}");
    }
}

#[test]
fn lineage_is_recorded() {
    let bench = bench(false);
    bench.adapter_config("adapter", json!({"base_model_name_or_path": "org/Tiny-Instruct"}));
    bench.ok("export --merge-lora --base base --adapter adapter=0.5 --pre qwen2 --gguf q8_0 --out out");
    let model = GgufModel::open(&bench.path("out/model-Q8_0.gguf")).unwrap();
    let text = |key: &str| model.metadata.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    assert_eq!(text("general.base_model.0.repo_url"), "https://huggingface.co/org/Tiny-Instruct");
    assert_eq!(text("qft.adapter.0.sha256").len(), 64);
    let number = |key: &str| model.metadata.get(key).and_then(|v| v.as_f64());
    assert_eq!((number("qft.adapter.0.rank"), number("qft.adapter.0.weight")), (Some(4.0), Some(0.5)));
}

#[test]
fn parts_are_one_model() {
    let bench = bench(false);
    bench.ok("gguf base --type bf16 --pre qwen2 --out whole.gguf");
    bench.ok("gguf base --type bf16 --pre qwen2 --split-max-size 500KB --out cut.gguf");
    let parts: Vec<String> = bench.names().into_iter().filter(|name| name.starts_with("cut-")).collect();
    assert!(parts.len() > 3 && parts[0].starts_with("cut-00001-of-000"), "{parts:?}");
    let whole = GgufModel::open(&bench.path("whole.gguf")).unwrap();
    let cut = GgufModel::open(&bench.path(&parts[1])).unwrap();
    assert_eq!(whole.metadata, cut.metadata);
    assert!(whole.tensors.iter().zip(&cut.tensors).all(|(a, b)| a.bytes() == b.bytes()));
    bench
        .refuses("gguf base --type bf16 --pre qwen2 --split-max-size 500KB --out cut.gguf", &["exists", "--overwrite"]);
    bench.ok(&format!("quantize {} --type q8_0 --out q.gguf", parts[0]));
}

/// A model has one form at a place: what is left of another split, or of none, is refused or goes; an input stays.
#[test]
fn no_part_of_an_older_split_stays() {
    let (bench, _) = to_hf::bench();
    let line = "quantize model.gguf --allow-requantize --type q8_0 --out made/x.gguf";
    let split = |size: &str| format!("{line} --split-max-size {size}");
    let names = || {
        let mut names: Vec<String> = bench.files("made").into_keys().collect();
        names.retain(|name| name != "y-00001-of-00002.gguf" && name != "x-notes.gguf");
        names
    };
    let parts = |count: usize| (1..=count).map(|n| format!("x-{n:05}-of-{count:05}.gguf")).collect::<Vec<_>>();
    bench.ok(&split("10KB"));
    let older = names();
    assert!(older.len() > 4 && older == parts(older.len()), "{older:?}");
    // Models of other names.
    bench.write("made/y-00001-of-00002.gguf", "mine");
    bench.write("made/x-notes.gguf", "mine");
    // Other numbers of parts, and one file: without --overwrite nothing is touched.
    let many = format!("x-00001-of-{:05}.gguf and {} more", older.len(), older.len() - 1);
    for other in [line, &split("20KB")] {
        bench.refuses(other, &[&many, "from an older model of this name", "--overwrite"]);
        assert_eq!(names(), older);
    }
    let said = bench.ok(&format!("{} --overwrite", split("20KB")));
    assert!(said.err.contains(&format!("{} will be deleted", older[4])), "{}", said.err);
    let fewer = names();
    assert!(fewer.len() < older.len() && fewer == parts(fewer.len()), "{fewer:?}");
    bench.ok(&format!("{line} --overwrite"));
    assert_eq!(names(), ["x.gguf"]);
    bench.refuses(&split("20KB"), &["x.gguf would remain from an older model", "--overwrite"]);
    bench.ok(&format!("{} --overwrite --dry-run", split("20KB")));
    assert_eq!(names(), ["x.gguf"], "it was a plan");
    bench.ok(&format!("{} --overwrite", split("20KB")));
    assert_eq!(names(), fewer);
    // From its own parts, which are no older model.
    bench.ok(&format!("quantize made/{} --type q8_0 --allow-requantize --out made/x.gguf", fewer[0]));
    assert_eq!(names().len(), fewer.len() + 1);
    bench.ok(&format!("verify made/{}", fewer[0]));
    assert_eq!(bench.files("made")["x-notes.gguf"], b"mine");
}

#[test]
fn what_a_type_cannot_hold_is_refused() {
    let bench = Bench::new();
    let mut tensors = model(&bench, false);
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut set = |value: f32| {
        let bytes = &mut tensors.get_mut(name).unwrap().2;
        bytes[2 * (3 * HIDDEN + 5)..][..2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
        bench.tensors("base/model.safetensors", &tensors);
    };
    set(1e6);
    let gguf = |kind: &str| format!("gguf base --type {kind} --pre qwen2 --out x.gguf");
    bench.refuses(&gguf("f16"), &["blk.1.ffn_up.weight", "row 3, column 5", "F16"]);
    bench.ok(&format!("{} --allow-overflow", gguf("f16")));
    bench.ok(&format!("{} --overwrite", gguf("q8_0")));
    set(1e38);
    bench.refuses(&format!("{} --overwrite", gguf("q8_0")), &["blk.1.ffn_up.weight", "row 3, column 5", "Q8_0"]);
    set(f32::NAN);
    bench.refuses(&format!("{} --overwrite", gguf("q4_k_m")), &["blk.1.ffn_up.weight", "row 3, column 5", "NaN"]);
    assert!(!bench.names().iter().any(|name| name.contains("staging")), "{:?}", bench.names());
}

#[test]
fn a_dry_run_tells_every_type_and_size() {
    let bench = bench(false);
    let said = bench.ok(&format!("{EXPORT} --out out --dry-run --json"));
    let plan: Value = serde_json::from_str(&said.out).unwrap();
    let file = &plan["gguf"][0]["files"][0];
    assert_eq!(file["file"], "model-Q4_K_M.gguf");
    assert!(
        file["tensors"].as_array().unwrap().iter().any(|t| t["name"] == "blk.1.attn_v.weight" && t["type"] == "Q6_K")
    );
    assert!(!bench.path("out").exists());
    bench.ok(&format!("{EXPORT} --out out"));
    assert_eq!(std::fs::metadata(bench.path("out/model-Q4_K_M.gguf")).unwrap().len(), file["bytes"].as_u64().unwrap());
    let said = bench.ok(&format!("{EXPORT} --out other --dry-run"));
    assert!(said.out.contains("blk.1.ffn_down.weight") && said.out.contains("bits per weight"), "{}", said.out);
}

#[test]
fn refusals_name_what_to_do() {
    let bench = bench(false);
    bench.refuses("gguf base --type q8_0 --out x.gguf", &["pre-tokenizer", "--pre"]);
    bench.refuses("gguf base --type q8_0 --pre qwen2 --out x.bin", &["ends in .gguf"]);
    bench.ok("gguf base --type q8_0 --pre qwen2 --out x.gguf");
    bench.refuses("quantize x.gguf --type q4_k_m --out y.gguf", &["--allow-requantize"]);
    bench.ok("quantize x.gguf --type q4_k_m --allow-requantize --out y.gguf");
    bench.refuses("quantize x.gguf --type q8_0 --out x.gguf --overwrite", &["is an input"]);
    bench.write("base/config.json", r#"{"architectures": ["MambaForCausalLM"]}"#);
    bench.refuses("gguf base --type q8_0 --pre qwen2 --out z.gguf", &["MambaForCausalLM"]);
}
