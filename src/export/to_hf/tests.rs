//! Tests of plans on tiny GGUF files that are made here. Those of broken metadata are in `broken`.

mod broken;

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value as Json, json};

use super::values::GgufSource;
use super::{ToHfOptions, ToHfPlan};
use crate::ggml::{TensorType, decode};
use crate::gguf::{Array, GgufModel, Metadata, TensorForm, Value, lay_out};
use crate::merge::Float;
use crate::size::ByteSize;

/// A GGUF in the making.
struct Made {
    dir: tempfile::TempDir,
    metadata: Metadata,
    tensors: Vec<(String, Vec<usize>, TensorType)>,
}

const HIDDEN: usize = 64;
const VOCABULARY: usize = 70;

impl Made {
    /// A complete model of two layers, four heads and two key-value heads, with a byte-level vocabulary of which the
    /// last tokens are padding.
    fn new(architecture: &str) -> Self {
        let mut metadata = Metadata::default();
        let mut set = |key: &str, value: Value| metadata.set(key, value);
        set("general.architecture", Value::string(architecture));
        for (key, value) in [
            ("block_count", 2),
            ("context_length", 512),
            ("embedding_length", 64),
            ("feed_forward_length", 96),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
        ] {
            set(&format!("{architecture}.{key}"), Value::U32(value));
        }
        set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        set(&format!("{architecture}.rope.freq_base"), Value::F32(500_000.0));
        set("tokenizer.ggml.model", Value::string("gpt2"));
        set("tokenizer.ggml.pre", Value::string("qwen2"));
        let mut tokens: Vec<String> = ["a", "b", "ab", "<|start|>", "c"].map(str::to_owned).to_vec();
        tokens.extend(["<|end|>", "<tool>"].map(str::to_owned));
        tokens.extend((7..VOCABULARY).map(|id| format!("[PAD{id}]")));
        let mut types = vec![1, 1, 1, 3, 1, 3, 4];
        types.resize(tokens.len(), 5);
        set("tokenizer.ggml.tokens", Value::strings(tokens));
        set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
        set("tokenizer.ggml.merges", Value::strings(["a b"]));
        set("tokenizer.ggml.bos_token_id", Value::U32(3));
        set("tokenizer.ggml.eos_token_id", Value::U32(5));
        set("tokenizer.chat_template", Value::string("{{ messages }}"));
        let mut made = Self { dir: tempfile::tempdir().unwrap(), metadata, tensors: Vec::new() };
        made.add("token_embd.weight", &[VOCABULARY, HIDDEN], TensorType::Q8_0);
        made.add("output_norm.weight", &[HIDDEN], TensorType::F32);
        for layer in 0..2 {
            for (name, shape) in [
                ("attn_norm.weight", vec![HIDDEN]),
                ("attn_q.weight", vec![HIDDEN, HIDDEN]),
                ("attn_k.weight", vec![HIDDEN / 2, HIDDEN]),
                ("attn_v.weight", vec![HIDDEN / 2, HIDDEN]),
                ("attn_output.weight", vec![HIDDEN, HIDDEN]),
                ("ffn_norm.weight", vec![HIDDEN]),
                ("ffn_gate.weight", vec![96, HIDDEN]),
                ("ffn_up.weight", vec![96, HIDDEN]),
                ("ffn_down.weight", vec![HIDDEN, 96]),
            ] {
                let kind = if shape.len() == 1 { TensorType::F32 } else { TensorType::Q4_0 };
                made.add(&format!("blk.{layer}.{name}"), &shape, kind);
            }
            if architecture == "qwen2" {
                for (name, rows) in [("attn_q", HIDDEN), ("attn_k", HIDDEN / 2), ("attn_v", HIDDEN / 2)] {
                    made.add(&format!("blk.{layer}.{name}.bias"), &[rows], TensorType::F32);
                }
            }
        }
        made
    }

    fn add(&mut self, name: &str, shape: &[usize], kind: TensorType) {
        self.tensors.push((name.to_owned(), shape.to_vec(), kind));
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.metadata.set(key, value);
        self
    }

