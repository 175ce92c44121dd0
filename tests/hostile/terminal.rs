//! Text out of files that would drive the reader's terminal: it is shown escaped, wherever it is shown. `Scene` holds
//! every output against that; here are the ways in.

use std::fs;

use serde_json::json;

use super::file::{entry, file};
use super::{EXPORT, Scene, complaints, describe, expect_none};
use crate::workbench::f32_noise;

/// Clears the screen, returns the carriage, starts a control sequence in one byte, reverses what follows.
const NASTY: &str = "a\u{1b}[2Jb\rc\u{9b}31md\u{202e}e\u{7f}f";
const ESCAPED: &str = r"a\u{1b}[2Jb\u{d}c\u{9b}31md\u{202e}e\u{7f}f";

/// Runs `args` and wants `code`, and [`ESCAPED`] somewhere in what it says.
fn shows(scene: &Scene, code: i32, args: &[&str]) -> Option<String> {
    let said = scene.run(&[], args);
    let all = format!("{}{}", said.out, said.err);
    describe("escapes", args, &complaints(&said, code, &all, &[ESCAPED]), &said)
}

fn json_name() -> String {
    json!(NASTY).to_string().trim_matches('"').to_owned()
}

#[test]
fn names_in_what_is_shown_of_a_good_model() {
    let scene = Scene::new();
    let mut base = scene.0.base(8);
    base.insert(NASTY.to_owned(), f32_noise(&[8, 8], 1));
    base.insert(format!("{NASTY}.weight"), f32_noise(&[8, 8], 2));
    scene.0.tensors("base/model.safetensors", &base);
    scene.base_config(&json!({"architectures": [NASTY], "model_type": NASTY}));
    scene.0.write(format!("base/model-{NASTY}.safetensors"), "stale");
    let mut adapter = scene.0.adapter("lora", 8);
    for (part, shape) in [("lora_A", [4, 8]), ("lora_B", [8, 4])] {
        adapter.insert(format!("base_model.model.{NASTY}.{part}.weight"), f32_noise(&shape, 3));
    }
    scene.0.tensors("lora/adapter_model.safetensors", &adapter);
    scene.0.adapter_config("lora", json!({NASTY: 1, "base_model_name_or_path": "base"}));
    let dry = [EXPORT, &["--out", "out", "--dry-run"]].concat();
    expect_none(
        [
            shows(&scene, 0, &["inspect", "base"]),
            shows(&scene, 0, &["inspect", "--stats", "base"]),
            shows(&scene, 0, &["inspect", "lora"]),
            shows(&scene, 0, &dry),
            shows(&scene, 0, &[EXPORT, &["--out", "out"]].concat()),
            shows(&scene, 0, &[EXPORT, &["--out", NASTY]].concat()),
            shows(&scene, 0, &["verify", NASTY]),
            shows(&scene, 3, &["verify", "base"]),
        ]
        .into_iter()
        .flatten(),
    );
}

#[test]
fn names_in_json() {
    let scene = Scene::new();
    let mut base = scene.0.base(8);
    base.insert(NASTY.to_owned(), f32_noise(&[8, 8], 1));
    scene.0.tensors("base/model.safetensors", &base);
    let args = [["inspect", "--json", "base"], ["verify", "--json", "base"]];
    expect_none(args.iter().filter_map(|args| {
        let said = scene.run(&[], args);
        let raw: Vec<char> = said.out.chars().filter(|c| c.is_control() && *c != '\n' && *c < '\u{7f}').collect();
        (!raw.is_empty()).then(|| format!("{args:?}: {raw:?}"))
    }));
}

#[test]
fn names_in_errors_about_a_file() {
    let scene = Scene::new();
    let name = json_name();
    let wrong_size = entry(&name, "U8", "[2]", "[0,1]");
    let twice = format!("{0},{0}", entry(&name, "U8", "[1]", "[0,1]"));
    let rows = [
        ("size", wrong_size),
        ("twice", twice),
        ("overlap", format!("{},{}", entry("a", "U8", "[1]", "[0,1]"), entry(&name, "U8", "[1]", "[0,1]"))),
        ("hole", format!("{},{}", entry("a", "U8", "[0]", "[0,0]"), entry(&name, "U8", "[0]", "[1,1]"))),
        ("beyond", entry(&name, "U8", "[9]", "[0,9]")),
        ("type", entry("a", &name, "[1]", "[0,1]")),
        ("field", entry("a", "U8", "[1]", &format!("[0,1],\"{name}\":1"))),
    ];
    let wrong = rows.into_iter().flat_map(|(what, entries)| {
        scene.0.write("base/model.safetensors", file(format!("{{{entries}}}"), 1));
        let mut wrong = scene.export_refuses(what, &[ESCAPED]);
        wrong.extend(scene.verify_reports(what, "base", &[]));
        wrong
    });
    expect_none(wrong);
}

