//! Blocks of one scale: `Q4_0` to `Q8_1` and `IQ4_NL`, of 32 values whose first half has the low nibbles and whose
//! second half the high ones; the 4-bit floats MXFP4 and NVFP4; and the 1-bit and 2-bit `Q1_0` and `Q2_0`. Formulas:
//! `dequantize_row_*` in ggml-quants.c.

use super::half;

/// The 16 values of IQ4 types, `kvalues_iq4nl` in ggml-common.h.
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The doubled values of a float of 1 sign bit, 2 exponent bits and 1 mantissa bit.
const FP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Writes `value` of every nibble: the low ones to the first half of `out`, the high ones to the second.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(packed.len());
    for ((byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

/// Writes `value` of 32 codes of five bits: nibbles, and a word of fifth bits.
fn fives(packed: &[u8], fifth: [u8; 4], out: &mut [f32; 32], value: impl Fn(i32) -> f32) {
    let fifth = i32::from_le_bytes(fifth);
    for (j, byte) in packed.iter().enumerate() {
        let (byte, fifth) = (i32::from(*byte), fifth >> j);
        out[j] = value(byte & 15 | fifth << 4 & 16);
        out[j + 16] = value(byte >> 4 | fifth >> 12 & 16);
    }
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    nibbles(&block[2..], out, |code| (i32::from(code) - 8) as f32 * scale);
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |code| f32::from(code) * scale + least);
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    fives(&block[6..], [block[2], block[3], block[4], block[5]], out, |code| (code - 16) as f32 * scale);
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    fives(&block[8..], [block[4], block[5], block[6], block[7]], out, |code| code as f32 * scale + least);
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    signed_bytes(half(block, 0), &block[2..], out);
}

/// As `Q8_0`, past the sum that the block also has.
pub(super) fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    signed_bytes(half(block, 0), &block[4..], out);
}

fn signed_bytes(scale: f32, codes: &[u8], out: &mut [f32; 32]) {
    for (code, out) in codes.iter().zip(out) {
        *out = f32::from(code.cast_signed()) * scale;
    }
}

pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    iq4(half(block, 0), &block[2..], out);
}

/// Values of IQ4 types: nibbles are indices.
pub(super) fn iq4(scale: f32, packed: &[u8], out: &mut [f32]) {
    nibbles(packed, out, |code| scale * f32::from(IQ4_VALUES[usize::from(code)]));
}

pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    // Half of the power of two that the byte is an exponent of, since the values are doubled. The two least are
    // subnormal.
    let exponent = u32::from(block[0]);
    let scale = f32::from_bits(if exponent < 2 { 0x20_0000 << exponent } else { (exponent - 1) << 23 });
    nibbles(&block[1..], out, |code| f32::from(FP4_VALUES[usize::from(code)]) * scale);
}

pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let (scales, packed) = block.split_at(4);
    for ((scale, packed), out) in scales.iter().zip(packed.chunks(8)).zip(out.chunks_mut(16)) {
        let scale = half_of_ue4m3(*scale);
        nibbles(packed, out, |code| f32::from(FP4_VALUES[usize::from(code)]) * scale);
    }
}

/// Half of an unsigned float of 4 exponent bits and 3 mantissa bits, whose NaN is read as 0. The top bit is ignored,
/// but not in a NaN.
fn half_of_ue4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), f32::from(bits & 7));
    let power = |exponent: u32| f32::from_bits(exponent << 23);
    match (bits, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa * power(127 - 10),
        _ => (1.0 + mantissa / 8.0) * power(127 - 8 + exponent),
    }
}

pub(super) fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let scale = half(block, 0);
    for (byte, out) in block[2..].iter().zip(out.as_chunks_mut::<8>().0) {
        for (bit, out) in out.iter_mut().enumerate() {
            *out = if byte >> bit & 1 == 1 { scale } else { -scale };
        }
    }
}

pub(super) fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let scale = half(block, 0);
    for (byte, out) in block[2..].iter().zip(out.as_chunks_mut::<4>().0) {
        for (pair, out) in out.iter_mut().enumerate() {
            *out = (i32::from(byte >> (2 * pair) & 3) - 1) as f32 * scale;
        }
    }
}
