//! `qft verify --audit` of a whole release. Lists of digests are no proof of where a file comes from: whoever changes one
//! can make them again, and so does every change here.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::workbench::{Bench, Said};

const AUDIT: &str = "verify o --audit --base base --adapter adapter";
const EXPORT: &str = "export --merge-lora --base base --adapter adapter --pre llama-bpe";

/// A base with everything that lies beside weights, an adapter, and in `o` what `options` make of them.
fn bench(options: &str) -> Bench {
    let bench = Bench::new();
    bench.trainee("base", "llama");
    bench.adapter("adapter", 32);
    bench.write("base/modeling.py", "a = 1");
    bench.write("base/LICENSE", "free");
    bench.write("base/generation_config.json", json!({"temperature": 0.5, "do_sample": true}).to_string());
    bench.ok(&format!("{EXPORT} {options} --out o"));
    bench
}

/// Makes the lists of release `o` again, as whoever changed it would.
pub(crate) fn list_anew(bench: &Bench) {
    let listed = |name: &String| !["SHA256SUMS", "qft-manifest.json"].contains(&name.as_str());
    let files = bench.files("o");
    let sum = |name: &str| qft::digest::sha256(&fs::read(bench.path("o").join(name)).unwrap());
    let names: Vec<&String> = files.keys().filter(|name| listed(name)).collect();
    let mut lines: String = names.iter().map(|name| format!("{}  {name}\n", sum(name))).collect();
    if files.contains_key("qft-manifest.json") {
        let entry = |name: &&String| ((*name).clone(), json!({"sha256": sum(name), "size": files[*name].len()}));
        let entries: serde_json::Map<String, Value> = names.iter().map(entry).collect();
        edit_manifest(bench, |manifest| manifest["files"] = entries.into());
        lines += &format!("{}  qft-manifest.json\n", sum("qft-manifest.json"));
    }
    bench.write("o/SHA256SUMS", lines);
}

fn edit(bench: &Bench, name: &str, change: impl FnOnce(&mut Value)) {
    let mut json = bench.json(name);
    change(&mut json);
    bench.write(name, json.to_string());
}

fn edit_manifest(bench: &Bench, change: impl FnOnce(&mut Value)) {
    edit(bench, "o/qft-manifest.json", change);
}

/// Changes a byte of the GGUF file `name`, so far after the first place where `text` is.
fn poke(bench: &Bench, name: &str, text: &str, behind: usize) {
    let mut bytes = fs::read(bench.path(name)).unwrap();
    let at = bytes.windows(text.len()).position(|at| at == text.as_bytes()).unwrap();
    bytes[at + text.len() + behind] ^= 1;
    bench.write(name, bytes);
}

fn remove(bench: &Bench, name: &str) {
    fs::remove_file(bench.path(name)).unwrap();
}

fn copy(bench: &Bench, from: &str, to: &str) {
    fs::copy(bench.path(from), bench.path(to)).unwrap();
}

/// A copy of release `whole` in `o`.
fn restore(bench: &Bench, whole: &std::collections::BTreeMap<String, Vec<u8>>) {
    let _ = fs::remove_dir_all(bench.path("o"));
    whole.iter().for_each(|(name, bytes)| drop(bench.write(Path::new("o").join(name), bytes)));
}

type Change = fn(&Bench);

