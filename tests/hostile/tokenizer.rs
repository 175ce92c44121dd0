//! tokenizer.json of strangers: normalizers that grow, patterns that match nothing, models without their tokens. For
//! training and for a conversion to GGUF.

use std::fs;

use serde_json::{Value, json};

use super::bounded::{Kind, TRAIN, all_end, trainee};
use crate::workbench::Bench;

const GGUF: &str = "gguf base --type q8_0 --out model.gguf";

fn bench() -> Bench {
    trainee("a quick", "brown fox aaaa")
}

/// The good tokenizer with `value` at `member`.
fn with(name: impl Into<String>, member: &'static str, value: Value, mentions: &'static str) -> Kind {
    let put = move |bench: &Bench| {
        let path = bench.path("base/tokenizer.json");
        let mut file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        file[member] = value.clone();
        fs::write(path, file.to_string()).unwrap();
    };
    Kind { name: name.into(), put: Box::new(put), mentions }
}

fn replace(pattern: &Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

fn normalizers(name: &str, list: Vec<Value>, mentions: &'static str) -> Kind {
    with(name, "normalizer", json!({"type": "Sequence", "normalizers": list}), mentions)
}

fn split(pattern: &str, behavior: &str, mentions: &'static str) -> Kind {
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    with(pattern, "pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split, bytes]}), mentions)
}

fn added(tokens: impl Iterator<Item = (u64, String)>) -> Value {
    let token = |(id, content): (u64, String)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true,
            "special": false})
    };
    tokens.map(token).collect()
}

/// What either command has to refuse.
fn refused() -> Vec<Kind> {
    let empty = |pattern: Value| replace(&pattern, "b");
    let doubling = replace(&json!({"String": "a"}), "aa");
    let mut deep = json!({"type": "NFC"});
    for _ in 0..120 {
        deep = json!({"type": "Sequence", "normalizers": [deep]});
    }
    let charsmap = |map: &str| json!({"type": "Precompiled", "precompiled_charsmap": map});
    let broken = "the tokenizers library failed";
    vec![
        normalizers("a to aa, 30 times", vec![doubling.clone(); 30], "1073741824 times as long"),
        normalizers(
            "a to a hundred, 6 times",
            vec![replace(&json!({"String": "a"}), &"a".repeat(100)); 6],
            "times as long",
        ),
        normalizers(
            "nested",
            vec![json!({"type": "Sequence", "normalizers": vec![doubling; 10]}); 10],
            "times as long",
        ),
        normalizers("ahead", vec![replace(&json!({"Regex": "(?=a)"}), "bbbbbbbbb"); 9], "times as long"),
        normalizers("bytes", vec![json!({"type": "ByteLevel"}); 30], "times as long"),
        normalizers("before", vec![json!({"type": "Prepend", "prepend": "x".repeat(5_000_000)})], "times as long"),
        normalizers("many before", vec![json!({"type": "Prepend", "prepend": "x"}); 9999], "at most 4096"),
        normalizers("many forms", vec![json!({"type": "NFD"}); 9999], "at most 4096"),
        normalizers("deep", vec![deep], "recursion limit"),
        normalizers("no pattern", vec![empty(json!({"Regex": "("}))], "can't be opened as a tokenizer"),
        normalizers("a map that is none", vec![charsmap("!!!")], broken),
        normalizers("a map cut short", vec![charsmap("/////w==")], broken),
        normalizers("an empty map", vec![charsmap("")], broken),
        split("(", "Isolated", "can't be opened as a tokenizer"),
        with("an unknown part", "pre_tokenizer", json!({"type": "Nope"}), "can't be opened as a tokenizer"),
        with(
            "a long space",
            "pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "xx", "prepend_scheme": "always", "split": true}),
            "can't be opened as a tokenizer",
        ),
        with(
            "long words",
            "model",
            json!({"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "##", "vocab": {"x": 0},
                "max_input_chars_per_word": 1_000_000_000}),
            "words of 1000000000 characters",
        ),
        with("no pieces", "model", json!({"type": "Unigram", "vocab": [], "unk_id": 3}), "can't be opened"),
        with("no model", "model", Value::Null, "tokenizer.json"),
        with(
            "a merge of no tokens",
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["zz", "qq"]]}),
            "can't be opened as a tokenizer",
        ),
        with(
            "a million added",
            "added_tokens",
            added((0..300_000).map(|id| (id, format!("<{id}>")))),
            "at most 262144",
        ),
        with("a great id", "added_tokens", added([(u64::from(u32::MAX), "zz".to_owned())].into_iter()), ""),
        with("a version to come", "version", json!("9.0"), "can't be opened as a tokenizer"),
        with(
            "a million behind",
            "post_processor",
            json!({"type": "TemplateProcessing", "single": vec![json!({"SpecialToken": {"id": "x", "type_id": 0}}); 9999],
                "pair": [], "special_tokens": {}}),
            "at most 4096",
        ),
    ]
}

/// What may also be of no matter to one of them.
fn odd() -> Vec<Kind> {
    let empty = |pattern: Value| replace(&pattern, "b");
    vec![
        normalizers("an empty pattern", vec![empty(json!({"Regex": ""}))], ""),
        normalizers("an empty text", vec![empty(json!({"String": ""}))], ""),
        normalizers("any number of none", vec![empty(json!({"Regex": "x*"}))], ""),
        normalizers("back and forth", vec![empty(json!({"Regex": "(?=(a+)+$)(x+x+)+y"}))], ""),
        normalizers("all is lost", vec![replace(&json!({"Regex": "."}), "")], ""),
        split("(?=(a+)+$)(\\w+\\s?)*y", "Isolated", ""),
        split("(([a-z]+)*)+(?!x)", "Isolated", ""),
        split("", "Isolated", ""),
        split(".", "Removed", ""),
        split("((a{1,100}){1,100}){1,100}", "Isolated", ""),
        split("(?<=a)(?<=b)(?<!c)", "Isolated", ""),
        split("(a+)\\1+(?=b)", "Isolated", ""),
        with("no unknown word", "model", json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}), ""),
        with("an unknown piece", "model", json!({"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7}), ""),
        with(
            "great scores",
            "model",
            json!({"type": "Unigram", "vocab": [["a", -1e308], ["b", 1e308]], "unk_id": 0}),
            "",
        ),
        with("no token", "model", json!({"type": "BPE", "vocab": {}, "merges": []}), ""),
        with(
            "no unknown token",
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "nope"}),
            "",
        ),
        with("one id", "model", json!({"type": "BPE", "vocab": {"a": 7, "b": 7, "c": 7}, "merges": []}), ""),
        with("too much dropped", "model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 2.0}), ""),
        with("one in the other", "added_tokens", added((1..999).map(|id| (id, "a".repeat(id as usize)))), ""),
        with("an empty token", "added_tokens", added([(0, String::new())].into_iter()), ""),
        with(
            "no room",
            "truncation",
            json!({"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}),
            "",
        ),
        with(
            "much padding",
            "padding",
            json!({"strategy": {"Fixed": 1_000_000_000_000_u64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "x"}),
            "",
        ),
        with(
            "unknown behind",
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "nope", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            "",
        ),
        with("a long way back", "decoder", replace(&json!({"Regex": ""}), &"b".repeat(1000)), ""),
    ]
}

#[test]
fn tokenizers_that_take_without_bound_are_refused_by_training() {
    all_end(bench, TRAIN, &refused());
    all_end(bench, TRAIN, &odd());
}

#[test]
fn a_conversion_refuses_tokenizers_without_bound() {
    all_end(bench, GGUF, &refused());
    all_end(bench, GGUF, &odd());
}
