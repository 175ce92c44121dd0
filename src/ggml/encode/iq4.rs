//! `IQ4_NL` and `IQ4_XS`: codes are indices of 16 values, and the scale of 32 codes is the best of 16 that are tried.
//! Formulas: `quantize_row_iq4_nl_impl` in ggml-quants.c, with seven tries to each side.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::classic::peak;
use super::vector::{Work, run};
use super::weighted::store;
use crate::ggml::decode::IQ4_VALUES;
use crate::ggml::float16::f32_to_f16;
use crate::merge::Vector;

/// Scales that are tried at once, one in each SIMD element: those that take the value of the largest magnitude to -134,
/// -133 and so on.
const TRIES: usize = 16;
/// How many of them ggml-quants.c tries: down to -120. The last element is idle.
const TRIED: usize = 15;
/// Values of a super-block.
const SUPER: usize = 256;
/// Where no value is larger, all are taken for zeros.
const NOTHING: f32 = 1e-15;

/// The values that codes stand for.
const VALUES: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = IQ4_VALUES[i] as f32;
        i += 1;
    }
    values
};

/// The least number that is nearer to a value than to the one before it, or as near. The differences that ggml-quants.c
/// compares are exact beside these, so that comparing with them gives the same.
const BOUNDS: [f32; 16] = {
    let mut bounds = [f32::NEG_INFINITY; 16];
    let mut i = 1;
    while i < 16 {
        bounds[i] = f32::midpoint(VALUES[i - 1], VALUES[i]);
        i += 1;
    }
    bounds
};

pub(super) fn iq4_nl(vector: Vector, values: &[f32], columns: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    run(vector, Small { values, columns, importance, out });
}

pub(super) fn iq4_xs(vector: Vector, values: &[f32], columns: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    run(vector, Large { values, columns, importance, out });
}

/// Rows of blocks of 32 values and one scale.
struct Small<'a> {
    values: &'a [f32],
    columns: usize,
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl Work for Small<'_> {
    #[inline(always)]
    fn run<const N: usize>(self) {
        let blocks = self.values.as_chunks().0.iter().zip(self.out.as_chunks_mut::<18>().0);
        for (i, (values, out)) in blocks.enumerate() {
            let importance = self.importance.map(|all| &all[i % (self.columns / 32) * 32..][..32]);
            let mean = if importance.is_some() { mean_square(values) } else { 0.0 };
            let scale = search(values, &weights(values, importance, mean));
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            store(&[scale], &codes(values, inverse), false, out);
        }
    }
}

/// Rows of super-blocks.
struct Large<'a> {
    values: &'a [f32],
    columns: usize,
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl Work for Large<'_> {
    #[inline(always)]
    fn run<const N: usize>(self) {
        let blocks = self.values.as_chunks::<SUPER>().0.iter().zip(self.out.as_chunks_mut::<136>().0);
        for (i, (values, out)) in blocks.enumerate() {
            let importance = self.importance.map(|all| &all[i % (self.columns / SUPER) * SUPER..][..SUPER]);
            super_block(values, importance, out);
        }
    }
}

#[inline(always)]
fn super_block(values: &[f32; SUPER], importance: Option<&[f32]>, out: &mut [u8; 136]) {
    let sub_blocks = values.as_chunks::<32>().0;
    let mean = if importance.is_some() { mean_square(values) } else { 0.0 };
    let mut scales = [0.0f32; 8];
    let mut largest = 0.0;
    for (s, values) in sub_blocks.iter().enumerate() {
        scales[s] = search(values, &weights(values, importance.map(|all| &all[32 * s..][..32]), mean));
        if scales[s].abs() > f32::abs(largest) {
            largest = scales[s];
        }
    }
    let scale = -largest / 32.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (head, nibbles) = out.split_at_mut(8);
    let (mut low, mut high) = (0u32, 0u16);
    for (s, (values, out)) in sub_blocks.iter().zip(nibbles.as_chunks_mut::<16>().0).enumerate() {
        let factor = nearest(inverse * scales[s]).clamp(-32, 31);
        let scale = scale * factor as f32;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        store(&[], &codes(values, inverse), false, out);
        let factor = (factor + 32).cast_unsigned();
        low |= (factor & 15) << (4 * s);
        high |= (factor >> 4 << (2 * s)) as u16;
    }
    head[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
    head[2..4].copy_from_slice(&high.to_le_bytes());
    head[4..].copy_from_slice(&low.to_le_bytes());
}

/// Rounds to the nearest integer, ties to even, as `nearest_int` in ggml-quants.c, which keeps 23 bits.
#[inline(always)]
fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x7f_ffff).cast_signed() - 0x40_0000
}

/// Twice the mean of the squares.
#[inline(always)]
fn mean_square<const N: usize>(values: &[f32; N]) -> f32 {
    values.iter().fold(0.0, |sum, v| sum + v * v) * (2.0 / N as f32)
}

