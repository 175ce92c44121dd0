//! The GGUF header. Every tensor lies within the file, and what is read lays out to the same bytes again.
//! An input is a whole file; and also a header with some zeros after it, since a fuzzer that changes a shape rarely
//! guesses the length of its data again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qft::gguf::{Header, TensorForm, TensorInfo, lay_out};

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&[data, &[0; 1 << 14]].concat());
});

fn check(file: &[u8]) {
    let Ok(header) = Header::parse(file) else { return };
    let forms: Vec<TensorForm<'_>> = header.tensors.iter().map(TensorInfo::form).collect();
    let layout = lay_out(&header.metadata, &forms).expect("what is read can be written");
    let mut expected = file[..header.len].to_vec();
    expected[4] = 3;
    assert!(layout.header.starts_with(&expected));
    for ((tensor, offset), len) in header.tensors.iter().zip(layout.offsets).zip(layout.lens) {
        assert_eq!((tensor.offset as u64, tensor.len as u64), (offset, len));
        assert!(file.get(tensor.offset..tensor.offset + tensor.len).is_some());
    }
}
