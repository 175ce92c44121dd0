//! What llama.cpp would not load, or would compute otherwise: refused, mended or told by `gguf`, `export`, `quantize` and
//! `to-hf`, and found by `verify` in any file.

use std::path::Path;

use qft::gguf::{GgufFile, GgufModel, Metadata, TensorForm, Value, lay_out};
use serde_json::{Value as Json, json};

use crate::gguf::bench;
use crate::workbench::{Bench, Said};

fn keys(bench: &Bench, name: &str) -> Metadata {
    GgufModel::open(&bench.path(name)).unwrap().metadata
}

fn number(keys: &Metadata, key: &str) -> Option<f64> {
    keys.get(key).and_then(Value::as_f64)
}

/// Exchanges settings of a JSON file of the bench; null removes one.
fn edit(bench: &Bench, name: &str, change: impl FnOnce(&mut Json)) {
    let mut json = bench.json(name);
    change(&mut json);
    bench.write(name, json.to_string());
}

/// Writes the GGUF file `from` again as `to`, with other keys.
fn rewrite(bench: &Bench, from: &str, to: &str, change: impl FnOnce(&mut Metadata)) {
    let file = GgufFile::open(&bench.path(from)).unwrap();
    let mut metadata = file.metadata().clone();
    change(&mut metadata);
    let forms: Vec<_> =
        file.tensors().iter().map(|t| TensorForm { name: &t.name, shape: &t.shape, kind: t.kind }).collect();
    let layout = lay_out(&metadata, &forms).unwrap();
    let mut bytes = layout.header;
    bytes.resize(layout.total as usize, 0);
    for (tensor, offset) in file.tensors().iter().zip(layout.offsets) {
        let stored = file.bytes(tensor);
        bytes[offset as usize..][..stored.len()].copy_from_slice(stored);
    }
    bench.write(to, bytes);
}

fn finds(bench: &Bench, line: &str, mentions: &[&str]) -> Said {
    let said = bench.qft(line);
    assert_eq!(said.code, Some(3), "{}{}", said.out, said.err);
    mentions.iter().for_each(|mention| assert!(said.out.contains(mention), "{mention:?} is not in {}", said.out));
    said
}

/// What a command that succeeds warns of.
fn warns(bench: &Bench, line: &str) -> String {
    let said = bench.ok(line);
    said.err.lines().filter(|line| line.starts_with("warning: ")).collect::<Vec<_>>().join("\n")
}

const GGUF: &str = "gguf base --type bf16 --pre qwen2 --overwrite --out x.gguf";

#[test]
fn no_token_is_there_twice() {
    let bench = bench(false);
    // A model of 272 places, whose tokenizer has a token that is called as padding is.
    edit(&bench, "base/tokenizer.json", |t| {
        let mut token = t["added_tokens"][0].clone();
        (token["id"], token["content"]) = (json!(263), json!("[PAD270]"));
        t["added_tokens"].as_array_mut().unwrap().push(token);
    });
    assert_eq!(warns(&bench, GGUF), "");
    let tokens = keys(&bench, "x.gguf").get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap().to_vec();
    let unique: std::collections::BTreeSet<&String> = tokens.iter().collect();
    assert_eq!((tokens.len(), unique.len()), (272, 272));
    assert_eq!([263, 264, 270].map(|id| tokens[id].as_str()), ["[PAD270]", "[PAD264]", "[PAD270_]"]);
    bench.ok("verify x.gguf");
    bench.ok("to-hf x.gguf --out back");
    let added = bench.json("back/tokenizer.json")["added_tokens"].as_array().unwrap().len();
    assert_eq!(added, 3, "padding is none");
    // Any other file: both ids are named, and it is not quantized.
    rewrite(&bench, "x.gguf", "dup.gguf", |keys| {
        let mut twice = tokens.clone();
        twice[7] = twice[4].clone();
        keys.set("tokenizer.ggml.tokens", Value::strings(twice));
    });
    finds(&bench, "verify dup.gguf", &["the tokens 4 and 7 are both \u{104}"]);
    bench.refuses("quantize dup.gguf --type q8_0 --out y.gguf", &["the tokens 4 and 7", "remedy"]);
    assert!(bench.ok("inspect dup.gguf").out.contains("the tokens 4 and 7"));
    // Two tokens of one tokenizer that become one text.
    edit(&bench, "base/tokenizer.json", |t| {
        let added = t["added_tokens"].as_array_mut().unwrap();
        let mut token = added[0].clone();
        for (id, text) in [(264, "<a\u{2581}b>"), (265, "<a b>")] {
            (token["id"], token["content"], token["special"]) = (json!(id), json!(text), json!(false));
            token["normalized"] = json!(true);
            added.push(token.clone());
        }
    });
    bench.refuses(GGUF, &["the tokens 264 and 265 are both <a b>", "remedy"]);
}

