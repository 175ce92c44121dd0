//! The safetensors header. Whatever qft accepts, the reference reader accepts too, and both see the same tensors.
//! An input is a whole file; and also the JSON of a header with the file's data after it, since a fuzzer that changes
//! a header's JSON rarely guesses its length again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qft::checkpoint::Header;
use safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    check(data);
    let json = data.iter().rposition(|byte| *byte == b'}').map_or(0, |last| last + 1);
    check(&[&(json as u64).to_le_bytes(), data].concat());
});

fn check(file: &[u8]) {
    let Ok(header) = Header::parse(file) else { return };
    let reference = SafeTensors::deserialize(file).expect("the reference reader accepts what qft accepts");
    assert_eq!(header.tensors.len(), reference.len());
    for tensor in &header.tensors {
        let view = reference.tensor(&tensor.name).expect("the reference reader sees the same names");
        assert_eq!((view.dtype(), view.shape()), (tensor.dtype, tensor.shape.as_slice()));
        assert_eq!(view.data(), &file[tensor.start..tensor.end]);
    }
}
