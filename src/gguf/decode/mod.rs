//! Decoding blocks to floats, value for value as llama.cpp's reference code does: every type of ggml-quants.c. Knows no
//! GGUF file. What the bytes of a block mean is one function a type, in the file of its family.

mod classic;
mod grid;
mod iquant;
mod kquant;
mod plain;
mod ternary;

use super::TensorType;
use super::float16::f16_to_f32;

/// Decodes whole blocks.
type Decoder = fn(&[u8], &mut [f32]);

/// The type, and what decodes it.
#[rustfmt::skip]
const DECODERS: [(TensorType, Decoder); 35] = {
    use TensorType as T;
    [
        (T::F32, plain::f32),
        (T::F16, plain::f16),
        (T::BF16, plain::bf16),
        (T::F64, plain::f64),
        (T::I8, plain::i8),
        (T::I16, plain::i16),
        (T::I32, plain::i32),
        (T::I64, plain::i64),
        (T::Q4_0, |bytes, out| each(bytes, out, classic::q4_0)),
        (T::Q4_1, |bytes, out| each(bytes, out, classic::q4_1)),
        (T::Q5_0, |bytes, out| each(bytes, out, classic::q5_0)),
        (T::Q5_1, |bytes, out| each(bytes, out, classic::q5_1)),
        (T::Q8_0, |bytes, out| each(bytes, out, classic::q8_0)),
        (T::Q8_1, |bytes, out| each(bytes, out, classic::q8_1)),
        (T::Q1_0, |bytes, out| each(bytes, out, classic::q1_0)),
        (T::Q2_0, |bytes, out| each(bytes, out, classic::q2_0)),
        (T::MXFP4, |bytes, out| each(bytes, out, classic::mxfp4)),
        (T::NVFP4, |bytes, out| each(bytes, out, classic::nvfp4)),
        (T::Q2_K, |bytes, out| each(bytes, out, kquant::q2_k)),
        (T::Q3_K, |bytes, out| each(bytes, out, kquant::q3_k)),
        (T::Q4_K, |bytes, out| each(bytes, out, kquant::q4_k)),
        (T::Q5_K, |bytes, out| each(bytes, out, kquant::q5_k)),
        (T::Q6_K, |bytes, out| each(bytes, out, kquant::q6_k)),
        (T::Q8_K, |bytes, out| each(bytes, out, kquant::q8_k)),
        (T::IQ4_NL, |bytes, out| each(bytes, out, classic::iq4_nl)),
        (T::IQ4_XS, |bytes, out| each(bytes, out, kquant::iq4_xs)),
        (T::TQ1_0, |bytes, out| each(bytes, out, ternary::tq1_0)),
        (T::TQ2_0, |bytes, out| each(bytes, out, ternary::tq2_0)),
        (T::IQ2_XXS, |bytes, out| each(bytes, out, iquant::iq2_xxs)),
        (T::IQ2_XS, |bytes, out| each(bytes, out, iquant::iq2_xs)),
        (T::IQ2_S, |bytes, out| each(bytes, out, iquant::iq2_s)),
        (T::IQ3_XXS, |bytes, out| each(bytes, out, iquant::iq3_xxs)),
        (T::IQ3_S, |bytes, out| each(bytes, out, iquant::iq3_s)),
        (T::IQ1_S, |bytes, out| each(bytes, out, iquant::iq1_s)),
        (T::IQ1_M, |bytes, out| each(bytes, out, iquant::iq1_m)),
    ]
};

fn decoder(kind: TensorType) -> Option<Decoder> {
    DECODERS.iter().find(|row| row.0 == kind).map(|row| row.1)
}

/// Whether blocks of `kind` can be decoded.
pub fn can_decode(kind: TensorType) -> bool {
    decoder(kind).is_some()
}

/// Decodes whole blocks of `kind`, one that [`can_decode`] says yes to. `out` takes `block_len` values a block.
///
/// Integers and f64 are rounded to the nearest f32.
pub fn decode(kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(kind.row_bytes(out.len()), Some(bytes.len()));
    if let Some(decoder) = decoder(kind) {
        decoder(bytes, out);
    }
}

/// Decodes blocks of `BYTES` bytes and `LEN` values one by one.
fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        one(block, out);
    }
}

/// The f16 at byte `at` of a block.
fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(word(block, at))
}

/// The little-endian u16 at byte `at` of a block.
fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The little-endian u32 at byte `at` of a block.
fn double(block: &[u8], at: usize) -> u32 {
    u32::from(word(block, at)) | u32::from(word(block, at + 2)) << 16
}
