//! `qft to-hf`: a GGUF model as a Hugging Face directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qft::ggml::{TensorType, decode};
use qft::gguf::{Array, GgufModel, Metadata, TensorForm, Value, lay_out};
use safetensors::Dtype;
use serde_json::json;

use crate::workbench::{Bench, Noise};

const HIDDEN: usize = 64;
const VOCABULARY: usize = 40;

/// Name, shape and type of each tensor of a tied Llama of two layers.
fn tensors() -> Vec<(String, Vec<usize>, TensorType)> {
    let mut tensors = vec![
        ("output_norm.weight".to_owned(), vec![HIDDEN], TensorType::F32),
        ("token_embd.weight".to_owned(), vec![VOCABULARY, HIDDEN], TensorType::Q8_0),
        ("rope_freqs.weight".to_owned(), vec![HIDDEN / 8], TensorType::F32),
    ];
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[usize], kind| {
            tensors.push((format!("blk.{layer}.{name}.weight"), shape.to_vec(), kind));
        };
        add("attn_norm", &[HIDDEN], TensorType::F32);
        add("attn_q", &[HIDDEN, HIDDEN], TensorType::Q4_0);
        add("attn_k", &[HIDDEN / 2, HIDDEN], TensorType::Q5_1);
        add("attn_v", &[HIDDEN / 2, HIDDEN], TensorType::F16);
        add("attn_output", &[HIDDEN, HIDDEN], TensorType::BF16);
        add("ffn_norm", &[HIDDEN], TensorType::F32);
        add("ffn_gate", &[96, HIDDEN], TensorType::IQ4_NL);
        add("ffn_up", &[96, HIDDEN], TensorType::Q4_1);
        add("ffn_down", &[HIDDEN, 96], TensorType::Q5_0);
    }
    tensors
}

fn metadata() -> Metadata {
    let number = |key: &str, value| (format!("llama.{key}"), Value::U32(value));
    let text = |key: &str, value: &str| (key.to_owned(), Value::string(value));
    let mut words: Vec<String> = ["a", "b", "ab", "<|start|>"].map(str::to_owned).to_vec();
    words.extend((4..VOCABULARY).map(|id| format!("[PAD{id}]")));
    let mut kinds = vec![1, 1, 1, 3];
    kinds.resize(VOCABULARY, 5);
    [
        text("general.architecture", "llama"),
        number("block_count", 2),
        number("context_length", 512),
        number("embedding_length", 64),
        number("feed_forward_length", 96),
        number("attention.head_count", 4),
        number("attention.head_count_kv", 2),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(1e-6)),
        ("general.sampling.temp".to_owned(), Value::F32(0.7)),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", "llama-bpe"),
        ("tokenizer.ggml.tokens".to_owned(), Value::strings(words)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::I32(kinds))),
        ("tokenizer.ggml.merges".to_owned(), Value::strings(["a b"])),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(3)),
        text("tokenizer.chat_template", "{{ messages }}"),
        text("tokenizer.chat_template.tools", "{{ tools }}"),
    ]
    .into_iter()
    .collect()
}

/// The bytes of a file with those tensors. Their values are noise, but for the rotary factors.
fn file(metadata: &Metadata, tensors: &[(String, Vec<usize>, TensorType)]) -> Vec<u8> {
    let forms = tensors.iter().map(|(name, shape, kind)| TensorForm { name, shape, kind: *kind });
    let layout = lay_out(metadata, &forms.collect::<Vec<_>>()).unwrap();
    let mut file = layout.header.clone();
    file.resize(layout.total as usize, 0);
    for ((name, _, kind), (offset, len)) in tensors.iter().zip(layout.offsets.iter().zip(&layout.lens)) {
        let mut noise = Noise(name.len() as u64);
        let bytes = &mut file[*offset as usize..][..*len as usize];
        // Small in every type: no exponent is all ones.
        bytes.iter_mut().for_each(|byte| *byte = noise.next() as u8 & 0x3b);
        if name == "rope_freqs.weight" {
            bytes.chunks_mut(4).for_each(|out| out.copy_from_slice(&1f32.to_le_bytes()));
        }
        assert!(decode::can_decode(*kind));
    }
    file
}

pub(crate) fn bench() -> (Bench, PathBuf) {
    let bench = Bench::new();
    let path = bench.write("model.gguf", file(&metadata(), &tensors()));
    (bench, path)
}

/// What the directory should hold: every tensor decoded, with the rows of queries and keys back in order, as bf16.
fn expected(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let model = GgufModel::open(path).unwrap();
    let mut all = BTreeMap::new();
    for tensor in model.tensors.iter().filter(|tensor| tensor.info().name != "rope_freqs.weight") {
        let info = tensor.info();
        let mut values = vec![0.0; info.shape.iter().product()];
        decode::decode(info.kind, tensor.bytes(), &mut values);
        let heads = match info.name.split('.').nth(2) {
            Some("attn_q") => 4,
            Some("attn_k") => 2,
            _ => 0,
        };
        if let Some(rows) = info.shape[0].checked_div(heads) {
            let (stored, half) = (values.clone(), rows / 2);
            for (row, out) in values.chunks_mut(HIDDEN).enumerate() {
                let from = row / (2 * half) * 2 * half + row % half * 2 + row / half % 2;
                out.copy_from_slice(&stored[from * HIDDEN..][..HIDDEN]);
            }
        }
        let bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        all.insert(their_name(&info.name), (Dtype::BF16, info.shape.clone(), bytes));
    }
    all
}

