//! Tests of broken metadata: each is refused by the names of the file and of the key.

use std::fs;

use super::{Made, VOCABULARY, options, text};
use crate::export::to_hf::ToHfPlan;
use crate::ggml::TensorType;
use crate::gguf::{Array, GgufModel, Value};

#[test]
fn a_broken_key_is_refused_by_file_and_name() {
    let types = |kind| Value::Array(Array::I32(vec![kind; VOCABULARY]));
    let scores = |score, len| Value::Array(Array::F32(vec![score; len]));
    let numbers = || Value::Array(Array::I32(vec![1, 2]));
    let cases = [
        ("general.architecture", Value::U32(1)),
        ("general.sampling.temp", Value::string("0.7")),
        ("general.sampling.top_p", Value::F32(f32::NAN)),
        ("llama.attention.layer_norm_rms_epsilon", Value::string("1e-5")),
        ("llama.rope.freq_base", Value::string("500000")),
        ("llama.rope.freq_base", Value::F32(f32::INFINITY)),
        ("llama.rope.scale_linear", Value::Bool(true)),
        ("llama.rope.scaling.factor", Value::string("4")),
        ("llama.rope.scaling.type", Value::U32(2)),
        ("tokenizer.chat_template", numbers()),
        ("tokenizer.chat_template.tools", Value::U32(0)),
        ("tokenizer.ggml.add_bos_token", Value::U8(1)),
        ("tokenizer.ggml.add_eos_token", Value::string("true")),
        ("tokenizer.ggml.add_space_prefix", Value::U32(1)),
        ("tokenizer.ggml.bos_token_id", Value::string("<|start|>")),
        ("tokenizer.ggml.eot_token_id", Value::I32(-1)),
        ("tokenizer.ggml.mask_token_id", Value::F32(3.0)),
        ("tokenizer.ggml.merges", numbers()),
        ("tokenizer.ggml.model", Value::Bool(true)),
        ("tokenizer.ggml.pre", numbers()),
        ("tokenizer.ggml.scores", scores(f32::NAN, VOCABULARY)),
        ("tokenizer.ggml.scores", scores(f32::INFINITY, VOCABULARY)),
        ("tokenizer.ggml.scores", scores(0.0, VOCABULARY - 1)),
        ("tokenizer.ggml.token_type", types(0)),
        ("tokenizer.ggml.token_type", types(7)),
        ("tokenizer.ggml.token_type", types(99)),
        ("tokenizer.ggml.token_type", types(-5)),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1; VOCABULARY + 1]))),
        ("tokenizer.ggml.token_type", Value::strings(["1"; VOCABULARY])),
        ("tokenizer.ggml.tokens", numbers()),
    ];
    for (key, value) in cases {
        let said = Made::new("llama").set(key, value.clone()).refused();
        let kept = key.starts_with("tokenizer.") && !key.ends_with("_id");
        let remedy = if kept { "⟦tokenizer" } else { "download or convert the model again" };
        for mention in ["model.gguf: ", key, remedy] {
            assert!(said.contains(mention), "{key}, {value:?}: {said:?} should mention {mention:?}");
        }
    }
    let yarn = Made::new("llama").set("llama.rope.scaling.type", Value::string("yarn"));
    let yarn = yarn.set("llama.rope.scaling.factor", Value::F32(4.0));
    assert_eq!(text(&yarn.plan().unwrap(), "config.json")["rope_scaling"]["factor"], 4.0);
    assert!(yarn.set("llama.rope.scaling.yarn_beta_fast", Value::string("32")).refused().contains("yarn_beta_fast"));
}

#[test]
fn a_vocabulary_without_its_order_is_refused() {
    let mut made = Made::new("llama").set("tokenizer.ggml.merges", Value::strings(Vec::<String>::new()));
    let said = made.refused();
    assert!(said.contains("tokenizer.ggml.merges") && said.contains("⟦tokenizer"), "{said}");
    made.metadata.remove("tokenizer.ggml.merges");
    assert_eq!(made.refused(), said);
    let said = made.set("tokenizer.ggml.model", Value::string("llama")).refused();
    assert!(said.contains("tokenizer.ggml.scores") && said.contains("⟦tokenizer"), "{said}");
}

#[test]
fn rotary_factors_are_one_for_each_frequency() {
    for (len, planned) in [(8, true), (0, false), (7, false), (16, false)] {
        let mut made = Made::new("llama");
        made.add("rope_freqs.weight", &[len], TensorType::F32);
        let path = made.write();
        let mut file = fs::read(&path).unwrap();
        let start = GgufModel::open(&path).unwrap().tensor("rope_freqs.weight").unwrap().info().offset;
        file[start..][..len * 4].chunks_mut(4).for_each(|out| out.copy_from_slice(&1f32.to_le_bytes()));
        fs::write(&path, file).unwrap();
        let plan = ToHfPlan::new(GgufModel::open(&path).unwrap(), &made.dir.path().join("out"), options());
        let said = plan.map_or_else(|error| error.to_string(), |_| "planned".to_owned());
        assert!(said.contains(if planned { "planned" } else { "rope_freqs.weight has" }), "{len}: {said}");
    }
}

#[test]
fn an_id_without_its_token_is_left_out_and_told() {
    let plan = Made::new("llama").set("tokenizer.ggml.padding_token_id", Value::U32(70)).plan().unwrap();
    assert!(plan.warnings[0].contains("tokenizer.ggml.padding_token_id is 70"), "{:?}", plan.warnings);
    assert_eq!(text(&plan, "config.json").get("pad_token_id"), None);
}
