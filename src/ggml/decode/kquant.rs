//! Super-blocks of 256 values in sub-blocks whose scales are codes themselves: `Q2_K` to `Q8_K` and `IQ4_XS`. Formulas:
//! `dequantize_row_*` in ggml-quants.c.

use super::classic::iq4;
use super::{double, half, word};

pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, least) = (half(block, 80), half(block, 82));
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, least) = (scale * f32::from(block[s] & 15), least * f32::from(block[s] >> 4));
        let (codes, shift) = pairs_of(s);
        for (byte, out) in block[16 + codes..][..16].iter().zip(out) {
            *out = scale * f32::from(byte >> shift & 3) - least;
        }
    }
}

/// Where the pairs of bits of sub-block `s` are: the first byte, and the shift. 128 values share 32 bytes, each with
/// one pair of four runs of 32 values.
fn pairs_of(s: usize) -> (usize, usize) {
    (s / 8 * 32 + s % 2 * 16, s % 8 / 2 * 2)
}

pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, rest) = block.split_at(32);
    let (low, rest) = rest.split_at(64);
    let scale = half(rest, 12);
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let nibble = rest[s % 8] >> (s / 8 * 4) & 15;
        let factor = nibble | (rest[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
        let scale = scale * f32::from(factor.cast_signed() - 32);
        let (codes, shift) = pairs_of(s);
        let bits = high[s % 2 * 16..][..16].iter();
        for ((byte, bits), out) in low[codes..][..16].iter().zip(bits).zip(out) {
            let code = byte >> shift & 3 | (bits >> (s / 2) & 1) << 2;
            *out = scale * f32::from(code.cast_signed() - 4);
        }
    }
}

/// The 6-bit scale and minimum of sub-block `s` of eight, from 12 bytes.
fn scale_and_least(packed: &[u8], s: usize) -> (f32, f32) {
    let (scale, least) = if s < 4 {
        (packed[s] & 63, packed[s + 4] & 63)
    } else {
        (packed[s + 4] & 15 | packed[s - 4] >> 6 << 4, packed[s + 4] >> 4 | packed[s] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (factor, least_factor) = scale_and_least(&block[4..16], s);
        let (scale, least) = (scale * factor, least * least_factor);
        let shift = s % 2 * 4;
        for (byte, out) in block[16 + s / 2 * 32..][..32].iter().zip(out) {
            *out = scale * f32::from(byte >> shift & 15) - least;
        }
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (factor, least_factor) = scale_and_least(&block[4..16], s);
        let (scale, least) = (scale * factor, least * least_factor);
        let shift = s % 2 * 4;
        for ((byte, bits), out) in block[48 + s / 2 * 32..][..32].iter().zip(&block[16..48]).zip(out) {
            *out = scale * f32::from(byte >> shift & 15 | (bits >> s & 1) << 4) - least;
        }
    }
}

pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let scale = half(rest, 16);
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(rest[s].cast_signed());
        // 128 values share 64 bytes of nibbles and 32 of pairs; the nibbles go round twice, the pairs four times.
        let (nibbles, pairs) = (s / 8 * 64 + s % 4 * 16, s / 8 * 32 + s % 2 * 16);
        let (nibble_shift, pair_shift) = (s % 8 / 4 * 4, s % 8 / 2 * 2);
        for ((low, high), out) in low[nibbles..][..16].iter().zip(&high[pairs..][..16]).zip(out) {
            let code = low >> nibble_shift & 15 | (high >> pair_shift & 3) << 4;
            *out = scale * f32::from(code.cast_signed() - 32);
        }
    }
}

/// The scale is an f32. The sums after the codes are for dot products.
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let scale = f32::from_bits(double(block, 0));
    for (code, out) in block[4..].iter().zip(out) {
        *out = scale * f32::from(code.cast_signed());
    }
}

pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (scale, high) = (half(block, 0), word(block, 2));
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let factor = block[4 + s / 2] >> (s % 2 * 4) & 15 | ((high >> (2 * s) & 3) << 4) as u8;
        iq4(scale * f32::from(factor.cast_signed() - 32), &block[8 + 16 * s..][..16], out);
    }
}
