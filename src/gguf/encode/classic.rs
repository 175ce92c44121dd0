//! `Q4_0`, `Q4_1`, `Q5_0` and `Q5_1` without importance: 32 codes of four or five bits, with a scale and perhaps a
//! minimum. Formulas: `quantize_row_*_ref` in ggml-quants.c. How the bytes lie is here for the weighted forms too.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::vector::{Work, run};
use crate::gguf::float16::f32_to_f16;
use crate::merge::Vector;

pub(super) fn q4_0(vector: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    run(vector, Blocks::<15, false, 18>::new(values, out));
}

pub(super) fn q4_1(vector: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    run(vector, Blocks::<15, true, 20>::new(values, out));
}

pub(super) fn q5_0(vector: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    run(vector, Blocks::<31, false, 22>::new(values, out));
}

pub(super) fn q5_1(vector: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    run(vector, Blocks::<31, true, 24>::new(values, out));
}

/// Blocks of `BYTES` bytes, of codes up to `TOP`, `AFFINE` if they have a minimum.
struct Blocks<'a, const TOP: u8, const AFFINE: bool, const BYTES: usize> {
    values: &'a [[f32; 32]],
    out: &'a mut [[u8; BYTES]],
}

impl<'a, const TOP: u8, const AFFINE: bool, const BYTES: usize> Blocks<'a, TOP, AFFINE, BYTES> {
    fn new(values: &'a [f32], out: &'a mut [u8]) -> Self {
        Self { values: values.as_chunks().0, out: out.as_chunks_mut().0 }
    }
}

impl<const TOP: u8, const AFFINE: bool, const BYTES: usize> Work for Blocks<'_, TOP, AFFINE, BYTES> {
    #[inline(always)]
    fn run(self) {
        for (values, out) in self.values.iter().zip(self.out) {
            if AFFINE {
                let (scale, least, codes) = affine::<TOP>(values);
                store(&[scale, least], &codes, TOP > 15, out);
            } else {
                let (scale, codes) = symmetric::<TOP>(values);
                store(&[scale], &codes, TOP > 15, out);
            }
        }
    }
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
        for (eight, byte) in codes.as_chunks().0.iter().zip(bits) {
            // The product moves bit 0 of byte `i` to bit `56 + i`.
            let ones = u64::from_le_bytes(*eight) >> 4 & 0x0101_0101_0101_0101;
            *byte = (ones.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
        rest = nibbles;
    }
    for (j, byte) in rest.iter_mut().enumerate() {
        *byte = codes[j] & 15 | codes[j + 16] << 4;
    }
}

/// Scale and codes: the value of the largest magnitude gets the code 0.
#[inline(always)]
fn symmetric<const TOP: u8>(values: &[f32; 32]) -> (f32, [u8; 32]) {
    let half = f32::from(TOP / 2 + 1);
    let scale = peak(values) / -half;
    (scale, code::<TOP>(values, 0.0, scale, half + 0.5))
}

/// The value of the largest magnitude, the first if there are several; of nothing but zeros, a positive zero.
#[inline(always)]
pub(super) fn peak(values: &[f32; 32]) -> f32 {
    let (low, high) = range(values);
    if -low > high {
        low
    } else if high > -low {
        high
    } else {
        values.iter().copied().find(|v| *v != 0.0 && v.abs().to_bits() == high.abs().to_bits()).unwrap_or(0.0)
    }
}

/// Scale, minimum and codes: the smallest value gets the code 0, the largest the code `TOP`.
#[inline(always)]
fn affine<const TOP: u8>(values: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (low, high) = range(values);
    // Of zeros of both signs the first counts.
    let low = if low == 0.0 { values.iter().copied().find(|v| *v == 0.0).unwrap_or(low) } else { low };
    let scale = (high - low) / f32::from(TOP);
    (scale, low, code::<TOP>(values, low, scale, 0.5))
}

/// The smallest and the largest value.
#[inline(always)]
fn range(values: &[f32; 32]) -> (f32, f32) {
    // As integers with the magnitude's bits inverted below zero, values have their order, and any order of comparing
    // them will do.
    let flip = |bits: i32| bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed();
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    for value in values {
        let key = flip(value.to_bits().cast_signed());
        low = low.min(key);
        high = high.max(key);
    }
    (f32::from_bits(flip(low).cast_unsigned()), f32::from_bits(flip(high).cast_unsigned()))
}

/// `(value - least) / scale + offset`, rounded down, at most `TOP`.
#[inline(always)]
fn code<const TOP: u8>(values: &[f32; 32], least: f32, scale: f32, offset: f32) -> [u8; 32] {
    // Conversions of floats to integers would saturate, one by one. The sum with this number has the nearest integer
    // in its last bits.
    const MAGIC: f32 = 12_582_912.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    // Where the scale or its inverse overflows, C's conversions of infinite values and NaN make codes of 0.
    let mask = if scale.is_finite() && inverse.is_finite() { TOP } else { 0 };
    let mut codes = [0; 32];
    for (value, code) in values.iter().zip(&mut codes) {
        let exact = (value - least) * inverse + offset;
        let near = exact + MAGIC;
        let down = if near - MAGIC > exact { near - 1.0 } else { near };
        *code = (down.to_bits() as u8).min(TOP) & mask;
    }
    codes
}