/// How much the error of each value counts.
#[inline(always)]
fn weights(values: &[f32; 32], importance: Option<&[f32]>, mean: f32) -> [f32; 32] {
    let mut weights = [0.0; 32];
    match importance {
        Some(importance) => {
            for ((weight, value), importance) in weights.iter_mut().zip(values).zip(importance) {
                *weight = importance * (mean + value * value).sqrt();
            }
        }
        None => {
            for (weight, value) in weights.iter_mut().zip(values) {
                *weight = value * value;
            }
        }
    }
    weights
}

/// The scale of least weighted error among those that are tried.
#[inline(always)]
fn search(values: &[f32; 32], weights: &[f32; 32]) -> f32 {
    let peak = peak(values);
    if peak.abs() < NOTHING {
        return 0.0;
    }
    let mut inverses = [0.0; TRIES];
    for (t, inverse) in inverses.iter_mut().enumerate() {
        *inverse = (t as f32 - 7.0 + VALUES[0]) / peak;
    }
    let choices = Choices::new(values, inverses[0], inverses[TRIES - 1]);
    let (mut products, mut squares) = ([0.0f32; TRIES], [0.0f32; TRIES]);
    for j in 0..32 {
        let (value, weight) = (values[j], weights[j]);
        let (bound, lower, upper) = (choices.bound[j], choices.lower[j], choices.upper[j]);
        for t in 0..TRIES {
            let nearest = if value * inverses[t] >= bound { upper } else { lower };
            let weighted = weight * nearest;
            products[t] += weighted * value;
            squares[t] += weighted * nearest;
        }
    }
    let (product, square) = opposite(values, weights, 1.0 / (-peak / VALUES[0]));
    let mut scale = if square > 0.0 { product / square } else { 0.0 };
    let mut best = scale * product;
    for (product, square) in products.into_iter().zip(squares).take(TRIED) {
        if square > 0.0 && product * product > best * square {
            scale = product / square;
            best = scale * product;
        }
    }
    scale
}

/// The sums for the try that comes first and takes the value of the largest magnitude to 127.
#[inline(always)]
fn opposite(values: &[f32; 32], weights: &[f32; 32], inverse: f32) -> (f32, f32) {
    let (mut products, mut squares) = ([0.0; 32], [0.0; 32]);
    for j in 0..32 {
        let scaled = values[j] * inverse;
        let mut nearest = VALUES[0];
        for i in 1..16 {
            nearest = if scaled >= BOUNDS[i] { VALUES[i] } else { nearest };
        }
        let weighted = weights[j] * nearest;
        products[j] = weighted * values[j];
        squares[j] = weighted * nearest;
    }
    let sum = |terms: &[f32; 32]| terms.iter().fold(0.0, |sum, term| sum + term);
    (sum(&products), sum(&squares))
}

/// What each value may become. The tries are so near to each other that a value, scaled by them, is on both sides of
/// one bound at most: the assertion below says so.
struct Choices {
    bound: [f32; 32],
    /// Below the bound.
    lower: [f32; 32],
    /// At the bound or above.
    upper: [f32; 32],
}

const _: () = {
    let spread = (VALUES[0] - 7.0) / (VALUES[0] - 7.0 + (TRIES - 1) as f32);
    let mut i = 1;
    while i < 15 {
        let (a, b) = (BOUNDS[i], BOUNDS[i + 1]);
        assert!(a * b < 0.0 || a / b > spread || b / a > spread);
        i += 1;
    }
};

impl Choices {
    #[inline(always)]
    fn new(values: &[f32; 32], first: f32, last: f32) -> Self {
        let mut choices = Self { bound: [0.0; 32], lower: [0.0; 32], upper: [0.0; 32] };
        for (j, value) in values.iter().enumerate() {
            let (a, b) = (value * first, value * last);
            let least = if a < b { a } else { b };
            let (mut bound, mut lower, mut upper) = (BOUNDS[1], VALUES[0], VALUES[1]);
            for i in 1..15 {
                let past = least >= BOUNDS[i];
                bound = if past { BOUNDS[i + 1] } else { bound };
                lower = if past { VALUES[i] } else { lower };
                upper = if past { VALUES[i + 1] } else { upper };
            }
            choices.bound[j] = bound;
            choices.lower[j] = lower;
            choices.upper[j] = upper;
        }
        choices
    }
}

/// The codes of the values nearest to the scaled ones; of NaN, the last.
#[inline(always)]
fn codes(values: &[f32; 32], inverse: f32) -> [u8; 32] {
    let mut codes = [0; 32];
    for (value, code) in values.iter().zip(&mut codes) {
        let scaled = value * inverse;
        let mut count = 15u32;
        for bound in &BOUNDS[1..] {
            count -= u32::from(scaled < *bound);
        }
        *code = count as u8;
    }
    codes
}
