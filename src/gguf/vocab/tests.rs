//! Whole tokenizers against the keys that llama.cpp's converter wrote for them: `fixtures/make_tokenizers.py`.

use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::*;
use crate::arch::{LLAMA_TOKENIZERS as LLAMA, QWEN_TOKENIZERS as QWEN};

/// The files of a model in a directory.
fn model(dir: &Path) -> ModelFiles {
    let mut files = ModelFiles { directory: "model".to_owned(), ..ModelFiles::default() };
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            for inner in fs::read_dir(&path).unwrap() {
                let inner = inner.unwrap().path();
                files.paths.insert(format!("{name}/{}", inner.file_name().unwrap().to_str().unwrap()), inner);
            }
        } else if name == "config.json" {
            files.config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        } else {
            files.paths.insert(name, path);
        }
    }
    files
}

/// The keys as the fixtures have them.
fn listed(keys: &Metadata) -> Vec<(String, &'static str, Json)> {
    let typed = |value: &Value| match value {
        Value::U32(id) => ("uint32", json!(id)),
        Value::Bool(flag) => ("bool", json!(flag)),
        Value::String(text) => ("string", json!(text)),
        Value::Array(Array::String(texts)) => ("array:string", json!(texts)),
        Value::Array(Array::I32(kinds)) => ("array:int32", json!(kinds)),
        Value::Array(Array::F32(scores)) => ("array:float32", json!(scores)),
        other => panic!("no tokenizer has {other:?}"),
    };
    keys.iter().map(|(key, value)| (key.to_owned(), typed(value).0, typed(value).1)).collect()
}

fn floats(list: &Json) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn options(files: &ModelFiles) -> VocabOptions<'static> {
    let qwen = files.config["model_type"].as_str().unwrap().starts_with("qwen");
    let vocab_size = usize::try_from(files.config["vocab_size"].as_u64().unwrap()).unwrap();
    VocabOptions { pre: Some("a-name"), recipe: if qwen { &QWEN } else { &LLAMA }, vocab_size, turn_end: None }
}

fn cases() -> Vec<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers");
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// `scores` with the rank of its merge for each token that has one.
fn by_rank(files: &ModelFiles, scores: &[f32]) -> Vec<f32> {
    let tokenizer: Json = serde_json::from_str(&files.text("tokenizer.json").unwrap().unwrap()).unwrap();
    let mut scores = scores.to_vec();
    for (rank, merge) in tokenizer["model"]["merges"].as_array().unwrap().iter().enumerate() {
        let parts = merge.as_str().map_or_else(
            || merge.as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect::<String>(),
            |line| line.replace(' ', ""),
        );
        let id = tokenizer["model"]["vocab"][&parts].as_u64().unwrap();
        scores[usize::try_from(id).unwrap()] = 0.0 - rank as f32;
    }
    scores
}

/// llama.cpp stops at a few texts by itself; another end of a turn needs a key.
#[test]
fn the_end_of_a_turn_has_a_key_where_llama_cpp_knows_none() {
    let files = model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/qwen/model"));
    let key = |turn_end| {
        let keys = convert(&files, &VocabOptions { turn_end, ..options(&files) }).unwrap().keys;
        keys.get("tokenizer.ggml.eot_token_id").cloned()
    };
    assert_eq!(key(Some(("<|turn_end|>", 3))), Some(Value::U32(3)));
    assert_eq!((key(None), key(Some(("<|im_end|>", 3))), key(Some(("<|turn_end|>", 1 << 30)))), (None, None, None));
    let eos = convert(&files, &options(&files)).unwrap().keys.get("tokenizer.ggml.eos_token_id").cloned();
    let Some(Value::U32(eos)) = eos else { panic!("{eos:?}") };
    assert_eq!(key(Some(("<|turn_end|>", eos))), None);
}

#[test]
fn every_case_has_the_keys_of_the_converter() {
    let cases = cases();
    assert!(cases.len() >= 13, "only {} cases", cases.len());
    for case in cases {
        let files = model(&case.join("model"));
        let expected: Json = serde_json::from_str(&fs::read_to_string(case.join("expected.json")).unwrap()).unwrap();
        let vocab = convert(&files, &options(&files)).unwrap();
        let found = listed(&vocab.keys);
        let expected = expected["keys"].as_array().unwrap();
        let names: Vec<_> = expected.iter().map(|row| row[0].as_str().unwrap()).collect();
        assert_eq!(found.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(), names, "{}", case.display());
        for (row, (key, kind, value)) in expected.iter().zip(found) {
            // The reader of JSON may miss the last bit of a number of 64 bits.
            let mut expected = if kind == "array:float32" { json!(floats(&row[2])) } else { row[2].clone() };
            if case.ends_with("llama_hf") && key == "tokenizer.ggml.scores" {
                // The converter's own would have llama.cpp merge from left to right.
                expected = json!(by_rank(&files, &floats(&row[2])));
            }
            assert_eq!((&row[1], expected), (&json!(kind), value), "{}: {key}", case.display());
        }
    }
}

#[test]
fn every_case_has_the_digest_of_the_converter() {
    for case in cases() {
        let expected: Json = serde_json::from_str(&fs::read_to_string(case.join("expected.json")).unwrap()).unwrap();
        let Some(digest) = expected["digest"].as_str() else { continue };
        let files = model(&case.join("model"));
        let error = convert(&files, &VocabOptions { pre: None, ..options(&files) }).unwrap_err().to_string();
        assert!(error.contains(digest) && error.contains("⟦pre"), "{}: {error}", case.display());
    }
}