/// Makes each change, and wants an audit that says `mentions`.
fn finds(bench: &Bench, changes: &[(&str, Change, &str)]) {
    let whole = bench.files("o");
    let said = bench.ok(AUDIT);
    assert!(said.out.contains("every tensor and every file is what"), "{}", said.out);
    list_anew(bench);
    assert!(bench.ok(AUDIT).out.contains("o: clean"), "lists that are made anew without a change");
    let mut wrong = Vec::new();
    for (what, change, mentions) in changes {
        restore(bench, &whole);
        change(bench);
        list_anew(bench);
        let Said { code, out, err } = bench.qft(AUDIT);
        if code != Some(3) || !out.contains(mentions) || err.contains("panicked") {
            wrong.push(format!("{what}: {code:?}, wants {mentions:?}\n{out}{err}"));
        }
    }
    restore(bench, &whole);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_change_of_a_file_is_named() {
    let bench = bench("--max-shard 40KB --gguf q8_0,bf16");
    finds(
        &bench,
        &[
            ("rope", |b| edit(b, "o/config.json", |c| c["rope_theta"] = json!(1.0)), "config.json is not what"),
            (
                "map",
                |b| edit(b, "o/config.json", |c| c["auto_map"] = json!({"A": "evil.X"})),
                "config.json is not what",
            ),
            ("template", |b| drop(b.write("o/chat_template.jinja", "evil")), "chat_template.jinja comes from neither"),
            ("tokens", |b| edit(b, "o/tokenizer.json", |t| t["version"] = json!("2")), "tokenizer.json is not what"),
            (
                "tokenizer",
                |b| edit(b, "o/tokenizer_config.json", |t| t["chat_template"] = json!("evil")),
                "tokenizer_config.json is not what",
            ),
            (
                "generation",
                |b| edit(b, "o/generation_config.json", |g| g["eos_token_id"] = json!(1)),
                "generation_config.json is not what",
            ),
            ("no generation", |b| remove(b, "o/generation_config.json"), "generation_config.json is missing"),
            ("code", |b| drop(b.write("o/modeling.py", "a = 2")), "modeling.py is not what"),
            ("more code", |b| drop(b.write("o/evil.py", "a = 2")), "evil.py comes from neither"),
            ("hidden", |b| drop(b.write("o/.evil.py", "a = 2")), ".evil.py comes from neither"),
            ("below", |b| drop(b.write("o/a/evil.py", "a = 2")), "a/evil.py comes from neither"),
            ("licence", |b| drop(b.write("o/LICENSE", "mine")), "LICENSE is not what"),
            ("index", |b| edit(b, "o/model.safetensors.index.json", |i| i["x"] = json!(1)), "index.json is not what"),
            ("a GGUF file", |b| remove(b, "o/model-Q8_0.gguf"), "model-Q8_0.gguf is missing"),
            (
                "one more GGUF file",
                |b| copy(b, "o/model-BF16.gguf", "o/model-F16.gguf"),
                "model-F16.gguf is an additional file",
            ),
            (
                "another name",
                |b| {
                    fs::rename(b.path("o/model-Q8_0.gguf"), b.path("o/model-Q5_K_M.gguf")).unwrap();
                    edit_manifest(b, |m| m["gguf"]["model-Q5_K_M.gguf"] = m["gguf"]["model-Q8_0.gguf"].clone());
                    edit_manifest(b, |m| drop(m["gguf"].as_object_mut().unwrap().remove("model-Q8_0.gguf")));
                },
                "records the name model-Q8_0.gguf",
            ),
            ("rope in GGUF", |b| poke(b, "o/model-BF16.gguf", "llama.rope.freq_base", 4), "has another llama.rope"),
            (
                "norm in GGUF",
                |b| poke(b, "o/model-Q8_0.gguf", "llama.attention.layer_norm_rms_epsilon", 4),
                "has another llama.attention",
            ),
            ("a token", |b| poke(b, "o/model-BF16.gguf", "<|im_en", 0), "has another tokenizer."),
            ("a weight", |b| poke(b, "o/model-Q8_0.gguf", "qft.adapter.0.weight", 4), "has another qft.adapter.0"),
            ("a digest", |b| poke(b, "o/model-Q8_0.gguf", "qft.adapter.0.sha256", 20), "has another qft.adapter.0"),
            ("a mixture", |b| poke(b, "o/model-Q8_0.gguf", "general.file_type", 4), "has "),
        ],
    );
}

#[test]
fn every_change_of_the_manifest_is_named() {
    let bench = bench("--max-shard 40KB --gguf q8_0");
    let named = |m: &mut Value| m["tensors"]["model.layers.0.self_attn.q_proj.weight"].take();
    assert_ne!(named(&mut bench.json("o/qft-manifest.json"))["changes"], Value::Null);
    const Q: &str = "model.layers.0.self_attn.q_proj.weight";
    finds(
        &bench,
        &[
            ("none", |b| remove(b, "o/qft-manifest.json"), "qft-manifest.json: is missing"),
            ("empty", |b| drop(b.write("o/qft-manifest.json", r#"{"files": {}}"#)), "lacks options"),
            ("format", |b| edit_manifest(b, |m| m["format"] = json!("x")), "says that format is \"x\""),
            ("version", |b| edit_manifest(b, |m| m["qft"] = json!("evil")), "says that qft is \"evil\""),
            ("a key", |b| edit_manifest(b, |m| m["x"] = json!(1)), "has x, which no export writes"),
            ("shard", |b| edit_manifest(b, |m| m["options"]["max_shard"] = json!(1e9 as u64)), "is missing"),
            ("no shard", |b| edit_manifest(b, |m| m["options"]["max_shard"] = Value::Null), "comes from neither"),
            ("a word", |b| edit_manifest(b, |m| m["options"]["max_shard"] = json!("x")), "says that options.max_shard"),
            ("type", |b| edit_manifest(b, |m| m["options"]["dtype"] = json!("f8")), "says that options.dtype"),
            ("overflow", |b| edit_manifest(b, |m| m["options"]["overflow"] = json!("x")), "says that options.overflow"),
            (
                "tokenizer",
                |b| edit_manifest(b, |m| m["options"]["tokenizer"] = json!(1)),
                "says that options.tokenizer",
            ),
            ("an option", |b| edit_manifest(b, |m| m["options"]["x"] = json!(1)), "has options.x"),
            ("repo", |b| edit_manifest(b, |m| m["base"]["repo"] = json!("evil/x")), "says that base.repo is evil/x"),
            ("no repo", |b| edit_manifest(b, |m| m["base"]["repo"] = json!(1)), "says that base.repo is 1"),
            ("bytes", |b| edit_manifest(b, |m| m["base"]["bytes"] = json!(1)), "says that base.bytes is 1"),
            ("count", |b| edit_manifest(b, |m| m["base"]["tensors"] = json!(1)), "says that base.tensors is 1"),
            ("model", |b| edit_manifest(b, |m| m["base"]["model_blake3"] = json!("0")), "says that base.model_blake3"),
            (
                "config",
                |b| edit_manifest(b, |m| m["base"]["config_sha256"] = json!("0")),
                "says that base.config_sha256",
            ),
            (
                "digest",
                |b| edit_manifest(b, |m| m["base"]["tensor_blake3"][Q] = json!("0")),
                "says that base.tensor_blake3.model.layers.0",
            ),
            (
                "weight",
                |b| edit_manifest(b, |m| m["adapters"][0]["weight"] = json!(0.5)),
                "says that adapters[0].weight",
            ),
            ("no adapter", |b| edit_manifest(b, |m| m["adapters"] = json!([])), "says that adapters is []"),
            ("adapters", |b| edit_manifest(b, |m| m["adapters"] = Value::Null), "says that adapters is null"),
            (
                "adapter",
                |b| edit_manifest(b, |m| m["adapters"][0]["files"]["adapter_config.json"]["sha256"] = json!("0")),
                "says that adapters[0].files.adapter_config.json.sha256",
            ),
            (
                "changes",
                |b| edit_manifest(b, |m| m["config_changes"] = json!(["x"])),
                "says that config_changes[0] is \"x\"",
            ),
            ("tensors", |b| edit_manifest(b, |m| m["tensors"] = json!({})), "lacks tensors."),
            (
                "scale",
                |b| edit_manifest(b, |m| m["tensors"][Q]["changes"][0]["scale"] = json!(1.0)),
                "changes[0].scale is 1.0, and it should be 2.0",
            ),
            (
                "source",
                |b| edit_manifest(b, |m| m["tensors"][Q]["source"] = json!({"base": "x"})),
                "source.base is \"x\"",
            ),
            ("place", |b| edit_manifest(b, |m| m["tensors"][Q]["file"] = Value::Null), "file is null"),
            ("a tensor", |b| edit_manifest(b, |m| m["tensors"]["x"] = json!({})), "has tensors.x"),
            (
                "mixture",
                |b| edit_manifest(b, |m| m["gguf"]["model-Q8_0.gguf"]["type"] = json!("Q4_0")),
                "says that gguf.model-Q8_0.gguf.type is \"Q4_0\"",
            ),
            (
                "quality",
                |b| {
                    edit_manifest(b, |m| {
                        m["gguf"]["model-Q8_0.gguf"]["tensors"]["output.weight"]["quality"]["rmse"] = json!(0.0);
                    });
                },
                "tensors.output.weight.quality.rmse is 0.0",
            ),
            (
                "sums",
                |b| edit_manifest(b, |m| m["gguf_quality"][0]["total"]["rmse"] = json!(0.0)),
                "says that gguf_quality[0].total.rmse is 0.0",
            ),
            ("no sums", |b| edit_manifest(b, |m| m["gguf_quality"] = json!([])), "says that gguf_quality is []"),
            (
                "no GGUF",
                |b| edit_manifest(b, |m| drop(m.as_object_mut().unwrap().remove("gguf"))),
                "model-Q8_0.gguf is an additional file",
            ),
        ],
    );
    // Its own list of files, which nobody made again.
    let whole = bench.files("o");
    let changes: [(&str, Change, &str); 3] = [
        ("size", |b| edit_manifest(b, |m| m["files"]["LICENSE"]["size"] = json!(1)), "files.LICENSE.size is 1"),
        (
            "left out",
            |b| edit_manifest(b, |m| drop(m["files"].as_object_mut().unwrap().remove("LICENSE"))),
            "lacks files.LICENSE",
        ),
        ("more", |b| edit_manifest(b, |m| m["files"]["LICENSE"]["x"] = json!(1)), "has files.LICENSE.x"),
    ];
    for (what, change, mentions) in changes {
        restore(&bench, &whole);
        change(&bench);
        let sum = qft::digest::sha256(&fs::read(bench.path("o/qft-manifest.json")).unwrap());
        let lines = bench.read("o/SHA256SUMS");
        let lines = lines.lines().map(|line| match line.ends_with("  qft-manifest.json") {
            true => format!("{sum}  qft-manifest.json\n"),
            false => format!("{line}\n"),
        });
        bench.write("o/SHA256SUMS", lines.collect::<String>());
        let said = bench.qft(AUDIT);
        assert_eq!(said.code, Some(3), "{what}: {}{}", said.out, said.err);
        assert!(said.out.contains(mentions), "{what}: {}", said.out);
    }
}

#[test]
fn gguf_files_alone_have_nothing_beside_them() {
    let bench = bench("--gguf q8_0,bf16");
    let manifest = bench.json("o/qft-manifest.json");
    assert_eq!(manifest["config_changes"], json!([]), "there is no generation_config.json to change");
    finds(
        &bench,
        &[
            ("code", |b| drop(b.write("o/evil.py", "a = 2")), "evil.py comes from neither"),
            ("a config", |b| copy(b, "base/config.json", "o/config.json"), "config.json comes from neither"),
            ("a GGUF file", |b| remove(b, "o/model-BF16.gguf"), "model-BF16.gguf is missing"),
            ("tensors", |b| edit_manifest(b, |m| m["tensors"] = json!({})), "lacks tensors."),
        ],
    );
}

#[test]
fn what_nothing_tells_is_named_and_no_problem() {
    let bench = bench("--gguf q8_0 --tensor-type attn_q=q5_0 --name Mine");
    let notes = |line: &str| {
        let said = bench.ok(line);
        let lines = said.out.lines().filter_map(|line| line.strip_prefix("note: not checked: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let said = notes(AUDIT);
    let mentions = ["tokenizer.ggml.pre", "general.name", "the types of 2 of its tensors"];
    assert!(said.len() == 3 && mentions.iter().all(|m| said.iter().any(|line| line.contains(m))), "{said:?}");
    // A base that was found by its id, and is given as a directory now.
    let claims = |bench: &Bench| {
        edit_manifest(bench, |m| m["qft"] = json!("9.8.7"));
        edit_manifest(bench, |m| m["base"]["repo"] = json!("org/base"));
        edit_manifest(bench, |m| m["base"]["revision"] = json!("0".repeat(40)));
        list_anew(bench);
    };
    claims(&bench);
    let said = bench.qft(AUDIT);
    assert!(said.code == Some(3) && said.out.contains("model-Q8_0.gguf has another value"), "{}", said.out);
    let bench = self::bench("");
    claims(&bench);
    let said = bench.ok(AUDIT);
    for mention in ["base.repo: org/base has this name", "base.revision: 0000", "qft: version 9.8.7 made it"] {
        assert!(said.out.contains(&format!("note: not checked: {mention}")), "{}", said.out);
    }
    // One that the adapters name otherwise is no note.
    bench.adapter_config("adapter", json!({"base_model_name_or_path": "other/base"}));
    let said = bench.qft(AUDIT);
    assert!(
        said.code == Some(3) && said.out.contains("says that base.repo is org/base, which neither"),
        "{}",
        said.out
    );
}

#[test]
fn without_lists_it_is_said_what_was_not_checked() {
    let bench = bench("--gguf q8_0 --max-shard 1GB");
    ["SHA256SUMS", "qft-manifest.json"].iter().for_each(|name| remove(&bench, &format!("o/{name}")));
    let said = bench.ok(AUDIT);
    for mention in
        ["neither SHA256SUMS nor qft-manifest.json", "not checked: the files beside the weights", "no problems"]
    {
        assert!(said.out.contains(mention) && !said.out.contains("clean"), "{mention}: {}", said.out);
    }
    // A list that leaves a file out.
    let bench = self::bench("--max-shard 1GB");
    let left =
        |text: String, name: &str| text.lines().filter(|l| !l.ends_with(name)).map(|l| format!("{l}\n")).collect();
    for name in ["LICENSE", "qft-manifest.json"] {
        let whole = bench.read("o/SHA256SUMS");
        let text: String = left(whole.clone(), name);
        bench.write("o/SHA256SUMS", text);
        let said = bench.qft("verify o");
        assert_eq!(said.code, Some(3));
        assert!(said.out.contains(&format!("{name}: is not in SHA256SUMS")), "{}", said.out);
        bench.write("o/SHA256SUMS", whole);
    }
}