fn their_name(name: &str) -> String {
    let table = [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.", "model.layers."),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    table.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

#[test]
fn every_tensor_is_decoded_and_the_directory_is_whole() {
    let (bench, path) = bench();
    let said = bench.ok("to-hf model.gguf --out out --max-shard 20KB");
    assert!(said.out.contains("decoded 20 tensors"), "{}", said.out);
    assert!(bench.model("out") == expected(&path));
    let index = bench.json("out/model.safetensors.index.json");
    assert_eq!(index["weight_map"].as_object().unwrap().len(), 20);
    let config = bench.json("out/config.json");
    assert_eq!((&config["model_type"], &config["tie_word_embeddings"]), (&json!("llama"), &json!(true)));
    assert_eq!(config.get("rope_scaling"), None, "factors of one scale nothing");
    let generation = bench.json("out/generation_config.json");
    assert_eq!((&generation["temperature"], &generation["do_sample"]), (&json!(0.7), &json!(true)));
    let tokenizer = bench.json("out/tokenizer.json");
    assert_eq!(tokenizer["model"]["vocab"], json!({"a": 0, "b": 1, "ab": 2}), "the rest is added or padding");
    assert_eq!(bench.read("out/additional_chat_templates/tools.jinja"), "{{ tools }}");
    // The checks of an export hold here too.
    let files = bench.files("out");
    let sums = bench.read("out/SHA256SUMS");
    assert_eq!(sums.lines().count(), files.len() - 1);
    for line in sums.lines() {
        let (digest, name) = line.split_once("  ").unwrap();
        assert_eq!(qft::digest::sha256(&files[name]).as_str(), digest, "{name}");
    }
    bench.ok("verify out");
}

#[test]
fn neither_workers_nor_parts_change_a_byte() {
    let (bench, _) = bench();
    bench.ok("to-hf model.gguf --out one --jobs 1 --max-shard 30KB");
    bench.ok("to-hf model.gguf --out many --jobs 7 --max-shard 30KB");
    assert!(bench.files("one") == bench.files("many"));
    let said = bench.ok("to-hf model.gguf --out one --overwrite --json --dtype f32");
    let report: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["tensors"], 20);
    assert!(bench.model("one").values().all(|(dtype, ..)| *dtype == Dtype::F32));
    assert_eq!(bench.names(), ["many", "model.gguf", "one"], "nothing is left beside it");
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_written() {
    let (bench, _) = bench();
    bench.write("mine/thesis.tex", "");
    bench.refuses("to-hf model.gguf --out mine", &["not empty", "remedy"]);
    bench.refuses("to-hf model.gguf --out mine --overwrite", &["does not look like a model"]);
    bench.refuses("to-hf nothing.gguf --out out", &["nothing.gguf"]);
    let mut more = tensors();
    more.push(("blk.0.attn_sinks.weight".to_owned(), vec![4], TensorType::F32));
    bench.write("more.gguf", file(&metadata(), &more));
    bench.refuses("to-hf more.gguf --out out", &["blk.0.attn_sinks.weight", "remedy"]);
    let mut other = metadata();
    other.set("general.architecture", Value::string("gemma\u{1b}[2J"));
    bench.write("other.gguf", file(&other, &tensors()));
    let said = bench.refuses("to-hf other.gguf --out out", &["gemma\\u{1b}", "llama"]);
    assert!(!said.err.contains('\u{1b}'));
    let mut odd = metadata();
    odd.set("tokenizer.ggml.pre", Value::string("unheard-of"));
    bench.write("odd.gguf", file(&odd, &tensors()));
    bench.refuses("to-hf odd.gguf --out out", &["unheard-of", "--tokenizer"]);
    let mut broken = metadata();
    broken.set("tokenizer.ggml.merges", Value::Array(Array::I32(vec![1, 2])));
    bench.write("broken.gguf", file(&broken, &tensors()));
    bench.refuses("to-hf broken.gguf --out out", &["broken.gguf", "tokenizer.ggml.merges", "--tokenizer"]);
    assert!(!bench.path("out").exists());
    // Which the remedy mends.
    bench.write("original/tokenizer.json", "{}");
    bench.write("original/config.json", "{}");
    bench.ok("to-hf odd.gguf --out out --tokenizer original");
    assert_eq!(bench.read("out/tokenizer.json"), "{}");
    assert_eq!(bench.json("out/config.json")["model_type"], "llama", "the config is the file's");
}
