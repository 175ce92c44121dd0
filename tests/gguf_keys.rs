//! Keys and tensors of a GGUF against those of llama.cpp's converter: the golden cases of `fixtures/make_gguf_keys.py`.

use std::path::Path;

use qft::arch::{HfTensor, Rows};
use qft::checkpoint::ModelFiles;
use qft::gguf::convert::{Conversion, Options, convert};
use qft::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;

fn json(path: &Path) -> Json {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The case's conversion by qft, and what the converter made of it.
fn case(dir: &Path, options: Options) -> (Conversion, Json) {
    let expected = json(&dir.join("expected.json"));
    let mut files =
        ModelFiles { directory: dir.file_name().unwrap().to_string_lossy().into_owned(), ..ModelFiles::default() };
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        files.paths.insert(entry.file_name().unwrap().to_string_lossy().into_owned(), entry);
    }
    files.config = json(&dir.join("config.json"));
    let listed = json(&dir.join("tensors.json"));
    let tensors: Vec<HfTensor> = listed["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| HfTensor {
            name: row[0].as_str().unwrap().to_owned(),
            dtype: serde_json::from_value(row[1].clone()).unwrap(),
            shape: serde_json::from_value(row[2].clone()).unwrap(),
        })
        .collect();
    let options = Options {
        file_type: expected["file_type"].as_u64().unwrap() as u32,
        name: expected["name"].as_str().map(str::to_owned),
        ..options
    };
    (convert(&files, &tensors, &options).unwrap(), expected)
}

fn value(kind: &str, json: &Json) -> Value {
    let strings = || json.as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    match kind {
        "u32" => Value::U32(json.as_u64().unwrap() as u32),
        "i32" => Value::I32(json.as_i64().unwrap() as i32),
        "f32" => Value::F32(json.as_f64().unwrap() as f32),
        "bool" => Value::Bool(json.as_bool().unwrap()),
        "string" => Value::string(json.as_str().unwrap()),
        "[string]" => Value::strings(strings()),
        "[i32]" => Value::Array(Array::I32(serde_json::from_value(json.clone()).unwrap())),
        _ => panic!("{kind}"),
    }
}

/// The one difference: the whole factor of YaRN, which the converter writes, and what llama.cpp has to multiply by, under
/// the key that it reads too.
fn as_llama_cpp_reads((key, value): (String, Value)) -> Vec<(String, Value)> {
    let Some(prefix) = key.strip_suffix("yarn_attn_factor") else { return vec![(key, value)] };
    assert_eq!((prefix, value), ("qwen2.rope.scaling.", Value::F32(0.9)), "qwen-yarn-5, which has the factor 2");
    let times = Value::F32((0.9 / (0.1 * 2f64.ln() + 1.0)) as f32);
    vec![(key.clone(), times.clone()), (format!("{prefix}attn_factor"), times)]
}

fn cases() -> Vec<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf_keys");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() > 20);
    dirs
}

#[test]
fn keys_are_the_converters() {
    for dir in cases() {
        let (ours, expected) = case(&dir, Options::default());
        let expected: Vec<(String, Value)> = expected["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| (row[0].as_str().unwrap().to_owned(), value(row[1].as_str().unwrap(), &row[2])))
            // The tokenizer's keys have golden cases of their own.
            .filter(|(key, _)| !key.starts_with("tokenizer."))
            .flat_map(as_llama_cpp_reads)
            .collect();
        let mut all = ours.before_vocab.clone();
        ours.after_vocab.iter().for_each(|(key, value)| all.set(key, value.clone()));
        let all: Vec<(String, Value)> = all.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        assert_eq!(all, expected, "{}", dir.display());
    }
}

#[test]
fn tensors_are_the_converters() {
    for dir in cases() {
        let (ours, expected) = case(&dir, Options::default());
        let expected = expected["tensors"].as_array().unwrap();
        assert_eq!(ours.tensors.len(), expected.len(), "{}", dir.display());
        for (tensor, row) in ours.tensors.iter().zip(expected) {
            let shape: Vec<usize> = serde_json::from_value(row[1].clone()).unwrap();
            assert_eq!((Some(tensor.name.as_str()), &tensor.shape), (row[0].as_str(), &shape), "{}", dir.display());
            if let Some(stays) = row[2].as_bool() {
                assert_eq!(tensor.always_f32, stays, "{} of {}", tensor.name, dir.display());
            }
            match &tensor.rows {
                Rows::Tensor { name, heads } => {
                    assert_eq!(Some(name.as_str()), row[3].as_str(), "{} of {}", tensor.name, dir.display());
                    assert_eq!(heads.map(|n| n as u64), row[4].as_u64(), "{} of {}", tensor.name, dir.display());
                }
                Rows::Values(values) => {
                    let expected: Vec<u32> =
                        row[3].as_array().unwrap().iter().map(|v| (v.as_f64().unwrap() as f32).to_bits()).collect();
                    assert_eq!(values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected, "{}", dir.display());
                }
            }
        }
    }
}

#[test]
fn a_merge_is_recorded() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf_keys/Qwen2.5-0.5B-Instruct");
    let lineage = qft::gguf::Lineage {
        base: Some("Qwen/Qwen2.5-0.5B-Instruct".to_owned()),
        adapter: Some("me/my-lora".to_owned()),
        sha256: Some("00".repeat(32)),
        rank: Some(16),
        alpha: Some(32.0),
        weight: Some(1.0),
        ..Default::default()
    };
    let (plain, _) = case(&dir, Options::default());
    let (merged, _) = case(&dir, Options { lineage: vec![lineage], ..Options::default() });
    let get = |keys: &Metadata, key: &str| keys.get(key).and_then(Value::as_str).map(str::to_owned);
    // The base's card names the base's own base; the merge names the base.
    let key = "general.base_model.0.repo_url";
    assert_eq!(get(&plain.before_vocab, key).as_deref(), Some("https://huggingface.co/Qwen/Qwen2.5-0.5B"));
    assert_eq!(get(&merged.before_vocab, key).as_deref(), Some("https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct"));
    assert_eq!(get(&merged.after_vocab, "qft.adapter.0.repo").as_deref(), Some("me/my-lora"));
    assert_eq!(merged.after_vocab.get("qft.adapter.0.rank"), Some(&Value::U32(16)));
    let keys =
        |conversion: &Conversion| conversion.before_vocab.iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(&plain), keys(&merged));
}