    /// Writes the file, whose tensors are filled with bytes that are no special floats.
    fn write(&self) -> PathBuf {
        let forms = self.tensors.iter().map(|(name, shape, kind)| TensorForm { name, shape, kind: *kind });
        let layout = lay_out(&self.metadata, &forms.collect::<Vec<_>>()).unwrap();
        let mut file = layout.header.clone();
        file.resize(layout.total as usize, 0);
        for (i, (offset, len)) in layout.offsets.iter().zip(&layout.lens).enumerate() {
            let bytes = &mut file[*offset as usize..][..*len as usize];
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 + at / 64 + i) as u8 & 0x3f);
        }
        let path = self.dir.path().join("model.gguf");
        fs::write(&path, file).unwrap();
        path
    }

    fn model(&self) -> GgufModel {
        GgufModel::open(&self.write()).unwrap()
    }

    fn plan(&self) -> crate::Result<ToHfPlan> {
        self.plan_with(options())
    }

    fn plan_with(&self, options: ToHfOptions) -> crate::Result<ToHfPlan> {
        ToHfPlan::new(self.model(), &self.dir.path().join("out"), options)
    }

    fn refused(&self) -> String {
        self.plan().map_or_else(|error| error.to_string(), |_| "planned".to_owned())
    }
}

fn options() -> ToHfOptions {
    ToHfOptions {
        max_shard: ByteSize(u64::MAX),
        dtype: Float::Bf16,
        tie: false,
        tokenizer: None,
        overwrite: crate::stream::Overwrite::No,
    }
}

fn text(plan: &ToHfPlan, name: &str) -> Json {
    let (_, text) = plan.texts.iter().find(|(found, _)| found == name).unwrap();
    serde_json::from_slice(text).unwrap()
}

/// Every value of a GGUF tensor.
fn values(model: &GgufModel, name: &str) -> Vec<f32> {
    GgufSource::all(model.tensor(name).unwrap())
}

#[test]
fn names_shapes_and_config_of_a_tied_llama() {
    let made = Made::new("llama").set("llama.rope.dimension_count", Value::U32(16));
    let plan = made.plan().unwrap();
    assert_eq!((plan.tensors(), plan.shards.len(), plan.warnings.len()), (20, 1, 0), "{:?}", plan.warnings);
    let config = text(&plan, "config.json");
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 70, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 512, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0, "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
        "bos_token_id": 3, "eos_token_id": 5, "torch_dtype": "bfloat16", "use_cache": true,
    });
    assert_eq!(config, expected);
    let shard = &plan.shards[0];
    let mut file = shard.header.clone();
    file.resize(shard.len() as usize, 0);
    let read = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(read.tensor("model.layers.1.self_attn.k_proj.weight").unwrap().shape(), [32, 64]);
    assert!(read.tensor("lm_head.weight").is_err());
}

#[test]
fn a_head_of_its_own_unties_unless_asked() {
    let mut made = Made::new("qwen2");
    made.add("output.weight", &[VOCABULARY, HIDDEN], TensorType::Q4_0);
    let plan = made.plan().unwrap();
    assert_eq!((plan.tensors(), &text(&plan, "config.json")["tie_word_embeddings"]), (27, &json!(false)));
    let tied = made.plan_with(ToHfOptions { tie: true, ..options() }).unwrap();
    assert_eq!((tied.tensors(), &text(&tied, "config.json")["tie_word_embeddings"]), (26, &json!(true)));
    let embeddings = tied.shards[0].tensors.iter().find(|t| t.name == "model.embed_tokens.weight").unwrap();
    assert_eq!(embeddings.source.tensor.info().name, "output.weight");
}

