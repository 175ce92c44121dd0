//! What a rank reads from its connections: greetings, answers, addresses, frames with last words. How the bytes come
//! changes nothing, and what is told of them is short and fit for a terminal once it is escaped.
//! The first byte of an input says how many bytes come at once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qft::error::escaped;
use qft::ranks::understood;

fuzz_target!(|data: &[u8]| {
    let Some((piece, bytes)) = data.split_first() else { return };
    let all = understood(bytes, bytes.len());
    assert_eq!(understood(bytes, usize::from(*piece)), all);
    assert!(all.len() <= 4);
    for one in &all {
        assert!(one.len() < 16 << 10, "{} bytes", one.len());
        assert!(!escaped(one).chars().any(char::is_control));
    }
    // What follows a greeting, an answer or an address is not theirs.
    let longer = [bytes, &[0]].concat();
    let theirs =
        |all: Vec<String>| all.into_iter().filter(|one| one.starts_with("Hello") || one.starts_with("Welcome"));
    if bytes.len() >= 64 {
        assert!(theirs(understood(&longer, 7)).eq(theirs(all)));
    }
});