#[test]
fn names_in_errors_about_an_index() {
    let scene = Scene::new();
    fs::remove_file(scene.0.path("base/model.safetensors")).unwrap();
    let shard = format!("{NASTY}.safetensors");
    for (file, tensor) in [("a.safetensors", NASTY), ("b.safetensors", "b"), (&shard, "c")] {
        scene.0.tensors(format!("base/{file}"), &[(tensor.to_owned(), f32_noise(&[1], 1))].into());
    }
    let rows = [
        ("a path", json!({NASTY: "../a.safetensors"})),
        ("a shard", json!({"c": shard})),
        ("a tensor that its shard lacks", json!({NASTY: "b.safetensors"})),
        ("a tensor in another shard", json!({NASTY: "b.safetensors", "b": "a.safetensors"})),
        ("a tensor that the index lacks", json!({"x": "a.safetensors"})),
        ("a tensor twice", json!({NASTY: "a.safetensors", "b": "copy.safetensors"})),
    ];
    fs::copy(scene.0.path("base/a.safetensors"), scene.0.path("base/copy.safetensors")).unwrap();
    let wrong = rows.into_iter().flat_map(|(what, map)| {
        scene.0.write("base/model.safetensors.index.json", json!({"weight_map": map}).to_string());
        let mut wrong = scene.export_refuses(what, &[]);
        wrong.extend(scene.verify_reports(what, "base", &[]));
        wrong
    });
    expect_none(wrong);
}

#[test]
fn names_in_errors_about_an_adapter() {
    let scene = Scene::new();
    let good = scene.0.adapter("lora", 8);
    let rows = [
        ("unknown", NASTY.to_owned(), f32_noise(&[1], 1)),
        ("no such module", format!("base_model.model.{NASTY}.lora_A.weight"), f32_noise(&[4, 8], 1)),
        ("no such parameter", format!("base_model.model.{NASTY}.weight"), f32_noise(&[4, 8], 1)),
        ("integers", format!("base_model.model.{NASTY}.weight"), (safetensors::Dtype::I32, vec![1], vec![0; 4])),
    ];
    let mut wrong: Vec<String> = Vec::new();
    for (what, name, data) in rows {
        let mut tensors = good.clone();
        tensors.insert(name, data);
        scene.0.tensors("lora/adapter_model.safetensors", &tensors);
        wrong.extend(scene.export_refuses(what, &[ESCAPED]));
    }
    scene.0.tensors("lora/adapter_model.safetensors", &good);
    for (key, value) in [
        ("peft_type", json!(NASTY)),
        ("init_lora_weights", json!(NASTY)),
        ("rank_pattern", json!({format!("({NASTY}"): 4})),
        ("rank_pattern", json!({NASTY: "x"})),
    ] {
        scene.0.adapter_config("lora", json!({key: value}));
        wrong.extend(scene.export_refuses(key, &[ESCAPED]));
    }
    scene.0.adapter_config("lora", json!({"trainable_token_indices": {"x": NASTY}}));
    wrong.extend(scene.export_refuses("trainable_token_indices", &["adapter_config.json"]));
    expect_none(wrong);
}

#[test]
fn names_of_files_and_directories() {
    let scene = Scene::new();
    scene.0.write("outside.json", "{}");
    let companion = format!("base/{NASTY}.json");
    scene.link(&companion, scene.0.path("outside.json"));
    let mut wrong = scene.export_refuses("a companion that is a link", &[ESCAPED]);
    fs::remove_file(scene.0.path(&companion)).unwrap();
    // SHA256SUMS has a name a line.
    scene.0.write(&companion, "{}");
    wrong.extend(scene.export_refuses("a companion", &[ESCAPED]));
    fs::remove_file(scene.0.path(companion)).unwrap();
    let mut tensors = scene.0.base(8);
    let q = tensors.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap();
    (q.0, q.2) = (safetensors::Dtype::I8, vec![1; 64]);
    scene.0.tensors("base/model.safetensors", &tensors);
    scene.base_config(&json!({"quantization_config": {"quant_method": NASTY}}));
    wrong.extend(scene.export_refuses("a quantization", &[ESCAPED]));
    for args in [&["inspect", NASTY][..], &["verify", NASTY], &["export", "--base", NASTY, "--out", "out"]] {
        wrong.extend(scene.refuses("a path that was typed", args, &[r"u{1b}[2J"]));
    }
    let line = format!("{}  {NASTY}\n{NASTY}\n", "0".repeat(64)).replace('\r', "");
    scene.0.write("old/SHA256SUMS", line);
    wrong.extend(scene.verify_reports("a checksum", "old", &[r"\u{1b}[2J", "not a checksum"]));
    let manifest = json!({"files": {NASTY: {"sha256": "x"}, format!("../{NASTY}"): {"sha256": "y"}}});
    scene.0.write("old/qft-manifest.json", manifest.to_string());
    wrong.extend(scene.verify_reports("a manifest", "old", &[ESCAPED, "bad entry"]));
    expect_none(wrong);
}