/// An importance matrix of the old format, with ones for these tensors.
pub(crate) fn imatrix(bench: &Bench, name: &str, entries: &[(&str, usize)]) {
    let int = |n: usize| (n as i32).to_le_bytes();
    let mut bytes = int(entries.len()).to_vec();
    for (name, columns) in entries {
        bytes.extend([&int(name.len())[..], name.as_bytes(), &int(1), &int(*columns)].concat());
        bytes.extend(1f32.to_le_bytes().repeat(*columns));
    }
    bytes.extend(int(4));
    let dataset = "/home/me/calibration.txt";
    bytes.extend([&int(dataset.len())[..], dataset.as_bytes()].concat());
    bench.write(name, bytes);
}

#[test]
fn an_importance_matrix_must_be_of_this_model() {
    let bench = bench(false);
    bench.ok(GGUF);
    imatrix(&bench, "other.dat", &[("blk.9.attn_q.weight", 256), ("blk.9.attn_k.weight", 256)]);
    let nothing = ["other.dat", "no entry for any of the 16 tensors", "blk.9.attn_k.weight", "remedy"];
    bench.refuses("quantize x.gguf --type q4_k_m --imatrix other.dat --out a.gguf", &nothing);
    bench.refuses("gguf base --pre qwen2 --type iq4_xs --imatrix other.dat --out a.gguf", &nothing);
    let export = "export --merge-lora --base base --adapter adapter --pre qwen2 --gguf q4_k_m --out out";
    bench.refuses(&format!("{export} --imatrix other.dat"), &nothing);
    assert!(!bench.path("a.gguf").exists() && !bench.path("out").exists());
    imatrix(&bench, "dir/part.dat", &[("blk.0.attn_q.weight", 256), ("blk.9.attn_q.weight", 256)]);
    let warnings = warns(&bench, "quantize x.gguf --type q8_0 --imatrix dir/part.dat --out a.gguf");
    assert!(warnings.contains("no entry for 15 of the 16"), "{warnings}");
    assert!(warnings.contains("1 entries") && warnings.contains("blk.9.attn_q.weight"), "{warnings}");
    let made = keys(&bench, "a.gguf");
    assert_eq!(number(&made, "quantize.imatrix.entries_count"), Some(1.0), "what was used");
    let text = |key: &str| made.get(key).and_then(Value::as_str).unwrap().to_owned();
    assert_eq!(text("quantize.imatrix.file"), "part.dat");
    assert_eq!(text("quantize.imatrix.dataset"), "calibration.txt");
    // One of the whole model, as llama-imatrix makes it: without embedding and head.
    let model = GgufModel::open(&bench.path("x.gguf")).unwrap();
    let matrices = model.tensors.iter().map(|t| t.info()).filter(|t| t.shape.len() == 2 && t.name.starts_with("blk."));
    let whole: Vec<(&str, usize)> = matrices.map(|t| (t.name.as_str(), t.shape[1])).collect();
    imatrix(&bench, "whole.dat", &whole);
    assert_eq!(warns(&bench, "quantize x.gguf --type q8_0 --imatrix whole.dat --overwrite --out a.gguf"), "");
    assert_eq!(number(&keys(&bench, "a.gguf"), "quantize.imatrix.entries_count"), Some(14.0));
    bench.ok("verify a.gguf");
}

#[test]
fn a_file_that_does_not_name_its_pre_tokenizer_is_told() {
    let bench = bench(false);
    bench.ok(GGUF);
    assert_eq!(warns(&bench, "to-hf x.gguf --out back"), "");
    rewrite(&bench, "x.gguf", "old.gguf", |keys| drop(keys.remove("tokenizer.ggml.pre")));
    let warning = warns(&bench, "to-hf old.gguf --out old");
    assert!(warning.contains("tokenizer.ggml.pre") && warning.contains("--tokenizer"), "{warning}");
    assert_eq!(warns(&bench, "to-hf old.gguf --out mended --tokenizer base"), "", "the remedy");
    assert_eq!(bench.read("mended/tokenizer.json"), bench.read("base/tokenizer.json"));
    finds(&bench, "verify old.gguf", &["tokenizer.ggml.pre is missing"]);
    assert!(warns(&bench, "quantize old.gguf --type q8_0 --out q.gguf").contains("tokenizer.ggml.pre is missing"));
}

/// The card that PEFT writes beside an adapter whose base lay on a disk.
const CARD: &str = "---\nbase_model: PATH\nlibrary_name: peft\npipeline_tag: text-generation\ndatasets:\n- PATH/data.jsonl\n\
     - org/data\ntags:\n- base_model:adapter:PATH\n- lora\n- transformers\n---\n# Model Card\n";

