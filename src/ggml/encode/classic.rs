//! `Q4_0`, `Q4_1`, `Q5_0` and `Q5_1` without importance: 32 codes of four or five bits, with a scale and perhaps a
//! minimum. Formulas: `quantize_row_*_ref` in ggml-quants.c. How the bytes lie is here for the weighted forms too.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::vector::{Work, run};
use super::weighted::{Rows, store};
use crate::merge::Vector;

/// A function for each type: whether codes have a minimum, the largest code, and the bytes of a block.
macro_rules! encoders {
    ($($name:ident: $affine:literal, $top:literal, $bytes:literal;)*) => {$(
        pub(super) fn $name(
            vector: Vector,
            values: &[f32],
            columns: usize,
            importance: Option<&[f32]>,
            out: &mut [u8],
        ) {
            let (out, _) = out.as_chunks_mut::<$bytes>();
            match importance {
                Some(importance) => {
                    run(vector, Rows::<$affine, $top, $bytes> { values, columns, importance, out });
                }
                None => run(vector, Blocks::<$affine, $top, $bytes> { values: values.as_chunks().0, out }),
            }
        }
    )*};
}

encoders! {
    q4_0: false, 15, 18;
    q4_1: true, 15, 20;
    q5_0: false, 31, 22;
    q5_1: true, 31, 24;
}

/// Blocks of `BYTES` bytes, of codes up to `TOP`, `AFFINE` if they have a minimum.
struct Blocks<'a, const AFFINE: bool, const TOP: u8, const BYTES: usize> {
    values: &'a [[f32; 32]],
    out: &'a mut [[u8; BYTES]],
}

impl<const AFFINE: bool, const TOP: u8, const BYTES: usize> Work for Blocks<'_, AFFINE, TOP, BYTES> {
    #[inline(always)]
    fn run<const N: usize>(self) {
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
        first_of_magnitude(values, high.abs())
    }
}

#[cold]
#[inline(never)]
fn first_of_magnitude(values: &[f32; 32], magnitude: f32) -> f32 {
    let first = values.iter().find(|v| **v != 0.0 && v.abs().to_bits() == magnitude.to_bits());
    first.copied().unwrap_or(0.0)
}

/// Of zeros of both signs the first counts.
#[cold]
#[inline(never)]
fn first_zero(values: &[f32; 32]) -> f32 {
    values.iter().copied().find(|v| *v == 0.0).unwrap_or(0.0)
}

/// Scale, minimum and codes: the smallest value gets the code 0, the largest the code `TOP`.
#[inline(always)]
fn affine<const TOP: u8>(values: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (low, high) = range(values);
    let low = if low == 0.0 { first_zero(values) } else { low };
    // Of zeros of both signs, the difference is a positive one.
    let scale = if high > low { (high - low) / f32::from(TOP) } else { 0.0 };
    (scale, low, code::<TOP>(values, low, scale, 0.5))
}

/// The smallest and the largest value, zeros with either sign: any order of comparing will do, so halves are compared.
#[inline(always)]
fn range(values: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = (*values, *values);
    let mut half = 16;
    while half > 0 {
        for i in 0..half {
            low[i] = if low[i + half] < low[i] { low[i + half] } else { low[i] };
            high[i] = if high[i + half] > high[i] { high[i + half] } else { high[i] };
        }
        half /= 2;
    }
    (low[0], high[0])
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
