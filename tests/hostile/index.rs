//! Indexes that point elsewhere or disagree with their shards, and links that lead out of a model.

use std::fs;

use serde_json::{Value, json};

use super::{EXPORT, Scene, expect_none};
use crate::workbench::{Data, read_model};

const INDEX: &str = "base/model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const NORM: &str = "model.norm.weight";

/// A scene whose base has two shards and an index; the second holds nothing but the last norm.
fn sharded() -> Scene {
    let scene = Scene::new();
    let mut first = scene.0.model("base");
    let second = [(NORM.to_owned(), first.remove(NORM).unwrap())].into();
    let of = |shard: &str, names: Vec<&String>| -> Vec<(String, Value)> {
        names.into_iter().map(|name| (name.clone(), json!(shard))).collect()
    };
    let map: serde_json::Map<String, Value> =
        of(SHARDS[0], first.keys().collect()).into_iter().chain([(NORM.to_owned(), json!(SHARDS[1]))]).collect();
    scene.0.write(INDEX, json!({"metadata": {}, "weight_map": map}).to_string());
    fs::remove_file(scene.0.path("base/model.safetensors")).unwrap();
    scene.0.tensors(format!("base/{}", SHARDS[0]), &first);
    scene.0.tensors(format!("base/{}", SHARDS[1]), &second);
    scene
}

fn set(scene: &Scene, tensor: &str, shard: &Value) {
    let mut index = scene.0.json(INDEX);
    index["weight_map"][tensor] = shard.clone();
    scene.0.write(INDEX, index.to_string());
}

fn shard_of(scene: &Scene, shard: usize) -> std::collections::BTreeMap<String, Data> {
    let alone = crate::workbench::Bench::new();
    fs::create_dir(alone.path("x")).unwrap();
    fs::copy(scene.0.path("base").join(SHARDS[shard]), alone.path("x/x.safetensors")).unwrap();
    read_model(&alone.path("x"))
}

fn add(scene: &Scene, shard: usize, tensor: &str) {
    let mut tensors = shard_of(scene, shard);
    tensors.insert(tensor.to_owned(), (safetensors::Dtype::U8, vec![1], vec![0]));
    scene.0.tensors(format!("base/{}", SHARDS[shard]), &tensors);
}

/// Export and inspect refuse, and verify reports.
fn refused(scene: &Scene, what: &str, mentions: &[&str]) -> Vec<String> {
    let mut wrong = scene.export_refuses(what, mentions);
    wrong.extend(scene.refuses(what, &["inspect", "base"], mentions));
    wrong.extend(scene.verify_reports(what, "base", &[]));
    wrong
}

#[test]
fn the_index_itself_is_fine() {
    let scene = sharded();
    let export = [EXPORT, &["--out", "out"]].concat();
    expect_none(scene.accepts("sharded", &export).into_iter().chain(scene.accepts("release", &["verify", "out"])));
}