#[test]
fn no_path_of_a_disk_gets_into_a_file() {
    for path in ["/home/me/models/base", "./base", "~/models/base", "C:\\models\\base"] {
        let bench = bench(false);
        bench.adapter_config("adapter", json!({"base_model_name_or_path": path}));
        bench.write("adapter/README.md", CARD.replace("PATH", path));
        let line = "export --merge-lora --base base --adapter adapter --gguf bf16 --pre qwen2 --out out";
        assert!(warns(&bench, line).contains("base_model has a local path"), "{path}");
        let made = keys(&bench, "out/model-BF16.gguf");
        let telling = made.iter().filter(|(key, _)| !key.starts_with("tokenizer."));
        for (key, value) in telling {
            let value = format!("{value:?}").to_lowercase();
            assert!(!value.contains("models") && !value.contains("home") && !value.contains("./"), "{key}: {value}");
        }
        let tags = made.get("general.tags").and_then(Value::as_strings).unwrap();
        assert_eq!(tags, ["transformers", "text-generation"], "a merged model is no adapter");
        assert_eq!(made.get("general.base_model.count"), None);
        assert_eq!(number(&made, "general.dataset.count"), Some(1.0), "an id of the Hub stays");
        bench.ok("verify out");
        // The same card beside a model: what it says of its kind stays.
        bench.write("base/README.md", CARD.replace("PATH", path));
        bench.ok(GGUF);
        let made = keys(&bench, "x.gguf");
        let tags = made.get("general.tags").and_then(Value::as_strings).unwrap();
        assert_eq!(tags, ["lora", "transformers", "text-generation"]);
        bench.ok("verify x.gguf");
    }
    // A Hub id is written.
    let bench = bench(false);
    bench.write("base/README.md", CARD.replace("PATH/data.jsonl", "a/b").replace("PATH", "org/base"));
    assert_eq!(warns(&bench, GGUF), "");
    let made = keys(&bench, "x.gguf");
    let address = made.get("general.base_model.0.repo_url").and_then(Value::as_str);
    assert_eq!(address, Some("https://huggingface.co/org/base"));
    // Another's file: `verify` finds the path, and quantizing it leaves it out.
    rewrite(&bench, "x.gguf", "other.gguf", |keys| {
        keys.set("general.base_model.0.repo_url", Value::string("https://huggingface.co//home/me/base"));
    });
    finds(&bench, "verify other.gguf", &["general.base_model.0.repo_url", "/home/me/base"]);
    assert!(warns(&bench, "quantize other.gguf --type q8_0 --out q.gguf").contains("left out"));
    assert_eq!(keys(&bench, "q.gguf").get("general.base_model.0.repo_url"), None);
}

#[test]
fn what_llama_cpp_computes_otherwise_is_told_first() {
    let bench = bench(false);
    assert_eq!(warns(&bench, GGUF), "");
    edit(&bench, "base/config.json", |config| {
        config["use_sliding_window"] = json!(true);
        config["sliding_window"] = json!(64);
        config["max_window_layers"] = json!(0);
    });
    for line in [GGUF, &format!("{GGUF} --dry-run")] {
        let warning = warns(&bench, line);
        assert!(warning.contains("the last 64 only (sliding_window)") && warning.contains("qwen2"), "{warning}");
    }
    let export = "export --merge-lora --base base --adapter adapter --gguf bf16 --pre qwen2 --out out";
    assert!(bench.ok(&format!("{export} --dry-run")).out.contains("sliding_window"));
    assert!(!bench.path("out").exists());
    edit(&bench, "base/config.json", |config| config["hidden_act"] = json!("gelu"));
    bench.refuses("gguf base --type bf16 --pre qwen2 --out new.gguf", &["hidden_act", "gelu", "remedy"]);
    bench.refuses(export, &["hidden_act", "gelu"]);
    assert!(!bench.path("new.gguf").exists() && !bench.path("out").exists());
}

