//! `qft verify`: it finds what is wrong, names it, and says nothing else.

use std::fs;

use serde_json::Value;

use crate::workbench::{Bench, Said};

fn bench() -> Bench {
    let bench = Bench::new();
    bench.base(32);
    bench.adapter("adapter", 32);
    bench.ok("export --merge-lora --base base --adapter adapter --out out --max-shard 8KB");
    bench
}

fn finds(bench: &Bench, line: &str, mentions: &[&str]) -> Said {
    let said = bench.qft(line);
    assert_eq!(said.code, Some(3), "{}{}", said.out, said.err);
    for mention in mentions {
        assert!(said.out.contains(mention), "{mention:?} is not in {}", said.out);
    }
    said
}

#[test]
fn a_release_is_clean() {
    let bench = bench();
    let said = bench.ok("verify out");
    assert!(said.out.contains("out: clean; "), "{}", said.out);
    let json: Value = serde_json::from_str(&bench.ok("verify out --json").out).unwrap();
    assert_eq!(json["problems"], serde_json::json!([]));
    assert_eq!(json["tensors"], bench.model("base").len());
    bench.ok("verify out --audit --base base --adapter adapter");
    let found = bench.ok("verify out --audit --adapter adapter --json");
    let json: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(json["audit"]["first_difference"], Value::Null, "the adapter names its base");
}

#[test]
fn every_damage_is_named() {
    type Damage = fn(&Bench);
    let damages: [(&str, Damage, &[&str]); 9] = [
        (
            "a flipped bit",
            |b| flip(b, "out/model-00002-of-00003.safetensors"),
            &["model-00002-of-00003", "changed or damaged"],
        ),
        ("a missing file", |b| fs::remove_file(b.path("out/tokenizer.json")).unwrap(), &["tokenizer.json: is missing"]),
        ("an extra file", |b| drop(b.write("out/extra.txt", "x")), &["extra.txt: is not in SHA256SUMS"]),
        (
            "a stale shard",
            |b| drop(b.write("out/model-9.safetensors", "x")),
            &["model-9.safetensors", "belongs to no index"],
        ),
        ("a cut shard", |b| cut(b, "out/model-00001-of-00003.safetensors"), &["model-00001-of-00003", "cut off"]),
        ("another total", |b| edit(b, "total_size\": ", "total_size\": 1"), &["index.json", "total_size"]),
        (
            "a moved tensor",
            |b| edit(b, "model-00003-of", "model-00001-of"),
            &["lm_head.weight", "model-00003-of-00003"],
        ),
        ("a traversal", |b| edit(b, "model-00003-of", "../model-00003-of"), &["no plain file name"]),
        ("no checksum line", |b| drop(b.write("out/SHA256SUMS", "hello\n")), &["no checksum: hello"]),
    ];
    for (what, damage, mentions) in damages {
        let bench = bench();
        damage(&bench);
        eprintln!("{what}");
        finds(&bench, "verify out", mentions);
    }
}

fn flip(bench: &Bench, name: &str) {
    let mut bytes = fs::read(bench.path(name)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    bench.write(name, bytes);
}

fn cut(bench: &Bench, name: &str) {
    let bytes = fs::read(bench.path(name)).unwrap();
    bench.write(name, &bytes[..bytes.len() - 1]);
}

fn edit(bench: &Bench, from: &str, to: &str) {
    let text = bench.read("out/model.safetensors.index.json");
    assert!(text.contains(from), "{text}");
    bench.write("out/model.safetensors.index.json", text.replace(from, to));
}

#[test]
fn the_audit_names_the_first_value_that_differs() {
    let bench = bench();
    let index = bench.json("out/model.safetensors.index.json");
    let name = "model.layers.1.self_attn.q_proj.weight";
    let file = format!("out/{}", index["weight_map"][name].as_str().unwrap());
    let mut bytes = fs::read(bench.path(&file)).unwrap();
    let view = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let start = view.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    // Row 3, column 5 of 32, in bf16.
    bytes[start + (3 * 32 + 5) * 2] ^= 1;
    bench.write(&file, bytes);
    finds(&bench, "verify out --audit --base base --adapter adapter", &[name, "row 3, column 5", "it should be"]);
}

#[test]
fn the_audit_sees_another_adapter_and_another_base() {
    let bench = bench();
    finds(&bench, "verify out --audit --base base --adapter adapter=0.5", &["the first difference is in tensor"]);
    let mut other = bench.model("base");
    other.get_mut("model.norm.weight").unwrap().2[0] ^= 1;
    bench.tensors("other/model.safetensors", &other);
    finds(&bench, "verify out --audit --base other --adapter adapter", &["model.norm.weight at row 0, column 0"]);
    other.remove("model.norm.weight");
    bench.tensors("other/model.safetensors", &other);
    finds(&bench, "verify out --audit --base other --adapter adapter", &["model.norm.weight comes from neither"]);
}

#[test]
fn the_audit_knows_how_the_release_was_cast() {
    let bench = bench();
    bench.ok("export --merge-lora --base base --adapter adapter --out half --dtype f16");
    bench.ok("verify half --audit --base base --adapter adapter");
    bench.ok("export --base base --out plain");
    bench.ok("verify plain --audit --base base");
}

#[test]
fn a_model_without_checksums_is_linted() {
    let bench = bench();
    let said = bench.ok("verify base");
    assert!(said.out.contains("there is no SHA256SUMS"), "{}", said.out);
}
