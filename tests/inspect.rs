//! `qft inspect`: models, adapters, files of both formats.

use serde_json::Value;

use crate::workbench::Bench;

fn bench() -> Bench {
    let bench = Bench::new();
    bench.base(32);
    bench.adapter("adapter", 32);
    bench
}

#[test]
fn a_model_an_adapter_a_file() {
    let bench = bench();
    let model = bench.ok("inspect base").out;
    assert!(model.starts_with("model base: 11 tensors, 10,336 parameters, 20.7 KB\n"), "{model}");
    assert!(model.contains("model_type: \"llama\""), "{model}");
    assert!(model.contains("model.layers.0.self_attn.q_proj.weight  BF16  [32, 32]"), "{model}");
    let adapter = bench.ok("inspect adapter").out;
    assert!(adapter.starts_with("adapter adapter: 8 tensors") && adapter.contains("lora_alpha: 8"), "{adapter}");
    let file = bench.ok("inspect adapter/adapter_model.safetensors").out;
    assert!(file.starts_with("file adapter/adapter_model.safetensors: 8 tensors"), "{file}");
}

#[test]
fn statistics_are_those_of_the_values() {
    let bench = bench();
    let mut tensors = bench.model("base");
    let values = [1.0f32, -2.0, 0.0, f32::NAN, f32::INFINITY, 4.0];
    let bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    tensors.insert("odd".to_owned(), (safetensors::Dtype::BF16, vec![2, 3], bytes));
    bench.tensors("base/model.safetensors", &tensors);
    let json: Value = serde_json::from_str(&bench.ok("inspect base --stats --json").out).unwrap();
    let odd = json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "odd").unwrap();
    let stats = &odd["stats"];
    assert_eq!((stats["nan"].as_u64(), stats["inf"].as_u64(), stats["zeros"].as_u64()), (Some(1), Some(1), Some(1)));
    assert_eq!(
        (stats["min"].as_f64(), stats["max"].as_f64(), stats["mean"].as_f64()),
        (Some(-2.0), Some(4.0), Some(0.75))
    );
    assert!(bench.ok("inspect base --stats").out.contains("nan"));
}

#[test]
fn statistics_of_other_types_than_floats() {
    use safetensors::Dtype;

    let bench = Bench::new();
    let doubles = [0.5f64, -1.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensors = [
        ("mask", Dtype::BOOL, vec![4], vec![1, 0, 1, 1]),
        ("ids", Dtype::I64, vec![1], vec![7, 0, 0, 0, 0, 0, 0, 0]),
        ("wide", Dtype::F64, vec![2], doubles),
        ("fp8", Dtype::F8_E4M3, vec![2], vec![0x38, 0xb8]),
        ("complex", Dtype::C64, vec![1], vec![0; 8]),
    ];
    let tensors = tensors.map(|(name, dtype, shape, bytes)| (name.to_owned(), (dtype, shape, bytes)));
    bench.tensors("x.safetensors", &tensors.into());
    let json: Value = serde_json::from_str(&bench.ok("inspect x.safetensors --stats --json").out).unwrap();
    let found = json["tensors"].as_array().unwrap().iter().map(|t| {
        let number = |key: &str| t["stats"][key].as_f64();
        (t["name"].as_str().unwrap(), [number("min"), number("max"), number("mean"), number("std")])
    });
    let found: std::collections::BTreeMap<&str, [Option<f64>; 4]> = found.collect();
    assert_eq!(found["mask"][..3], [Some(0.0), Some(1.0), Some(0.75)]);
    assert_eq!(found["ids"], [Some(7.0), Some(7.0), Some(7.0), Some(0.0)]);
    assert_eq!(found["wide"], [Some(-1.5), Some(0.5), Some(-0.5), Some(1.0)]);
    assert_eq!(found["fp8"], [Some(-1.0), Some(1.0), Some(0.0), Some(1.0)]);
    assert_eq!(found["complex"], [None; 4]);
    let text = bench.ok("inspect x.safetensors --stats").out;
    let line = text.lines().find(|line| line.starts_with("complex")).unwrap();
    assert!(line.ends_with("not computed"), "{text}");
    assert!(!bench.ok("inspect x.safetensors").out.contains("not computed"));
}

#[test]
fn a_gguf_file() {
    use qft::ggml::TensorType;
    use qft::gguf::{Metadata, TensorForm, Value as Key, lay_out};

    let bench = Bench::new();
    let mut keys = Metadata::default();
    keys.set("general.architecture", Key::string("llama"));
    keys.set("llama.rope.freq_base", Key::F32(0.1));
    keys.set("tokenizer.ggml.tokens", Key::strings((0..20).map(|i| format!("t{i}"))));
    let norm = TensorForm { name: "output_norm.weight", shape: &[2], kind: TensorType::F32 };
    let embedding = TensorForm { name: "token_embd.weight", shape: &[20, 3], kind: TensorType::F16 };
    let made = lay_out(&keys, &[norm, embedding]).unwrap();
    let mut bytes = made.header;
    bytes.extend([1.0f32, -3.0].map(f32::to_le_bytes).concat());
    bytes.resize(made.total as usize, 0);
    bench.write("m.gguf", bytes);
    let text = bench.ok("inspect m.gguf").out;
    let lines = [
        "gguf m.gguf: 2 tensors, 62 parameters, 128 B, 16.52 bits per weight",
        "  general.architecture: str \"llama\"",
        "  llama.rope.freq_base: f32 0.1",
        "  tokenizer.ggml.tokens: [str] of 20 \"t0\", \"t1\", \"t2\", \"t3\", \"t4\", \"t5\", \"t6\", \"t7\", ...",
        "output_norm.weight  F32  [2]        8 B  m.gguf",
        "token_embd.weight   F16  [20, 3]  120 B  m.gguf",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    let json: Value = serde_json::from_str(&bench.ok("inspect m.gguf --stats --json").out).unwrap();
    assert_eq!((&json["kind"], &json["gguf"]["keys"][2]["count"]), (&Value::from("gguf"), &Value::from(20)));
    assert_eq!(json["tensors"][0]["stats"]["min"], -3.0);
    assert_eq!(json["tensors"][1]["stats"]["zeros"], 60);
    assert!(bench.ok("verify m.gguf").out.contains("no problems"));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let bench = bench();
    let mut command = bench.command();
    command.args(["inspect", "base"]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
