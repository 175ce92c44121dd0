//! Super-blocks of 256 values in groups of eight or four that are points of a grid: IQ1, IQ2 and IQ3 types. Formulas:
//! `dequantize_row_iq*` in ggml-quants.c. The points are in `grid`.

use super::grid::{IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::{double, half, word};

/// What IQ1 types add to the values of a group, or subtract.
const IQ1_SHIFT: f32 = 0.125;

/// Writes a group: `scale` times the point, negative where `signs` has the value's bit.
fn group<const N: usize>(scale: f32, point: &[i8; N], signs: u8, out: &mut [f32]) {
    for (j, (value, out)) in point.iter().zip(out).enumerate() {
        let magnitude = scale * f32::from(*value);
        *out = if signs >> j & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// Eight signs from seven: an even number of them is set.
fn even_signs(seven: u32) -> u8 {
    let seven = seven & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (points, signs) = (&block[2 + 8 * s..][..4], double(block, 6 + 8 * s));
        let scale = scale * (0.5 + (signs >> 28) as f32) * 0.25;
        for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            group(scale, &IQ2_XXS[usize::from(points[g])], even_signs(signs >> (7 * g)), out);
        }
    }
}

/// The scale of group `g` of four, two groups a nibble.
fn pair_scale(scale: f32, nibbles: u8, g: usize) -> f32 {
    scale * (0.5 + f32::from(nibbles >> (g / 2 * 4) & 15)) * 0.25
}

pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let code = word(block, 2 + 2 * g);
        let scale = pair_scale(scale, block[66 + g / 4], g % 4);
        group(scale, &IQ2_XS[usize::from(code & 511)], even_signs(u32::from(code >> 9)), out);
    }
}

pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = block[66 + g / 4] >> (g % 4 * 2) & 3;
        let point = usize::from(block[2 + g]) | usize::from(high) << 8;
        group(pair_scale(scale, block[74 + g / 4], g % 4), &IQ2_S[point], block[34 + g], out);
    }
}

pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (points, signs) = (&block[2 + 8 * s..][..8], double(block, 66 + 4 * s));
        let scale = scale * (0.5 + (signs >> 28) as f32) * 0.5;
        for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let signs = even_signs(signs >> (7 * g));
            group(scale, &IQ3_XXS[usize::from(points[2 * g])], signs, &mut out[..4]);
            group(scale, &IQ3_XXS[usize::from(points[2 * g + 1])], signs >> 4, &mut out[4..]);
        }
    }
}

pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    for (g, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let s = g / 8;
        let scale = scale * f32::from(1 + 2 * (block[106 + s / 2] >> (s % 2 * 4) & 15));
        let high = block[66 + s] >> (g % 8) & 1;
        let point = usize::from(block[2 + g]) | usize::from(high) << 8;
        group(scale, &IQ3_S[point], block[74 + g / 2] >> (g % 2 * 4), out);
    }
}

/// Writes a group of an IQ1 type: `scale` times the shifted point.
fn shifted(scale: f32, point: [i8; 8], negative: bool, out: &mut [f32; 8]) {
    let shift = if negative { -IQ1_SHIFT } else { IQ1_SHIFT };
    for (value, out) in point.iter().zip(out) {
        *out = scale * (f32::from(*value) + shift);
    }
}

/// The factor that a 3-bit code of a scale means.
fn odd(code: u16) -> f32 {
    f32::from(2 * (code & 7) + 1)
}

pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = word(block, 34 + g / 4 * 2);
        let point = usize::from(block[2 + g]) | usize::from(high >> (g % 4 * 3) & 7) << 8;
        shifted(scale * odd(high >> 12), IQ1_S[point], high >> 15 == 1, out);
    }
}

pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let factors: [u16; 4] = std::array::from_fn(|i| word(block, 48 + 2 * i));
    // The super-block's scale is an f16 in the top nibbles of the four words.
    let bits = factors.iter().rev().fold(0, |bits, word| bits << 4 | word >> 12);
    let scale = super::f16_to_f32(bits);
    for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = block[32 + g / 2] >> (g % 2 * 4) & 15;
        let point = usize::from(block[g]) | usize::from(high & 7) << 8;
        let scale = scale * odd(factors[g / 8] >> (g % 8 / 2 * 3));
        shifted(scale, IQ1_S[point], high >> 3 == 1, out);
    }
}
