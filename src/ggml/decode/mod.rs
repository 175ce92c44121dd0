//! Decoding blocks to floats, value for value as llama.cpp's reference code does: every type of ggml-quants.c. Knows no
//! GGUF file. What the bytes of a block mean is one function a type, in the file of its family.

mod classic;
mod grid;
mod iquant;
mod kquant;
mod plain;
mod ternary;

pub(crate) use classic::IQ4_VALUES;

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

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// As `random_bytes` in `fixtures/make_decoded.py`.
    fn random_bytes(count: usize) -> Vec<u8> {
        let mut state = 0u64;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        };
        let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn random_blocks_decode_as_llama_cpp_decodes_them() {
        const BLOCKS: usize = 1024;
        let digests = include_str!("../../../fixtures/decoded/digests.txt");
        for line in digests.lines() {
            let (name, expected) = line.split_once(' ').unwrap();
            let kind: TensorType = name.parse().unwrap();
            let mut values = vec![0.0; BLOCKS * kind.block_len()];
            decode(kind, &random_bytes(BLOCKS * kind.block_bytes()), &mut values);
            let digest = values.iter().fold(Sha256::new(), |digest, v| {
                digest.chain_update((if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() }).to_le_bytes())
            });
            let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, expected, "{name}");
        }
        assert_eq!(digests.lines().count(), 26);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are exact")]
    fn plain_numbers_are_rounded_to_f32() {
        let decoded = |kind, bytes: &[u8]| {
            let mut out = [0.0];
            decode(kind, bytes, &mut out);
            out[0]
        };
        assert_eq!(decoded(TensorType::I8, &[0xfe]), -2.0);
        assert_eq!(decoded(TensorType::I16, &(-300i16).to_le_bytes()), -300.0);
        assert_eq!(decoded(TensorType::I32, &16_777_217i32.to_le_bytes()), 16_777_216.0);
        assert_eq!(decoded(TensorType::I64, &i64::MIN.to_le_bytes()), -9_223_372_036_854_775_808.0);
        assert_eq!(decoded(TensorType::F64, &0.1f64.to_le_bytes()), 0.1);
        assert_eq!(decoded(TensorType::BF16, &[0x80, 0xbf]), -1.0);
    }

    #[test]
    fn every_type_has_a_decoder() {
        assert!(TensorType::all().all(can_decode));
    }
}
