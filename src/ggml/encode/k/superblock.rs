//! The bytes of K super-blocks: 256 codes and the codes of their sub-blocks' scales, put where ggml-common.h has them.
//! Chooses no code.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use crate::ggml::float16::{f16_to_f32, f32_to_f16};

/// Values of a super-block.
pub(super) const LEN: usize = 256;

/// Codes of a super-block's values, in order.
pub(super) type Codes = [u8; LEN];

/// Rounds to half precision: the bytes to store, and the value that a decoder will see.
#[inline(always)]
pub(super) fn store_f16(value: f32, out: &mut [u8]) -> f32 {
    let half = f32_to_f16(value);
    out.copy_from_slice(&half.to_le_bytes());
    f16_to_f32(half)
}

/// Codes `at`, 32 of them: the unit in which all K types interleave.
#[inline(always)]
fn run(codes: &Codes, at: usize) -> &[u8] {
    &codes[at..at + 32]
}

/// The low two bits of codes: four runs of 32 share 32 bytes, the first run in the lowest bits. 64 bytes.
#[inline(always)]
pub(super) fn pack_crumbs(codes: &Codes, out: &mut [u8]) {
    for (half, out) in out.chunks_exact_mut(32).enumerate() {
        let runs = [
            run(codes, 128 * half),
            run(codes, 128 * half + 32),
            run(codes, 128 * half + 64),
            run(codes, 128 * half + 96),
        ];
        for (l, byte) in out.iter_mut().enumerate() {
            *byte = runs[0][l] & 3 | (runs[1][l] & 3) << 2 | (runs[2][l] & 3) << 4 | (runs[3][l] & 3) << 6;
        }
    }
}

/// The low four bits of codes: two runs of 32 share 32 bytes. 128 bytes.
#[inline(always)]
pub(super) fn pack_nibbles(codes: &Codes, out: &mut [u8]) {
    for (pair, out) in out.chunks_exact_mut(32).enumerate() {
        let (low, high) = (run(codes, 64 * pair), run(codes, 64 * pair + 32));
        for (l, byte) in out.iter_mut().enumerate() {
            *byte = low[l] & 15 | high[l] << 4;
        }
    }
}

/// Bit `bit` of codes: run `r` of 32 goes to bit `r` of 32 bytes.
#[inline(always)]
pub(super) fn pack_bit(codes: &Codes, bit: u32, out: &mut [u8]) {
    out.fill(0);
    for r in 0..8 {
        for (byte, code) in out.iter_mut().zip(run(codes, 32 * r)) {
            *byte |= (code >> bit & 1) << r;
        }
    }
}

/// Six-bit codes as `Q6_K` has them: 128 bytes of low nibbles and 64 of the upper two bits.
#[inline(always)]
pub(super) fn pack_six_bits(codes: &Codes, low: &mut [u8], high: &mut [u8]) {
    for (half, (low, high)) in low.chunks_exact_mut(64).zip(high.chunks_exact_mut(32)).enumerate() {
        let runs = [
            run(codes, 128 * half),
            run(codes, 128 * half + 32),
            run(codes, 128 * half + 64),
            run(codes, 128 * half + 96),
        ];
        for l in 0..32 {
            let quad: [u8; 4] = [runs[0][l], runs[1][l], runs[2][l], runs[3][l]];
            low[l] = quad[0] & 15 | quad[2] << 4;
            low[l + 32] = quad[1] & 15 | quad[3] << 4;
            high[l] = quad[0] >> 4 | quad[1] >> 4 << 2 | quad[2] >> 4 << 4 | quad[3] >> 4 << 6;
        }
    }
}

/// The 12 bytes of eight six-bit scales and minimums (`Q4_K`, `Q5_K`). Codes above 63, which only absurd weights cause,
/// spill into their neighbours as they do in ggml-quants.c.
#[inline(always)]
pub(super) fn pack_pairs(scales: &[u8], mins: &[u8], out: &mut [u8]) {
    out[..4].copy_from_slice(&scales[..4]);
    out[4..8].copy_from_slice(&mins[..4]);
    for j in 4..8 {
        out[j + 4] = scales[j] & 15 | mins[j] << 4;
        out[j - 4] |= scales[j] >> 4 << 6;
        out[j] |= mins[j] >> 4 << 6;
    }
}

/// What a decoder reads of the bytes of [`pack_pairs`]: scale and minimum of sub-block `j`.
pub(super) fn unpack_pair(bytes: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4)
    }
}

/// The 12 bytes of sixteen six-bit scales (`Q3_K`).
#[inline(always)]
pub(super) fn pack_sixteen(scales: &[u8; 16], out: &mut [u8]) {
    for j in 0..8 {
        out[j] = scales[j] & 15 | scales[j + 8] << 4;
    }
    for j in 0..4 {
        out[j + 8] = (0..4).fold(0, |byte, r| byte | (scales[j + 4 * r] >> 4 & 3) << (2 * r));
    }
}
