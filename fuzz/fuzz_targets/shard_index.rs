//! The shard index. Every file that it names is a plain name of a safetensors file, whatever system reads it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qft::checkpoint::ShardIndex;

fuzz_target!(|text: &str| {
    let Ok(index) = ShardIndex::parse(text) else { return };
    for file in index.files() {
        assert!(!file.contains(['/', '\\', ':', '\0']), "{file:?}");
        assert!(file.ends_with(".safetensors"), "{file:?}");
    }
});