#[test]
fn what_cannot_be_carried_over_is_refused_by_name() {
    let without = |name: &str| {
        let mut made = Made::new("qwen2");
        made.tensors.retain(|tensor| tensor.0 != name);
        made.refused()
    };
    assert!(without("blk.1.attn_k.bias").contains("lacks blk.1.attn_k.bias"));
    assert!(without("token_embd.weight").contains("token_embd.weight"));
    let with = |name: &str, shape: &[usize], kind| {
        let mut made = Made::new("llama");
        made.add(name, shape, kind);
        made.refused()
    };
    assert!(with("blk.0.attn_rot.weight", &[2], TensorType::F32).contains("blk.0.attn_rot.weight"));
    assert!(with("blk.2.ffn_up.weight", &[96, 64], TensorType::F32).contains("blk.2.ffn_up.weight"));
    assert!(with("blk.0.attn_q.bias", &[64], TensorType::F32).contains("blk.0.attn_k.bias"), "some biases, not all");
    assert!(with("output.weight", &[70, 32], TensorType::F32).contains("[70, 64]"));
    assert!(Made::new("bert").refused().contains("llama, qwen2, qwen3"));
    let cases = [
        ("llama.block_count", Value::U32(u32::MAX), "lacks"),
        ("llama.block_count", Value::U64(u64::MAX), "not a valid size"),
        ("llama.attention.head_count", Value::Array(Array::U32(vec![4, 4])), "not a valid size"),
        ("llama.attention.head_count_kv", Value::U32(3), "heads"),
        ("llama.attention.key_length", Value::U32(15), "heads"),
        ("llama.rope.dimension_count", Value::U32(8), "shape"),
        ("llama.rope.scaling.type", Value::string("odd"), "odd"),
        ("tokenizer.ggml.model", Value::string("bert"), "⟦tokenizer"),
        ("tokenizer.ggml.pre", Value::string("nobody"), "nobody"),
        ("tokenizer.ggml.tokens", Value::strings(["a"; VOCABULARY]), "twice"),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1])), "token_type"),
        ("tokenizer.ggml.merges", Value::strings(["a c"]), "a c"),
        ("tokenizer.chat_template.a/b", Value::string("x"), "a/b"),
    ];
    for (key, value, mention) in cases {
        let said = Made::new("llama").set(key, value).refused();
        assert!(said.contains(mention), "{key}: {said:?} should mention {mention:?}");
    }
}

#[test]
fn keys_without_a_place_are_told() {
    let plan = Made::new("llama").set("llama.attention.sliding_window", Value::U32(4)).plan().unwrap();
    assert!(plan.warnings[0].contains("llama.attention.sliding_window"));
}

#[test]
fn the_tokenizer_has_the_vocabulary_without_its_padding() {
    let plan = Made::new("qwen2").set("tokenizer.ggml.add_bos_token", Value::Bool(true)).plan().unwrap();
    let tokenizer = text(&plan, "tokenizer.json");
    assert_eq!(tokenizer["model"]["vocab"], json!({"a": 0, "b": 1, "ab": 2, "<|start|>": 3, "c": 4}));
    assert_eq!(tokenizer["model"]["merges"], json!(["a b"]));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let added: Vec<_> = added.iter().map(|t| (t["id"].clone(), t["content"].clone(), t["special"].clone())).collect();
    let expected = [(3, "<|start|>", true), (5, "<|end|>", true), (6, "<tool>", false)];
    assert_eq!(added, expected.map(|(id, text, special)| (json!(id), json!(text), json!(special))));
    assert_eq!(tokenizer["normalizer"], json!({"type": "NFC"}));
    let processors = tokenizer["post_processor"]["processors"].as_array().unwrap();
    assert_eq!(processors[1]["special_tokens"]["<|start|>"]["ids"], json!([3]));
    let config = text(&plan, "tokenizer_config.json");
    assert_eq!((&config["eos_token"], &config["add_bos_token"]), (&json!("<|end|>"), &json!(true)));
    assert!(plan.texts.iter().any(|(name, text)| name == "chat_template.jinja" && text == b"{{ messages }}"));
}

