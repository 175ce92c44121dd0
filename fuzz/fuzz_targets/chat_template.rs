//! A chat template: a program of a stranger. Whatever it is, reading it and writing conversations by it ends.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use qft::text::turn_end;

/// A model's directory, made once.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    // A panic of the template's library becomes an error, which is no find.
    qft::caught::keep_quiet();
    let dir = std::env::temp_dir().join(format!("qft-fuzz-template-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory can be made");
    fs::write(dir.join("tokenizer_config.json"), r#"{"eos_token": "</s>", "bos_token": "<s>"}"#).expect("it can be written");
    fs::write(dir.join("tokenizer.json"), r#"{"added_tokens": [{"id": 1, "content": "</s>"}]}"#).expect("it can be written");
    dir
});

fuzz_target!(|template: &str| {
    fs::write(DIR.join("chat_template.jinja"), template).expect("the template can be written");
    if let Ok(Some(end)) = turn_end(&DIR) {
        assert!(end.text.contains(&end.token), "{end:?}");
    }
});
