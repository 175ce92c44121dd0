//! Sizes. One that is accepted is above zero, can be shown, and is what its number of bytes says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qft::size::ByteSize;

fuzz_target!(|text: &str| {
    let Ok(size) = text.parse::<ByteSize>() else { return };
    assert!(size.0 > 0);
    assert_eq!(format!("{}B", size.0).parse(), Ok(size));
    assert!(!size.to_string().is_empty());
});
