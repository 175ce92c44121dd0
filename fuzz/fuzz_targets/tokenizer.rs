//! tokenizer.json: opened, or refused with a reason; and what it makes of a conversation has a weight for each token.

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use qft::train::data::{EncodeOptions, Encoder, read_text};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
const ROW: &str = r#"{"query": "The quick brown fox, 我想 é", "response": "aaaa  xx\n\tb"}"#;

/// A model's directory, made once.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    // A panic of the tokenizers library becomes an error, which is no find.
    qft::caught::keep_quiet();
    let dir = std::env::temp_dir().join(format!("qft-fuzz-tokenizer-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory can be made");
    fs::write(dir.join("chat_template.jinja"), TEMPLATE).expect("it can be written");
    dir
});

fuzz_target!(|text: &[u8]| {
    fs::write(DIR.join("tokenizer.json"), text).expect("the tokenizer can be written");
    let Ok(encoder) = Encoder::new(&DIR, EncodeOptions::default()) else { return };
    let rows = read_text(Path::new("rows.jsonl"), ROW.as_bytes(), true).expect("the row is good");
    let Ok(sample) = encoder.encode(&rows.conversations[0]) else { return };
    assert_eq!(sample.ids.len(), sample.weights.len());
    assert!(sample.ids.iter().all(|id| *id < encoder.ids_end()));
});