#[test]
fn two_sizes_of_vocabulary_have_keys_of_their_own() {
    let files = model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/llama2/model"));
    let of_size = |vocab_size| convert(&files, &VocabOptions { vocab_size, ..options(&files) }).unwrap().keys;
    let plain = of_size(32015);
    assert_eq!(plain.get("tokenizer.ggml.eot_token_id"), None);
    assert_eq!(of_size(32016).get("tokenizer.ggml.eot_token_id"), Some(&Value::U32(32010)));
    assert_eq!(plain.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(of_size(49152).get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(false)));
}

/// The tokens of the fixture of SentencePiece's kind, with `change` made to its tokenizer.json, in `vocab_size` places.
fn llama_hf(vocab_size: usize, change: impl FnOnce(&mut Json)) -> Result<Vec<(String, i32)>> {
    let mut files = model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/llama_hf/model"));
    let mut tokenizer = files.json("tokenizer.json")?.unwrap();
    change(&mut tokenizer);
    let changed = tempfile::NamedTempFile::new().unwrap();
    fs::write(changed.path(), tokenizer.to_string()).unwrap();
    files.paths.insert("tokenizer.json".to_owned(), changed.path().to_owned());
    // It lists the added tokens once more.
    files.paths.remove("tokenizer_config.json");
    let vocab = convert(&files, &VocabOptions { vocab_size, ..options(&files) })?;
    let texts = vocab.keys.get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap().iter().cloned();
    let Some(Value::Array(Array::I32(kinds))) = vocab.keys.get("tokenizer.ggml.token_type") else { panic!() };
    assert_eq!((vocab.tokens, kinds.len()), (vocab_size, vocab_size));
    Ok(texts.zip(kinds.iter().copied()).collect())
}

#[test]
fn a_vocabulary_of_sentencepieces_kind_has_a_token_for_each_row() {
    let token = |text: &str, kind| (text.to_owned(), kind);
    let whole = llama_hf(269, |_| ()).unwrap();
    let padded = llama_hf(279, |_| ()).unwrap();
    assert_eq!(
        (&padded[..269], &padded[269], &padded[278]),
        (&whole[..], &token("[PAD269]", 5), &token("[PAD278]", 5))
    );
    // The last added token beyond a gap, listed alone or in the model's own vocabulary too.
    for own in [false, true] {
        let moved = llama_hf(279, |t| {
            t["added_tokens"][4]["id"] = json!(275);
            if own {
                t["model"]["vocab"]["<pad>"] = json!(275);
            }
        });
        let moved = moved.unwrap();
        let around = [268, 275, 276].map(|id| moved[id].0.as_str());
        assert_eq!(around, ["[PAD268]", "<pad>", "[PAD276]"], "own: {own}");
    }
    let twice = llama_hf(279, |t| t["added_tokens"][4]["id"] = json!(5)).unwrap_err().to_string();
    assert!(twice.contains("the id 5") && twice.contains("<pad>") && twice.contains("<0x02>"), "{twice}");
    // A gap in the model's own vocabulary, and a token called as the padding of another place.
    let gap = llama_hf(279, |t| {
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove("a");
        vocab.insert("[PAD272]".to_owned(), json!(270));
    });
    let gap = gap.unwrap();
    let at = whole.iter().position(|token| token.0 == "a").unwrap();
    assert_eq!(gap[at], token(&format!("[PAD{at}]"), 5));
    assert_eq!((&gap[270], &gap[272]), (&token("[PAD272]", 1), &token("[PAD272_]", 5)));
    let error = llama_hf(268, |_| ()).unwrap_err().to_string();
    assert!(error.contains("id 268") && error.contains("vocab_size of 268"), "{error}");
}

#[test]
fn padding_is_known_by_its_name() {
    assert!(is_padding(7, "[PAD7]") && is_padding(7, "[PAD7__]"));
    for other in ["[PAD8]", "[PAD07]", "[PAD]", "PAD7", "[PAD7_x]", "[PAD_]"] {
        assert!(!is_padding(7, other), "{other}");
    }
}

#[test]
fn refuses_what_gives_no_vocabulary() {
    let mut files = model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/llama3/model"));
    let refusal = |files: &ModelFiles, vocab_size| {
        convert(files, &VocabOptions { vocab_size, ..options(files) }).unwrap_err().to_string()
    };
    assert!(refusal(&files, 10).contains("vocab_size of 10"));
    assert!(refusal(&files, usize::MAX).contains("at most"));
    files.paths.remove("tokenizer.json");
    assert!(refusal(&files, 300).contains("tokenizer.model and tokenizer.json"));
}

#[test]
fn a_hostile_tokenizer_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let texts = [
        "",
        "[]",
        "{}",
        r#"{"model":{"type":"BPE","vocab":{},"merges":[]},"added_tokens":7}"#,
        r#"{"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[["b","c"]]}}"#,
        r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]},"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a*)*b("},"behavior":"Isolated","invert":false}}"#,
        r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]},"added_tokens":[]}"#,
    ];
    for text in texts {
        fs::write(&path, text).unwrap();
        let files = ModelFiles { paths: [("tokenizer.json".to_owned(), path.clone())].into(), ..ModelFiles::default() };
        let result = convert(&files, &VocabOptions { pre: Some("x"), recipe: &LLAMA, vocab_size: 9, turn_end: None });
        assert!(result.is_err(), "{text}");
    }
}
