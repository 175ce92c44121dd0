//! Bases that are no model that qft can merge into: pickles, quantized ones, broken configs, files of odd kinds.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{EXPORT, Scene, can, expect_none};

const WEIGHTS: &str = "base/model.safetensors";

fn remove(scene: &Scene, name: &str) {
    fs::remove_file(scene.0.path(name)).unwrap();
}

/// A base that has file `name` where its weights should be.
fn instead(scene: &Scene, name: &str) {
    remove(scene, WEIGHTS);
    scene.0.write(Path::new("base").join(name), "x");
}

/// Replaces file `name` by a directory.
fn directory(scene: &Scene, name: &str) {
    let _ = fs::remove_file(scene.0.path(name));
    fs::create_dir(scene.0.path(name)).unwrap();
}

fn quantized(scene: &Scene, how: Value) {
    integers(scene);
    scene.base_config(&json!({"quantization_config": how}));
}

fn integers(scene: &Scene) {
    let mut tensors = scene.0.base(8);
    let q = tensors.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap();
    (q.0, q.2) = (Dtype::I8, vec![1; 64]);
    scene.0.tensors(WEIGHTS, &tensors);
}

#[test]
fn no_model_to_merge_into() {
    type Break = fn(&Scene);
    let rows: [(&str, Break, &[&str]); 19] = [
        ("a pickle", |s| instead(s, "pytorch_model.bin"), &["base", "model.safetensors", "pickle"]),
        ("a sharded pickle", |s| instead(s, "pytorch_model.bin.index.json"), &["base", "pickle"]),
        ("TensorFlow", |s| instead(s, "tf_model.h5"), &["base", "TensorFlow"]),
        ("Flax", |s| instead(s, "flax_model.msgpack"), &["base", "Flax"]),
        ("Mistral's names", |s| instead(s, "consolidated.safetensors"), &["base", "Mistral"]),
        ("GGUF", |s| instead(s, "model.gguf"), &["base", "model.safetensors"]),
        ("an adapter", |s| instead(s, "adapter_config.json"), &["base", "adapter"]),
        ("nothing", |s| remove(s, WEIGHTS), &["base", "model.safetensors"]),
        ("no directory", |s| fs::remove_dir_all(s.0.path("base")).unwrap(), &["base"]),
        (
            "a file",
            |s| (fs::remove_dir_all(s.0.path("base")).unwrap(), s.0.write("base", "x")).0,
            &["base", "no directory"],
        ),
        ("GPTQ", |s| quantized(s, json!({"quant_method": "gptq"})), &["base", "quantized (gptq)"]),
        ("an unnamed quantization", |s| quantized(s, json!({"bits": 4})), &["base", "quantized"]),
        ("weights of integers", integers, &["model.layers.0.self_attn.q_proj.weight", "I8"]),
        ("an empty config", |s| drop(s.0.write("base/config.json", "")), &["base/config.json", "not a JSON object"]),
        (
            "half a config",
            |s| drop(s.0.write("base/config.json", "{\"a\":")),
            &["base/config.json", "not a JSON object"],
        ),
        (
            "a config that is a list",
            |s| drop(s.0.write("base/config.json", "[]")),
            &["base/config.json", "not a JSON object"],
        ),
        (
            "a config of many brackets",
            |s| drop(s.0.write("base/config.json", format!("{{\"a\":{}", "[".repeat(1 << 18)))),
            &["base/config.json"],
        ),
        ("a config that is no text", |s| drop(s.0.write("base/config.json", b"{\"\xff\":1}")), &["base/config.json"]),
        ("a config that is a directory", |s| directory(s, "base/config.json"), &["base/config.json"]),
    ];
    let wrong = rows.into_iter().flat_map(|(what, change, mentions)| {
        let scene = Scene::new();
        change(&scene);
        scene.export_refuses(what, mentions)
    });
    expect_none(wrong);
}

#[test]
fn a_quantization_of_null_is_none() {
    let scene = Scene::new();
    scene.base_config(&json!({"quantization_config": null}));
    expect_none(scene.accepts("null", &[EXPORT, &["--out", "out"]].concat()));
}

