//! `Q8_0`: an f16 scale and 32 signed bytes. Formula: `quantize_row_q8_0_ref` in ggml-quants.c, which has no use for an
//! importance.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::vector::{Work, run};
use crate::ggml::float16::f32_to_f16;
use crate::merge::Vector;

pub(super) fn q8_0(vector: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    run(vector, Blocks { values: values.as_chunks().0, out: out.as_chunks_mut().0 });
}

struct Blocks<'a> {
    values: &'a [[f32; 32]],
    out: &'a mut [[u8; 34]],
}

impl Work for Blocks<'_> {
    #[inline(always)]
    fn run<const N: usize>(self) {
        for (values, out) in self.values.iter().zip(self.out) {
            block(values, out);
        }
    }
}

#[inline(always)]
fn block(values: &[f32; 32], out: &mut [u8; 34]) {
    // As integers, magnitudes have the order of the floats, and any order of comparing them will do.
    let largest = values.iter().fold(0, |largest: u32, v| largest.max(v.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(largest) / 127.0;
    // Where the scale is so small that its inverse overflows, C's conversions of infinite values make codes of 0.
    let inverse = 1.0 / scale;
    let inverse = if inverse < f32::INFINITY { inverse } else { 0.0 };
    let mut codes = [0; 32];
    for (value, code) in values.iter().zip(&mut codes) {
        *code = round(value * inverse);
    }
    out[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
    out[2..].copy_from_slice(&codes);
}

/// Rounds a value within the range to the nearest integer, ties away from zero.
#[inline(always)]
fn round(value: f32) -> u8 {
    // Conversions of floats to integers would saturate, one by one. The sum with this number has the integer, ties
    // to even, in its last bits.
    const MAGIC: f32 = 12_582_912.0;
    let rounded = value + MAGIC;
    let rest = value - (rounded - MAGIC);
    let half = 0.5f32.copysign(value);
    let rounded = if rest.to_bits() == half.to_bits() { rounded + (half + half) } else { rounded };
    rounded.to_bits() as u8
}