#[test]
fn shards_that_lie_elsewhere() {
    let scene = sharded();
    // What the names lead to is there, and is a good shard: nothing but the name may be what is refused.
    let outside = scene.0.path("outside.safetensors");
    fs::copy(scene.0.path("base").join(SHARDS[1]), &outside).unwrap();
    fs::create_dir(scene.0.path("base/sub")).unwrap();
    for copy in
        ["base/sub/x.safetensors", "base/..\\outside.safetensors", "base/pytorch_model.bin", "base/x.safetensors.bin"]
    {
        fs::copy(&outside, scene.0.path(copy)).unwrap();
    }
    let outside = outside.to_str().unwrap();
    let plain = "not a file name without";
    let long = format!("{}.safetensors", "x".repeat(5000));
    let rows = [
        ("../outside.safetensors", plain),
        ("base/../../outside.safetensors", plain),
        (outside, plain),
        ("..\\outside.safetensors", plain),
        ("C:\\outside.safetensors", plain),
        ("C:outside.safetensors", plain),
        ("file:///outside.safetensors", plain),
        ("x\0.safetensors", plain),
        ("sub/x.safetensors", plain),
        ("./model-00002-of-00002.safetensors", plain),
        ("model-00002-of-00002.safetensors/", plain),
        ("", plain),
        (".", plain),
        ("..", plain),
        ("pytorch_model.bin", "not a .safetensors"),
        ("x.safetensors.bin", "not a .safetensors"),
        ("MODEL.SAFETENSORS", "not a .safetensors"),
        (".safetensors", "not a .safetensors"),
        ("model.safetensors\n", ""),
    ];
    let wrong = rows.into_iter().flat_map(|(name, problem)| {
        set(&scene, NORM, &json!(name));
        refused(&scene, name, &[INDEX, NORM, problem])
    });
    let mut wrong: Vec<String> = wrong.collect();
    for (what, name) in [("missing", "model-00009-of-00002.safetensors"), ("too long a name", &long)] {
        set(&scene, NORM, &json!(name));
        wrong.extend(refused(&scene, what, &["base/", &name[..15]]));
    }
    expect_none(wrong);
}

