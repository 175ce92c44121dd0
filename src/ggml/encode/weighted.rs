//! `Q4_0`, `Q4_1`, `Q5_0` and `Q5_1` with importance: scale and minimum are searched, a block in each SIMD element.
//! Formulas: `quantize_row_*_impl` in ggml-quants.c.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::k::{WEIGHTED, fit_affine, fit_symmetric};
use super::simd::{Simd, Tile, code};
use super::vector::Work;
use crate::ggml::float16::f32_to_f16;

/// Rows whose squares are summed together.
const TOGETHER: usize = 4;

/// Rows of blocks of `BYTES` bytes, of codes up to `TOP`, `AFFINE` if they have a minimum.
pub(super) struct Rows<'a, const AFFINE: bool, const TOP: u8, const BYTES: usize> {
    pub(super) values: &'a [f32],
    pub(super) columns: usize,
    pub(super) importance: &'a [f32],
    pub(super) out: &'a mut [[u8; BYTES]],
}

impl<const AFFINE: bool, const TOP: u8, const BYTES: usize> Work for Rows<'_, AFFINE, TOP, BYTES> {
    #[inline(always)]
    fn run<const N: usize>(self) {
        let rows = self.values.chunks(TOGETHER * self.columns).zip(self.out.chunks_mut(TOGETHER * self.columns / 32));
        for (rows, out) in rows {
            let means = mean_squares(rows, self.columns);
            for ((row, out), mean) in rows.chunks(self.columns).zip(out.chunks_mut(self.columns / 32)).zip(means) {
                let groups = row.chunks(32 * N).zip(self.importance.chunks(32 * N)).zip(out.chunks_mut(N));
                for ((values, importance), out) in groups {
                    group::<N, AFFINE, TOP, BYTES>(values, importance, mean, out);
                }
            }
        }
    }
}

/// The mean square of each of up to [`TOGETHER`] rows, summed in order: a sum waits for its last addition, but not for
/// other rows' sums.
#[inline(always)]
fn mean_squares(rows: &[f32], columns: usize) -> [f32; TOGETHER] {
    let mut sums = [0.0; TOGETHER];
    let mut lines = [&rows[..columns]; TOGETHER];
    for (line, row) in lines.iter_mut().zip(rows.chunks_exact(columns)) {
        *line = row;
    }
    for j in 0..columns {
        for (sum, line) in sums.iter_mut().zip(lines) {
            *sum += line[j] * line[j];
        }
    }
    sums.map(|sum| sum / columns as f32)
}

/// Encodes up to `N` blocks of a row whose mean square is `mean`.
#[inline(always)]
fn group<const N: usize, const AFFINE: bool, const TOP: u8, const BYTES: usize>(
    values: &[f32],
    importance: &[f32],
    mean: f32,
    out: &mut [[u8; BYTES]],
) {
    let x: Tile<N, 32> = Tile::load(values);
    let mut w: Tile<N, 32> = Tile::load(importance);
    let mut sum = Simd::ZERO;
    for i in 0..32 {
        w[i] = w[i] * (Simd::splat(mean) + x[i] * x[i]).sqrt();
        sum = sum + w[i];
    }
    let blocks = values.as_chunks::<32>().0.iter().zip(out);
    if AFFINE {
        let found = fit_affine(&x, &w, sum, f32::from(TOP), WEIGHTED);
        for (l, (values, out)) in blocks.enumerate() {
            let codes = codes(values, found.inverse.0[l], found.floor.0[l], 0.0, f32::from(TOP));
            store(&[found.scale.0[l], -found.min.0[l]], &codes, TOP > 15, out);
        }
    } else {
        let half = f32::from(TOP / 2 + 1);
        let (scale, inverse) = fit_symmetric(&x, Some(&w), half);
        for (l, (values, out)) in blocks.enumerate() {
            let inverse = inverse.0[l];
            let codes = if inverse.is_nan() { [0; 32] } else { codes(values, inverse, 0.0, -half, half - 1.0) };
            store(&[scale.0[l]], &codes, TOP > 15, out);
        }
    }
}

#[inline(always)]
fn codes(values: &[f32; 32], inverse: f32, floor: f32, low: f32, high: f32) -> [u8; 32] {
    let mut codes = [0; 32];
    for (value, out) in values.iter().zip(&mut codes) {
        *out = code(inverse * (value - floor), low, high);
    }
    codes
}

/// Writes a block: its scales as f16, the fifth bits of codes if there are such, and nibbles, the first half of the
/// codes in the low ones.
#[inline(always)]
pub(super) fn store(scales: &[f32], codes: &[u8; 32], fifth: bool, out: &mut [u8]) {
    let (halves, mut rest) = out.split_at_mut(2 * scales.len());
    for (scale, half) in scales.iter().zip(halves.as_chunks_mut().0) {
        *half = f32_to_f16(*scale).to_le_bytes();
    }
    if fifth {
        let (bits, nibbles) = rest.split_at_mut(4);
        let fifth = codes.as_chunks().0.iter().rev().fold(0, |bits: u32, eight| {
            // The product moves bit 0 of byte `i` to bit `56 + i`.
            let ones = u64::from_le_bytes(*eight) >> 4 & 0x0101_0101_0101_0101;
            bits << 8 | (ones.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
        });
        bits.copy_from_slice(&fifth.to_le_bytes());
        rest = nibbles;
    }
    for (j, byte) in rest.iter_mut().enumerate() {
        *byte = codes[j] & 15 | codes[j + 16] << 4;
    }
}
