//! `qft verify`: it finds what is wrong, names it, and says nothing else.

use std::fs;

use serde_json::Value;

use crate::workbench::{Bench, Said, said};

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
    let damages: [(&str, Damage, &[&str]); 13] = [
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
        (
            "weights of another name",
            |b| drop(b.write("out/foo.safetensors", "x")),
            &["foo.safetensors: belongs to no index"],
        ),
        (
            "no checksums",
            |b| fs::remove_file(b.path("out/SHA256SUMS")).unwrap(),
            &["SHA256SUMS: is missing, though qft-manifest.json exists", "out: 1 problem; "],
        ),
        ("broken checksums", |b| drop(b.write("out/SHA256SUMS", [0xff])), &["SHA256SUMS: is not UTF-8 text"]),
        (
            "a directory for a file",
            |b| {
                fs::remove_file(b.path("out/tokenizer.json")).unwrap();
                fs::create_dir(b.path("out/tokenizer.json")).unwrap();
            },
            &["tokenizer.json: not a regular file"],
        ),
        ("a cut shard", |b| cut(b, "out/model-00001-of-00003.safetensors"), &["model-00001-of-00003", "cut off"]),
        ("another total", |b| edit(b, "total_size\": ", "total_size\": 1"), &["index.json", "total_size"]),
        (
            "a moved tensor",
            |b| edit(b, "model-00003-of", "model-00001-of"),
            &["lm_head.weight", "model-00003-of-00003"],
        ),
        ("a traversal", |b| edit(b, "model-00003-of", "../model-00003-of"), &["not a file name without"]),
        ("no checksum line", |b| drop(b.write("out/SHA256SUMS", "hello\n")), &["not a checksum: hello"]),
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
fn the_manifest_alone_lists_every_file() {
    let bench = bench();
    fs::remove_file(bench.path("out/SHA256SUMS")).unwrap();
    bench.write("out/stray/x.txt", "x");
    flip(&bench, "out/tokenizer.json");
    let mentions = ["stray/x.txt: is not in qft-manifest.json", "tokenizer.json: its SHA-256", "out: 3 problems; "];
    finds(&bench, "verify out", &mentions);
}

#[test]
fn a_model_without_digests_is_linted_and_not_called_clean() {
    let bench = bench();
    let said = bench.ok("verify base");
    let mentions = ["neither SHA256SUMS nor qft-manifest.json", "base: no problems; no digests to compare with"];
    for mention in mentions {
        assert!(said.out.contains(mention), "{}", said.out);
    }
    assert!(!said.out.contains("clean"), "{}", said.out);
    bench.write("base/foo.safetensors", "x");
    finds(&bench, "verify base", &["foo.safetensors: belongs to no index", "base: 1 problem; no digests to compare"]);
}

#[test]
fn what_holds_no_model_is_no_clean_release() {
    let bench = bench();
    fs::create_dir(bench.path("empty")).unwrap();
    finds(&bench, "verify empty", &["holds no weights of a model"]);
    // A hidden file is one too many; what downloads leave is not.
    bench.write("out/.cache/huggingface/x", "");
    bench.write("out/.gitattributes", "");
    bench.write("out/.git/objects/a", "");
    bench.ok("verify out");
    bench.ok("verify out --audit --base base --adapter adapter");
    bench.write("out/.evil.py", "");
    finds(&bench, "verify out", &[".evil.py: is not in"]);
}

#[test]
fn what_was_found_is_told_where_the_audit_fails() {
    const AUDIT: &str = "verify out --audit --base base --adapter adapter";
    let bench = bench();
    bench.adapter("wide", 64);
    let said = bench.refuses("verify out --audit --base base --adapter wide", &["remedy"]);
    assert!(said.out.contains("audit: failed\nout: no problems, but no audit; "), "{}", said.out);
    bench.write("out/extra.txt", "x");
    let said = finds(&bench, "verify out --audit --base base --adapter wide", &["extra.txt: is not in SHA256SUMS"]);
    assert!(said.err.contains("error: "), "{}", said.err);
    cut(&bench, "out/model-00001-of-00003.safetensors");
    let mentions = ["extra.txt: is not in SHA256SUMS", "cut off", "audit: left out: the release can't be opened"];
    let said = finds(&bench, AUDIT, &mentions);
    assert_eq!(said.out.matches("cut off").count(), 1, "{}", said.out);
    let json: Value = serde_json::from_str(&finds(&bench, &format!("{AUDIT} --json"), &[]).out).unwrap();
    assert_eq!(json["audit"]["left_out"], "left out: the release can't be opened");
}

#[test]
fn the_audit_takes_the_newest_checkpoint_only_if_it_was_used() {
    let bench = bench();
    bench.adapter("output/v0/checkpoint-1", 32);
    bench.ok("verify out --audit");
    bench.ok("export --merge-lora --base base --adapter adapter=0.5 --out half");
    bench.ok("verify half --audit");
    bench.ok("export --merge-lora --base base --adapter adapter=0.5 adapter --out both");
    bench.refuses("verify both --audit", &["both was made from 2 adapters", "--adapter"]);
    flip(&bench, "output/v0/checkpoint-1/adapter_model.safetensors");
    bench.refuses("verify out --audit", &["made from another adapter than output/v0/checkpoint-1", "--adapter"]);
    fs::remove_file(bench.path("out/qft-manifest.json")).unwrap();
    bench.refuses("verify out --audit", &["has no qft-manifest.json", "--adapter"]);
}

#[test]
fn the_audit_notes_adapters_that_are_not_those_of_the_manifest() {
    let bench = bench();
    let notes =
        |line: &str| bench.qft(line).out.lines().filter(|l| l.starts_with("note: ")).collect::<Vec<_>>().join("\n");
    assert_eq!(notes("verify out --audit --adapter adapter"), "");
    let weight = notes("verify out --audit --adapter adapter=0.5");
    assert_eq!(weight, "note: adapter has the weight 0.5; qft-manifest.json gives it 1");
    bench.adapter("other", 32);
    flip(&bench, "other/adapter_model.safetensors");
    let digest = notes("verify out --audit --adapter other adapter");
    assert!(digest.contains("2 adapters given; qft-manifest.json lists 1 adapter"), "{digest}");
    assert!(digest.contains("other is not the adapter in qft-manifest.json"), "{digest}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_interruption_speaks_of_no_destination() {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    let bench = bench();
    let sums = bench.read("out/SHA256SUMS");
    bench.write("out/SHA256SUMS", format!("{sums}{}  huge\n", "0".repeat(64)));
    // A hole that takes minutes to digest.
    fs::File::create(bench.path("out/huge")).unwrap().set_len(1 << 38).unwrap();
    let mut command = bench.command();
    let child = command.args(["verify", "out"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & 0b10 != 0
    };
    while !caught() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let said = said(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(130), "{}{}", said.out, said.err);
    assert!(said.err.ends_with("qft: interrupted\n") && !said.err.contains("destination"), "{}", said.err);
}

#[test]
fn what_is_no_release_is_told_what_it_is() {
    let bench = bench();
    fs::create_dir_all(bench.path("all/b")).unwrap();
    fs::rename(bench.path("out"), bench.path("all/a")).unwrap();
    finds(&bench, "verify all", &["all: is not a release, and holds several: verify each separately (a)"]);
    for nth in 0..7 {
        bench.write(format!("all/c/{nth}/model.gguf"), "x");
    }
    finds(&bench, "verify all", &["(a, c/0, c/1, c/2, c/3 and 3 more)"]);
    finds(
        &bench,
        "verify adapter",
        &["adapter: holds an adapter, which is not a release: `qft export --adapter` merges it"],
    );
    fs::remove_dir_all(bench.path("all/a")).unwrap();
    fs::remove_dir_all(bench.path("all/c")).unwrap();
    finds(&bench, "verify all", &["all: holds no weights of a model"]);
    // A file in the making, named by itself, is none either.
    fs::create_dir_all(bench.path(".x.gguf.qft-staging")).unwrap();
    bench.write(".x.gguf.qft-staging/x.gguf", "GGUF");
    finds(&bench, "verify .x.gguf.qft-staging/x.gguf", &["remains from an interrupted qft"]);
}
