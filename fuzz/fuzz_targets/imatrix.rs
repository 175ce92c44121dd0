//! The old format of importance matrices. What is accepted has finite weights, no more than the file has room for.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qft::gguf::imatrix::Imatrix;

fuzz_target!(|data: &[u8]| {
    let Ok(imatrix) = Imatrix::parse_legacy(Path::new("fuzzed"), data) else { return };
    let mut room = data.len() / 4;
    for name in imatrix.names() {
        let weights = (0..=room).find_map(|columns| imatrix.weights_for(name, columns, 1).ok().flatten());
        let weights = weights.expect("the weights fit in the file");
        assert!(weights.iter().all(|weight| weight.is_finite()));
        room -= weights.len();
    }
    assert_eq!(imatrix.info("x").entries as usize, imatrix.names().count());
});
