//! The adapter's config, and the questions that a merge asks it about modules.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qft::adapter::AdapterConfig;

const MODULES: [&str; 4] = ["", "lm_head", "model.layers.11.self_attn.q_proj", "层.\u{202e}.proj"];

fuzz_target!(|text: &str| {
    let Ok(config) = AdapterConfig::parse(Path::new("adapter_config.json"), text) else { return };
    for module in MODULES {
        let (rank, scale) = config.scale(module, 0.5);
        assert!(rank > 0 && !scale.is_nan(), "{module}: rank {rank}, scale {scale}");
        let _ = (config.token_rows(module), config.saves(module));
    }
    let _ = config.experts_in_out();
});
