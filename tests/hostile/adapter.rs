//! Adapters that can't be merged: tensors that don't fit, broken values, kinds that qft refuses, broken configs.

use std::collections::BTreeMap;
use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{EXPORT, Scene, expect_none};
use crate::workbench::{Data, f32_noise};

type Tensors = BTreeMap<String, Data>;

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";
const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
const Q_BASE: &str = "model.layers.0.self_attn.q_proj.weight";

fn put(tensors: &mut Tensors, name: impl Into<String>, shape: &[usize]) {
    tensors.insert(name.into(), f32_noise(shape, 9));
}

fn rename(tensors: &mut Tensors, from: &str, to: &str) {
    let moved: Vec<String> = tensors.keys().filter(|name| name.contains(from)).cloned().collect();
    for name in moved {
        let data = tensors.remove(&name).unwrap();
        tensors.insert(name.replace(from, to), data);
    }
}

fn retype(tensors: &mut Tensors, name: &str, dtype: Dtype, width: usize) {
    let data = tensors.get_mut(name).unwrap();
    let elements: usize = data.1.iter().product();
    (data.0, data.2) = (dtype, vec![0; elements * width]);
}

fn set_value(tensors: &mut Tensors, name: &str, row: usize, column: usize, value: f32) {
    let (_, shape, bytes) = tensors.get_mut(name).unwrap();
    let at = 4 * (row * shape[1] + column);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn tensors_of_embedding(tensors: &mut Tensors, a: [usize; 2], b: [usize; 2]) {
    put(tensors, "base_model.model.model.embed_tokens.lora_embedding_A", &a);
    put(tensors, "base_model.model.model.embed_tokens.lora_embedding_B", &b);
}

fn token_rows(tensors: &mut Tensors, n: usize) {
    put(tensors, ROWS, &[n, 8]);
}

/// The same pair once more, by a shorter name of the same module.
fn second_path(tensors: &mut Tensors) {
    for part in ["lora_A", "lora_B"] {
        let data = tensors[&format!("{Q}.{part}.weight")].clone();
        tensors.insert(format!("{SHORT}.{part}.weight"), data);
    }
}

type Row = (&'static str, fn(&mut Tensors), &'static [&'static str]);

const MISFITS: &[Row] = &[
    ("an unknown part", |t| put(t, format!("{Q}.lora_E"), &[4]), &["q_proj.lora_E", "not a tensor of a LoRA"]),
    ("no prefix", |t| put(t, "q.lora_A.weight", &[4, 8]), &["q.lora_A.weight", "not a tensor of a LoRA"]),
    ("an optimizer's state", |t| put(t, "exp_avg", &[4]), &["exp_avg", "not a tensor of a LoRA"]),
    ("an untrained copy", |t| put(t, UNTRAINED, &[48, 8]), &[UNTRAINED, "trained values are missing"]),
    ("no B", |t| drop(t.remove(B)), &[A, "other factor"]),
    ("no A", |t| drop(t.remove(A)), &[B, "other factor"]),
    ("the B of an embedding", |t| rename(t, B, &B.replace("B.weight", "embedding_B")), &[A, "other factor"]),
    ("an A too wide", |t| put(t, A, &[4, 9]), &[A, Q_BASE, "[8, 8]"]),
    ("a B too tall", |t| put(t, B, &[9, 4]), &[A, Q_BASE, "[8, 8]"]),
    ("a transposed A", |t| put(t, A, &[8, 4]), &[A, "[8, 4]", "rank 4"]),
    ("another rank", |t| (put(t, A, &[3, 8]), put(t, B, &[8, 3])).0, &[A, "[3, 8]", "rank 4"]),
    ("ranks that differ", |t| put(t, B, &[8, 3]), &[A, "[8, 3]", "rank 4"]),
    ("a vector", |t| put(t, A, &[32]), &[A, "[32]"]),
    ("a scalar", |t| put(t, A, &[]), &[A, "[]"]),
    // What DeepSpeed's ZeRO-3 leaves when the weights aren't gathered.
    ("factors without values", |t| (put(t, A, &[0]), put(t, B, &[0])).0, &[A, "[0]"]),
    ("factors without rank", |t| (put(t, A, &[0, 8]), put(t, B, &[8, 0])).0, &[A, "[0, 8]", "rank 4"]),
    ("no tensors", Tensors::clear, &["adapter_model.safetensors"]),
    ("a convolution", |t| put(t, B, &[8, 4, 3, 3]), &[A, "[8, 4, 3, 3]"]),
    ("an A of integers", |t| retype(t, A, Dtype::I32, 4), &[A, "I32"]),
    ("a B of bytes", |t| retype(t, B, Dtype::U8, 1), &[B, "U8"]),
    ("an A of doubles", |t| retype(t, A, Dtype::F64, 8), &[A, "F64"]),
    ("an A of eight bits", |t| retype(t, A, Dtype::F8_E4M3, 1), &[A, "F8_E4M3"]),
    ("a value of integers", |t| (put(t, NORM, &[8]), retype(t, NORM, Dtype::I64, 8)).1, &[NORM, "I64"]),
    ("a value that does not fit", |t| put(t, NORM, &[9]), &[NORM, "[9]", "[8]"]),
    ("a value that the base lacks", |t| put(t, SCORE, &[2, 8]), &[SCORE, "the base has no"]),
    (
        "a layer too many",
        |t| rename(t, "layers.1", "layers.7"),
        &["layers.7.self_attn.q_proj", "nearest: model.layers."],
    ),
    ("an unknown module", |t| rename(t, "q_proj", "qkv"), &["self_attn.qkv", "nearest: model.layers."]),
    ("an A in two spellings", |t| put(t, A.replace("lora_A", "lora_A.default"), &[4, 8]), &[A, "twice"]),
    ("a module by two paths", second_path, &["q_proj.lora_A.weight", Q_BASE]),
    (
        "norms alone",
        |t| put(t, "base_model.model.model.norm.lora_magnitude_vector", &[8]),
        &["model.norm.lora_magnitude"],
    ),
    (
        "norms that do not fit",
        |t| put(t, format!("{Q}.lora_magnitude_vector"), &[7]),
        &["magnitude_vector", "[7]", "8"],
    ),
    ("a bias that the base lacks", |t| put(t, format!("{Q}.lora_B.bias"), &[8]), &["lora_B.bias", "q_proj.bias"]),
    ("an embedding too short", |t| tensors_of_embedding(t, [4, 47], [8, 4]), &["embedding_A", "[4, 47]", "[48, 8]"]),
    ("an embedding of rank 0", |t| tensors_of_embedding(t, [0, 48], [8, 0]), &["embedding_A", "[0, 48]", "rank 4"]),
    ("token rows without indices", |t| token_rows(t, 2), &[ROWS, "[0, 8]"]),
];

const SHORT: &str = "base_model.model.layers.0.self_attn.q_proj";
const NORM: &str = "base_model.model.model.norm.weight";
const SCORE: &str = "base_model.model.score.weight";
const UNTRAINED: &str = "base_model.model.lm_head.original_module.weight";
const ROWS: &str = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";

/// What is wrong with how an export refuses the adapter with `change` and settings `config`.
fn refused(scene: &Scene, (what, change, mentions): &Row, config: Value) -> Vec<String> {
    let mut tensors = scene.0.adapter("lora", 8);
    change(&mut tensors);
    scene.0.tensors("lora/adapter_model.safetensors", &tensors);
    scene.0.adapter_config("lora", config);
    scene.export_refuses(what, mentions)
}

#[test]
fn tensors_that_do_not_fit() {
    let scene = Scene::new();
    expect_none(MISFITS.iter().flat_map(|row| refused(&scene, row, json!({}))));
}

#[test]
fn settings_that_do_not_fit_the_tensors() {
    let nothing: fn(&mut Tensors) = |_| ();
    let tokens = |indices: Value| json!({"trainable_token_indices": indices});
    let rows: [(Row, Value); 11] = [
        (("another rank", nothing, &[A, "rank 8"]), json!({"r": 8})),
        (("a huge rank", nothing, &[A, "rank 1000000000000000000"]), json!({"r": 1_000_000_000_000_000_000u64})),
        (("the largest rank", nothing, &[A, "rank 18446744073709551615"]), json!({"r": u64::MAX})),
        (("another rank by pattern", nothing, &[A, "rank 8"]), json!({"rank_pattern": {"q_proj": 8}})),
        (("a huge rank by pattern", nothing, &["q_proj", "whole number"]), json!({"rank_pattern": {"q_proj": 1e18}})),
        (("a scale beyond floats", nothing, &[A, "scale", "finite"]), json!({"lora_alpha": 1e300})),
        (("DoRA without norms", nothing, &["q_proj", "lora_magnitude_vector is missing"]), json!({"use_dora": true})),
        (("fewer rows than indices", |t| token_rows(t, 1), &[ROWS, "[2, 8]"]), tokens(json!([1, 2]))),
        (("a row twice", |t| token_rows(t, 2), &[ROWS, "a row twice"]), tokens(json!([1, 1]))),
        (("a row beyond the end", |t| token_rows(t, 1), &[ROWS, "beyond the 48"]), tokens(json!([48]))),
        (("a row beyond all ends", |t| token_rows(t, 1), &[ROWS, "beyond the 48"]), tokens(json!([u64::MAX]))),
    ];
    let scene = Scene::new();
    expect_none(rows.into_iter().flat_map(|(row, config)| refused(&scene, &row, config)));
}

#[test]
fn values_that_are_broken() {
    let at: &[&str] = &["tensor model.layers.0.self_attn.q_proj.weight", "row 0, column 3"];
    let rows: [Row; 4] = [
        ("NaN in A", |t| set_value(t, A, 1, 3, f32::NAN), at),
        ("infinity in A", |t| set_value(t, A, 1, 3, f32::INFINITY), at),
        ("a sum beyond f32", |t| (set_value(t, A, 1, 3, f32::MAX), set_value(t, B, 0, 1, 9.0)).0, at),
        ("NaN in B", |t| set_value(t, B, 2, 1, f32::NAN), &[Q_BASE, "row 2, column 0", "NaN"]),
    ];
    let scene = Scene::new();
    let mut wrong: Vec<String> = rows.iter().flat_map(|row| refused(&scene, row, json!({}))).collect();
    let scene = Scene::new();
    let mut base = scene.0.base(8);
    base.get_mut(Q_BASE).unwrap().2[6..8].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    scene.0.tensors("base/model.safetensors", &base);
    wrong.extend(scene.export_refuses("NaN in the base", &[at[0], at[1], "NaN"]));
    expect_none(wrong);
}

#[test]
fn kinds_that_qft_refuses_by_name() {
    let kinds = [
        "LOHA",
        "LOKR",
        "IA3",
        "VERA",
        "OFT",
        "BOFT",
        "ADALORA",
        "HRA",
        "FOURIERFT",
        "MISS",
        "RANDLORA",
        "ROAD",
        "SHIRA",
        "HIRA",
        "C3A",
        "WAVEFT",
        "DELORA",
        "GRALORA",
        "VBLORA",
        "LN_TUNING",
        "TRAINABLE_TOKENS",
        "TINYLORA",
        "PROMPT_TUNING",
        "MULTITASK_PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "ADAPTION_PROMPT",
        "CPT",
        "CARTRIDGE",
        "LILY",
        "XLORA",
        "POLY",
        "SHADOW",
        "FROD",
        "PVERA",
        "GLORA",
        "lora",
        "NEXT_YEARS",
    ];
    let variants = [
        ("init_lora_weights", json!("pissa"), "pissa"),
        ("init_lora_weights", json!("pissa_niter_16"), "pissa_niter_16"),
        ("init_lora_weights", json!("olora"), "olora"),
        ("init_lora_weights", json!("corda"), "corda"),
        ("init_lora_weights", json!("loftq"), "loftq"),
        ("init_lora_weights", json!("lora_ga"), "lora_ga"),
        ("init_lora_weights", json!("next_years"), "next_years"),
        ("kasa_config", json!({"beta": 1}), "KaSA"),
        ("use_qalora", json!(true), "QALoRA"),
        ("use_bdlora", json!({"nblocks": 2}), "BD-LoRA"),
        ("alora_invocation_tokens", json!([1, 2]), "aLoRA"),
        ("arrow_config", json!({"top_k": 3}), "Arrow"),
        ("layer_replication", json!([[0, 2], [1, 2]]), "layer replication"),
        ("peft_type", json!(7), "kind"),
    ];
    let rows = kinds.into_iter().map(|kind| ("peft_type", json!(kind), kind)).chain(variants);
    let scene = Scene::new();
    let wrong = rows.filter_map(|(key, value, mention)| {
        scene.0.adapter_config("lora", json!({key: value}));
        scene.refuses(mention, &[EXPORT, &["--out", "out"]].concat(), &["lora/adapter_config.json", mention])
    });
    expect_none(wrong);
}

#[test]
fn configs_that_are_broken() {
    let config = |key: &str, value: &str| {
        let mut all = vec![r#""peft_type":"LORA""#.to_owned()];
        all.extend(
            [("r", "4"), ("lora_alpha", "8")].iter().filter(|(k, _)| *k != key).map(|(k, v)| format!("\"{k}\":{v}")),
        );
        format!("{{{},\"{key}\":{value}}}", all.join(","))
    };
    let rank =
        |pattern: &str, value: &str| config("rank_pattern", &json!({pattern: 0}).to_string().replace('0', value));
    let rows = [
        ("empty", String::new(), "EOF"),
        ("half", r#"{"peft_type":"#.to_owned(), "EOF"),
        ("YAML", "peft_type: LORA".to_owned(), "expected"),
        ("a list", "[]".to_owned(), "expected a map"),
        ("no settings", "{}".to_owned(), "missing field"),
        ("two configs", config("r", "4").repeat(2), "trailing"),
        ("many brackets", config("x", &"[".repeat(200_000)), "recursion"),
        ("no rank", config("r", "null"), "invalid type"),
        ("rank 0", config("r", "0"), "above zero"),
        ("rank -1", config("r", "-1"), "invalid value"),
        ("a rank with a fraction", config("r", "4.5"), "invalid type"),
        ("a rank with an exponent", config("r", "1e18"), "invalid type"),
        ("a rank in quotes", config("r", "\"4\""), "invalid type"),
        ("a rank of 65 bits", config("r", "18446744073709551616"), "invalid type"),
        ("no alpha", config("lora_alpha", "null"), "invalid type"),
        ("an endless alpha", config("lora_alpha", "1e999"), "number out of range"),
        ("Python's NaN", config("lora_alpha", "NaN"), "expected value"),
        ("Python's True", config("use_dora", "True"), "expected value"),
        ("a switch in quotes", config("use_rslora", "\"yes\""), "invalid type"),
        ("a pattern that looks ahead", rank("(?!k)q_proj", "4"), "look-around"),
        ("a pattern that looks behind", rank("(?<=self_attn.)q_proj", "4"), "look-around"),
        ("a pattern that refers back", rank(r"(a)\1", "4"), "not understood"),
        ("half a pattern", rank("(q_proj", "4"), "not understood"),
        ("a pattern that explodes", rank("((((a{99}){99}){99}){99}){99}", "4"), "pattern ((((a"),
        ("a rank of 0 by pattern", rank("q_proj", "0"), "whole number"),
        ("a rank of 100 bits by pattern", rank("q_proj", "1e30"), "whole number"),
        ("half a rank by pattern", rank("q_proj", "0.5"), "whole number"),
        ("a rank in quotes by pattern", rank("q_proj", "\"4\""), "whole number"),
        ("patterns in a list", config("rank_pattern", r#"["q_proj"]"#), "invalid type"),
        ("an alpha in quotes by pattern", config("alpha_pattern", r#"{"q_proj":"8"}"#), "not a number"),
        ("token rows as text", config("trainable_token_indices", "\"all\""), "did not match"),
        (
            "token rows below zero",
            config("trainable_token_indices", r#"{"embed_tokens":[-1]}"#),
            "trainable_token_indices",
        ),
        ("a base that is no text", config("base_model_name_or_path", "[\"base\"]"), "invalid type"),
    ];
    let scene = Scene::new();
    let wrong = rows.into_iter().flat_map(|(what, text, mention)| {
        scene.0.write("lora/adapter_config.json", text);
        scene.export_refuses(what, &["lora/adapter_config.json", mention])
    });
    let mut wrong: Vec<String> = wrong.collect();
    scene.0.write("lora/adapter_config.json", b"{\"peft_type\":\"\xff\"}");
    wrong.extend(scene.export_refuses("no text", &["lora/adapter_config.json"]));
    expect_none(wrong);
}

/// Each pattern is allowed by itself; hundreds of them must not add up to gigabytes.
#[test]
fn patterns_that_add_up() {
    let scene = Scene::new();
    let patterns: BTreeMap<String, u8> = (0..100).map(|i| (format!(r"[\w{i}]{{90}}"), 4)).collect();
    scene.0.adapter_config("lora", json!({"rank_pattern": patterns, "base_model_name_or_path": null}));
    let wrapper = ["prlimit", "--as=400000000"];
    let said = scene.run(&wrapper, &[EXPORT, &["--out", "out"]].concat());
    assert!(matches!(said.code, Some(0 | 1)), "{:?} {}", said.code, said.err);
}

/// Empty matrices may claim any number of experts.
#[test]
fn experts_without_number() {
    let scene = Scene::new();
    scene.0.adapter_config("lora", json!({"target_parameters": ["mlp.experts.gate_up_proj"]}));
    let adapter: Tensors = ["A", "B"]
        .map(|part| (format!("base_model.model.model.layers.0.mlp.experts.lora_{part}.weight"), f32_noise(&[4, 8], 1)))
        .into();
    scene.0.tensors("lora/adapter_model.safetensors", &adapter);
    let wrong = ["1099511627776", "9223372036854775807", "50000000"].into_iter().filter_map(|experts| {
        let entry =
            super::file::entry("model.layers.0.mlp.experts.gate_up_proj", "BF16", &format!("[{experts},0,8]"), "[0,0]");
        scene.0.write("base/model.safetensors", super::file::file(format!("{{{entry}}}"), 0));
        let args = [EXPORT, &["--out", "out"]].concat();
        scene.refuses_below(&["prlimit", "--as=1000000000"], experts, &args, &["mlp.experts.lora_A.weight"])
    });
    expect_none(wrong);
}

#[test]
fn files_that_are_no_adapter() {
    let weights = "lora/adapter_model.safetensors";
    let remove = |scene: &Scene, name: &str| fs::remove_file(scene.0.path(name)).unwrap();
    type Break<'a> = &'a dyn Fn(&Scene);
    let rows: [(&str, Break, &[&str]); 5] = [
        (
            "a pickle",
            &|s| fs::rename(s.0.path(weights), s.0.path("lora/adapter_model.bin")).unwrap(),
            &["lora", "adapter_model.bin", "not a zip archive", "torch"],
        ),
        ("no weights", &|s| remove(s, weights), &["lora", "holds neither adapter_model.safetensors"]),
        ("no config", &|s| remove(s, "lora/adapter_config.json"), &["lora", "adapter_config.json"]),
        (
            "a directory as weights",
            &|s| (remove(s, weights), fs::create_dir(s.0.path(weights)).unwrap()).1,
            &[weights, "regular file"],
        ),
        ("a link to nothing", &|s| s.link(weights, "nowhere"), &[weights]),
    ];
    let wrong = rows.into_iter().flat_map(|(what, change, mentions)| {
        let scene = Scene::new();
        change(&scene);
        scene.export_refuses(what, mentions)
    });
    expect_none(wrong);
}

/// The base that an adapter names is text from a file: it must lead nowhere but to a directory or a Hub id.
#[test]
fn names_of_bases_that_lead_astray() {
    let scene = Scene::new();
    let names = [
        "../../etc",
        "/etc",
        "~root",
        "a\\b",
        "org/name/extra",
        "org/na me",
        "org/..",
        "../base",
        "-rf",
        "--help",
        "https://example.com/x",
        "file:///etc",
        "org/name@../../x",
        "org/name@x/../../../y",
        "old/config.json",
        "org\0/name",
        "\u{1b}[2J\u{1b}]0;title\u{7}",
        "org/name\r\nerror: fine",
        "\u{202e}gro/eman",
        "",
    ];
    let long = "x".repeat(100_000);
    let wrong = names.into_iter().chain([long.as_str()]).filter_map(|name| {
        scene.0.adapter_config("lora", json!({"base_model_name_or_path": name}));
        let what: String = name.chars().take(40).collect();
        scene.refuses(
            &what.escape_debug().to_string(),
            &["export", "--merge-lora", "--adapter", "lora", "--out", "out"],
            &[],
        )
    });
    expect_none(wrong);
}