#[test]
fn an_index_that_is_none() {
    let scene = sharded();
    let good = scene.0.read(INDEX);
    let deep = format!("{{\"weight_map\":{}", "[".repeat(200_000));
    let rows: [(&str, &str); 11] = [
        ("empty", ""),
        ("half", &good[..good.len() / 2]),
        ("two", &good.repeat(2)),
        ("a list", "[]"),
        ("a list of its parts", &format!("[{{}},{}]", json!({NORM: SHARDS[1]}))),
        ("no map", r#"{"metadata":{}}"#),
        ("a list as map", r#"{"weight_map":["x.safetensors"]}"#),
        ("an empty map", r#"{"weight_map":{}}"#),
        ("a number as shard", r#"{"weight_map":{"model.norm.weight":2}}"#),
        ("no shard", r#"{"weight_map":{"model.norm.weight":null}}"#),
        ("many brackets", &deep),
    ];
    let wrong = rows.into_iter().flat_map(|(what, text)| {
        scene.0.write(INDEX, text);
        refused(&scene, what, &[INDEX])
    });
    let mut wrong: Vec<String> = wrong.collect();
    scene.0.write(INDEX, [good.as_bytes(), b"\xff"].concat());
    wrong.extend(scene.export_refuses("no text", &[INDEX]));
    expect_none(wrong);
}

#[test]
fn shards_that_disagree_with_the_index() {
    type Break = fn(&Scene);
    let rows: [(&str, Break, &[&str]); 6] = [
        ("a tensor in the wrong shard", |s| set(s, NORM, &json!(SHARDS[0])), &[INDEX, NORM, SHARDS[0]]),
        ("a tensor in no shard", |s| set(s, "model.gone.weight", &json!(SHARDS[0])), &[INDEX, "model.gone.weight"]),
        ("a tensor in no index", |s| add(s, 1, "model.new.weight"), &[INDEX, "lacks tensor model.new.weight"]),
        ("a tensor in two shards", |s| add(s, 0, NORM), &[SHARDS[1], NORM, SHARDS[0]]),
        ("a broken shard", |s| drop(s.0.write(format!("base/{}", SHARDS[1]), "x")), &[SHARDS[1], "8 bytes"]),
        ("a missing shard", |s| fs::remove_file(s.0.path("base").join(SHARDS[1])).unwrap(), &[SHARDS[1]]),
    ];
    let wrong = rows.into_iter().flat_map(|(what, change, mentions)| {
        let scene = sharded();
        change(&scene);
        refused(&scene, what, mentions)
    });
    expect_none(wrong);
}

#[test]
fn links_that_lead_out_of_the_model() {
    let out = "link out of";
    let rows = [
        ("base/model.safetensors", "/dev/zero", "not a regular file"),
        ("base/model.safetensors", "secret/tokenizer.json", ""),
        ("base/tokenizer.json", "secret/tokenizer.json", out),
        ("base/tokenizer.json", "/dev/zero", ""),
        ("base/config.json", "secret/config.json", out),
        ("base/config.json", "/dev/zero", ""),
        ("base/LICENSE", "/etc/passwd", out),
        ("base/additional_chat_templates", "secret", out),
        ("lora/tokenizer_config.json", "secret/config.json", out),
        ("lora/chat_template.jinja", "secret/config.json", out),
        ("lora/adapter_config.json", "/dev/zero", ""),
    ];
    let wrong = rows.into_iter().flat_map(|(name, target, problem)| {
        let scene = Scene::new();
        scene.0.base(8);
        fs::rename(scene.0.path("base"), scene.0.path("secret")).unwrap();
        scene.0.write("secret/tool.jinja", "secret");
        scene.0.base(8);
        scene.0.write("lora/tokenizer.json", "{}");
        scene.link(name, scene.0.path("").join(target));
        // The bound is for /dev/zero, which has no end.
        let args = [EXPORT, &["--out", "out"]].concat();
        scene.refuses_below(&["prlimit", "--as=1000000000"], &format!("{name} -> {target}"), &args, &[name, problem])
    });
    expect_none(wrong);
}

#[test]
fn a_shard_that_is_a_link() {
    let scene = sharded();
    fs::rename(scene.0.path("base").join(SHARDS[1]), scene.0.path("outside.safetensors")).unwrap();
    scene.link(format!("base/{}", SHARDS[1]), "../outside.safetensors");
    // Weights are checked for what they are, wherever they lie; nothing else of the file is copied.
    let mut wrong: Vec<String> =
        scene.accepts("a link", &[EXPORT, &["--out", "linked"]].concat()).into_iter().collect();
    scene.link(format!("base/{}", SHARDS[1]), SHARDS[1]);
    wrong.extend(scene.export_refuses("a link to itself", &[SHARDS[1]]));
    scene.link(format!("base/{}", SHARDS[1]), "nowhere");
    wrong.extend(scene.export_refuses("a link to nothing", &[SHARDS[1]]));
    expect_none(wrong);
}

/// The Hugging Face cache: `snapshots/COMMIT/FILE` is a link to `blobs/DIGEST`.
#[test]
fn links_within_a_cache_are_fine_and_links_out_of_it_are_not() {
    let scene = Scene::new();
    let (repo, snapshot) = ("hub/models--x--y", "hub/models--x--y/snapshots/0123");
    for dir in ["blobs", "snapshots/0123"] {
        fs::create_dir_all(scene.0.path(repo).join(dir)).unwrap();
    }
    for (i, name) in ["model.safetensors", "config.json", "tokenizer.json"].into_iter().enumerate() {
        fs::rename(scene.0.path("base").join(name), scene.0.path(repo).join(format!("blobs/{i}"))).unwrap();
        scene.link(format!("{snapshot}/{name}"), format!("../../blobs/{i}"));
    }
    let args = |out| ["export", "--merge-lora", "--base", snapshot, "--adapter", "lora", "--out", out];
    let mut wrong: Vec<String> = scene.accepts("a cache", &args("out")).into_iter().collect();
    let mut files = scene.0.files("out");
    assert_eq!(files.remove("tokenizer.json").as_deref(), Some(&b"{}"[..]), "its content, not the link");
    assert!(!fs::symlink_metadata(scene.0.path("out/tokenizer.json")).unwrap().is_symlink());
    let other = "hub/models--x--z/other/2";
    fs::create_dir_all(scene.0.path(other).parent().unwrap()).unwrap();
    fs::copy(scene.0.path(repo).join("blobs/2"), scene.0.path(other)).unwrap();
    scene.link(format!("{snapshot}/tokenizer.json"), "../../../models--x--z/other/2");
    wrong.extend(scene.refuses("what is no blob", &args("out2"), &["tokenizer.json", "link out of"]));
    expect_none(wrong);
}