/// What a pruned cache, an interrupted download or a copied tree leaves.
#[test]
fn files_of_odd_kinds() {
    type Break = fn(&Scene);
    let rows: [(&str, Break, &str); 14] = [
        ("empty weights", |s| drop(s.0.write(WEIGHTS, "")), WEIGHTS),
        ("weights that are a directory", |s| directory(s, WEIGHTS), WEIGHTS),
        ("weights that are a pipe", |s| s.pipe(WEIGHTS), WEIGHTS),
        ("a config that is a pipe", |s| s.pipe("base/config.json"), "base/config.json"),
        ("a tokenizer that is a pipe", |s| s.pipe("base/tokenizer.json"), "base/tokenizer.json"),
        (
            "an index that is a pipe",
            |s| (remove(s, WEIGHTS), s.pipe("base/model.safetensors.index.json")).1,
            "index.json",
        ),
        (
            "adapter weights that are a pipe",
            |s| s.pipe("lora/adapter_model.safetensors"),
            "lora/adapter_model.safetensors",
        ),
        ("an adapter config that is a pipe", |s| s.pipe("lora/adapter_config.json"), "lora/adapter_config.json"),
        ("weights linked to nothing", |s| s.link(WEIGHTS, "nowhere"), "model.safetensors"),
        ("weights linked to themselves", |s| s.link(WEIGHTS, "model.safetensors"), "model.safetensors"),
        ("a config linked to nothing", |s| s.link("base/config.json", "nowhere"), "base/config.json"),
        ("a tokenizer linked to nothing", |s| s.link("base/tokenizer.json", "nowhere"), "base/tokenizer.json"),
        ("an adapter config linked to nothing", |s| s.link("lora/adapter_config.json", "nowhere"), "lora"),
        (
            "a sparse config of terabytes",
            |s| {
                let file = fs::File::create(s.0.path("base/config.json")).unwrap();
                file.set_len(1 << 40).unwrap();
            },
            "base/config.json",
        ),
    ];
    let wrong = rows.into_iter().filter_map(|(what, change, name)| {
        let scene = Scene::new();
        change(&scene);
        scene.refuses(what, &[EXPORT, &["--out", "out"]].concat(), &[name])
    });
    expect_none(wrong);
}

#[test]
fn odd_kinds_of_files_do_not_hang_the_others() {
    let scene = Scene::new();
    scene.pipe(WEIGHTS);
    scene.0.write("release/config.json", "{}");
    scene.pipe("release/SHA256SUMS");
    let mut wrong: Vec<String> = Vec::new();
    wrong.extend(scene.refuses("a pipe", &["inspect", "base"], &[WEIGHTS]));
    wrong.extend(scene.refuses("a pipe", &["inspect", WEIGHTS], &[WEIGHTS]));
    wrong.extend(scene.verify_reports("a pipe", "release", &["SHA256SUMS"]));
    wrong.extend(scene.refuses("nothing", &["inspect", "nowhere"], &["nowhere"]));
    wrong.extend(scene.refuses("nothing", &["verify", "nowhere"], &["nowhere"]));
    expect_none(wrong);
}

#[test]
fn files_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    // Root may read everything, unless it gives that right away.
    let wrapper: &[&str] =
        match can(&["setpriv", "--bounding-set=-dac_override,-dac_read_search"], "permissions as root") {
            true => &["setpriv", "--bounding-set=-dac_override,-dac_read_search"],
            false => return,
        };
    let files = [
        "base/model.safetensors",
        "base/config.json",
        "base/tokenizer.json",
        "lora/adapter_model.safetensors",
        "lora/adapter_config.json",
        "base",
        "lora",
    ];
    let wrong = files.into_iter().filter_map(|name| {
        let scene = Scene::new();
        let forbid = |mode| fs::set_permissions(scene.0.path(name), fs::Permissions::from_mode(mode)).unwrap();
        forbid(0o000);
        let wrong = scene.refuses_below(wrapper, name, &[EXPORT, &["--out", "out"]].concat(), &[name]);
        forbid(0o700);
        wrong
    });
    expect_none(wrong);
}