#[test]
fn yarn_has_the_factor_of_transformers_both_ways() {
    let bench = bench(false);
    let plain = 0.1 * 4f64.ln() + 1.0;
    let close = |found: Option<f64>, wanted: f64| (found.unwrap() - wanted).abs() < 1e-6;
    let made = |more: Json| {
        edit(&bench, "base/config.json", |config| {
            let mut scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
            scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config["rope_scaling"] = scaling;
        });
        assert_eq!(warns(&bench, GGUF), "");
        bench.ok("verify x.gguf");
        assert_eq!(warns(&bench, "to-hf x.gguf --out back --overwrite"), "");
        let factor = number(&keys(&bench, "x.gguf"), "qwen2.rope.scaling.attn_factor");
        (factor, bench.json("back/config.json")["rope_scaling"]["attention_factor"].as_f64())
    };
    assert_eq!(made(json!({})), (None, None), "both work it out");
    let (factor, back) = made(json!({"attention_factor": 0.9}));
    assert!(close(factor, 0.9 / plain) && close(back, 0.9), "{factor:?} {back:?}");
    let (factor, back) = made(json!({"mscale": 1.0, "mscale_all_dim": 0.5}));
    let wanted = plain / (0.1 * 0.5 * 4f64.ln() + 1.0);
    assert!(close(factor, wanted / plain) && close(back, wanted), "{factor:?} {back:?}");
    // A file of llama.cpp's converter, which writes another key.
    rewrite(&bench, "x.gguf", "theirs.gguf", |keys| {
        keys.remove("qwen2.rope.scaling.attn_factor");
        keys.set("qwen2.rope.scaling.yarn_attn_factor", Value::F32(0.9));
    });
    let warning = warns(&bench, "to-hf theirs.gguf --out theirs");
    assert!(warning.contains("qwen2.rope.scaling.yarn_attn_factor is 0.9"), "{warning}");
    let back = &bench.json("theirs/config.json")["rope_scaling"];
    assert_eq!((back["factor"].as_f64(), back.get("attention_factor")), (Some(4.0), None), "as llama.cpp computes");
    assert!(bench.ok("verify theirs.gguf").out.contains("note: theirs.gguf: qwen2.rope.scaling.yarn_attn_factor"));
}

#[test]
fn multipliers_that_have_no_place_are_told() {
    let bench = bench(true);
    bench.ok(GGUF);
    rewrite(&bench, "x.gguf", "scaled.gguf", |keys| {
        for (key, value) in [("logit_scale", 8.0), ("residual_scale", 0.22), ("embedding_scale", 12.0)] {
            keys.set(&format!("llama.{key}"), Value::F32(value));
        }
        keys.set("llama.attention.scale", Value::F32(0.015_625));
    });
    let warnings = warns(&bench, "to-hf scaled.gguf --out back");
    for mention in ["llama.logit_scale is 8,", "residual_scale", "embedding_scale", "llama.attention.scale is 0.015625"]
    {
        assert!(warnings.contains(mention), "{mention}: {warnings}");
    }
    assert_eq!(warnings.lines().count(), 4, "{warnings}");
    assert!(bench.ok("verify scaled.gguf").out.contains("llama.logit_scale is 8"));
}

/// SentencePiece's BPE as tokenizer.json has it: 256 bytes and some pieces, whose ids have a gap, and fewer than places.
fn write_sentencepiece(bench: &Bench, dir: &str) {
    let mut vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2});
    (0..256).for_each(|byte| vocab[format!("<0x{byte:02X}>")] = json!(3 + byte));
    vocab["\u{2581}"] = json!(259);
    vocab["<|end|>"] = json!(266);
    let token = |id: usize, text: &str| {
        json!({"id": id, "content": text, "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>"), token(266, "<|end|>")],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>"},
    });
    bench.write(Path::new(dir).join("tokenizer.json"), tokenizer.to_string());
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"});
    bench.write(Path::new(dir).join("tokenizer_config.json"), config.to_string());
}

#[test]
fn a_sentencepiece_vocabulary_has_as_many_tokens_as_rows() {
    let bench = bench(true);
    write_sentencepiece(&bench, "base");
    assert_eq!(warns(&bench, "gguf base --type bf16 --out x.gguf"), "");
    let made = keys(&bench, "x.gguf");
    let tokens = made.get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap();
    assert_eq!(tokens.len(), 272);
    let some = [2, 259, 260, 266, 271].map(|id| tokens[id].as_str());
    assert_eq!(some, ["</s>", "\u{2581}", "[PAD260]", "<|end|>", "[PAD271]"], "an id beyond a gap stays");
    assert_eq!(number(&made, "tokenizer.ggml.eos_token_id"), Some(266.0));
    bench.ok("verify x.gguf");
    // An added token that the vocabulary itself lacks: the file's id stays, and that others count on is told.
    edit(&bench, "base/tokenizer.json", |t| drop(t["model"]["vocab"].as_object_mut().unwrap().remove("<|end|>")));
    let warning = warns(&bench, "gguf base --type bf16 --out y.gguf");
    assert!(warning.contains("<|end|> the id 266") && warning.contains("gives it 260"), "{warning}");
    assert_eq!(keys(&bench, "y.gguf"), made);
    // More tokens than rows can't be.
    edit(&bench, "base/tokenizer.json", |t| t["model"]["vocab"]["<|end|>"] = json!(272));
    bench.refuses("gguf base --type bf16 --out z.gguf", &["id 272", "vocab_size of 272", "remedy"]);
}
