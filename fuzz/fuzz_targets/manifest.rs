//! Lists of a release: its manifest and SHA256SUMS, in one input with a zero byte between them. Whatever they say, files
//! that are not what they name are told, and none outside of the release is opened.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use qft::export::Run;

/// A release's directory, made once.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("qft-fuzz-manifest-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory can be made");
    fs::write(dir.join("config.json"), r#"{"model_type": "llama"}"#).expect("it can be written");
    dir
});

fuzz_target!(|lists: &[u8]| {
    let (manifest, sums) = lists.split_at(lists.iter().position(|byte| *byte == 0).unwrap_or(lists.len()));
    fs::write(DIR.join("qft-manifest.json"), manifest).expect("the manifest can be written");
    fs::write(DIR.join("SHA256SUMS"), sums.get(1..).unwrap_or_default()).expect("the sums can be written");
    if let Ok(found) = qft::verify::verify(&DIR, &Run { jobs: 1, ..Run::default() }) {
        // There are no weights, which no list can hide.
        assert!(!found.problems.is_empty());
    }
});