#[test]
fn a_sentencepiece_vocabulary_gets_merges_by_score() {
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "c", "ab", "bc", "abc", "\u{2581}"];
    let scores = [0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -9.0];
    let types = [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1];
    let made = Made::new("llama")
        .set("tokenizer.ggml.model", Value::string("llama"))
        .set("tokenizer.ggml.tokens", Value::strings(tokens))
        .set("tokenizer.ggml.scores", Value::Array(Array::F32(scores.to_vec())))
        .set("tokenizer.ggml.token_type", Value::Array(Array::I32(types.to_vec())))
        .set("tokenizer.ggml.bos_token_id", Value::U32(1));
    let plan = made.plan().unwrap();
    let tokenizer = text(&plan, "tokenizer.json");
    assert_eq!(tokenizer["model"]["merges"], json!(["b c", "a b", "ab c", "a bc"]));
    assert_eq!(tokenizer["model"]["unk_token"], "<unk>");
    assert_eq!(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    let (_, model) = plan.texts.iter().find(|(name, _)| name == "tokenizer.model").unwrap();
    assert!(model.starts_with(&[0x0a, 14, 0x0a, 5, b'<', b'u', b'n', b'k', b'>', 0x15, 0, 0, 0, 0, 0x18, 2]));
}

#[test]
fn rows_of_heads_come_back_in_their_order() {
    let model = Made::new("llama").model();
    for (name, heads, rows) in [("blk.0.attn_q.weight", 4, HIDDEN), ("blk.1.attn_k.weight", 2, HIDDEN / 2)] {
        let source = GgufSource { tensor: model.tensor(name).unwrap().clone(), heads: Some(heads) };
        let mut out = vec![0; rows * HIDDEN * 4];
        source.fill(name, Float::F32, 0..out.len(), &mut out).unwrap();
        let stored = values(&model, name);
        // The converter: heads, halves, rows of a half -> heads, rows of a half, halves.
        let half = rows / heads / 2;
        for row in 0..rows {
            let (head, part, within) = (row / (2 * half), row / half % 2, row % half);
            let from = &stored[(head * 2 * half + within * 2 + part) * HIDDEN..][..HIDDEN];
            let mut back = vec![0.0; HIDDEN];
            Float::F32.widen(&out[row * HIDDEN * 4..][..HIDDEN * 4], &mut back);
            assert_eq!(from, back, "{name} {row}");
        }
    }
}

#[test]
fn a_value_beyond_the_type_is_refused_with_its_place() {
    let mut made = Made::new("llama");
    made.tensors.clear();
    made.add("x", &[2, 3], TensorType::F32);
    let path = made.write();
    let mut file = fs::read(&path).unwrap();
    let start = GgufModel::open(&path).unwrap().tensors[0].info().offset;
    file[start + 16..start + 20].copy_from_slice(&1e6f32.to_le_bytes());
    fs::write(&path, file).unwrap();
    let source = GgufSource { tensor: GgufModel::open(&path).unwrap().tensors[0].clone(), heads: None };
    let error = source.fill("x", Float::F16, 0..12, &mut [0; 12]).unwrap_err().to_string();
    assert!(error.contains("row 1, column 1") && error.contains("f16"), "{error}");
    source.fill("x", Float::Bf16, 0..12, &mut [0; 12]).unwrap();
}

proptest! {
    /// However a tensor is cut into ranges, the bytes are those of all its values.
    #[test]
    fn ranges_make_the_tensor(
        cuts in proptest::collection::vec(1usize..700, 1..8),
        name in proptest::sample::select(vec!["token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_norm.weight"]),
        permuted: bool,
        float in proptest::sample::select(vec![Float::Bf16, Float::F16, Float::F32]),
    ) {
        let model = Made::new("llama").model();
        let tensor = model.tensor(name).unwrap().clone();
        let elements: usize = tensor.info().shape.iter().product();
        let heads = (permuted && name != "token_embd.weight").then_some(4);
        let source = GgufSource { tensor, heads };
        prop_assert!(source.is_readable() && decode::can_decode(source.tensor.info().kind));
        let mut whole = vec![0; elements * float.size()];
        source.fill(name, float, 0..whole.len(), &mut whole).unwrap();
        if heads.is_none() {
            let mut expected = vec![0; whole.len()];
            float.narrow(&values(&model, name), &mut expected);
            prop_assert_eq!(&whole, &expected);
        }
        let mut start = 0;
        for cut in cuts.iter().cycle() {
            let end = (start + cut * float.size()).min(whole.len());
            let mut out = vec![0x55; end - start];
            source.fill(name, float, start..end, &mut out).unwrap();
            prop_assert_eq!(&out[..], &whole[start..end]);
            start = end;
            if start == whole.len() {
                break;
            }
        }
    }
}
