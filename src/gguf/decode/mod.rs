//! Decoding blocks to floats, value for value as llama.cpp's reference code does. Knows no GGUF file.

use super::TensorType;

/// Whether blocks of `kind` can be decoded.
pub fn can_decode(kind: TensorType) -> bool {
    let _ = kind;
    false
}

/// Decodes whole blocks of `kind`, one that [`can_decode`] says yes to. `out` takes `block_len` values a block.
pub fn decode(kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    let _ = (kind, bytes, out);
}
