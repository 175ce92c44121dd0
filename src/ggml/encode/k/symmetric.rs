//! `Q3_K` and `Q6_K`: a value is scale * code, codes being of either sign, and a search finds the scale of every
//! sub-block of 16.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::rows::{Batch, Rows, requantize};
use super::simd::{Simd, Tile, code, nearest};
use super::superblock::{self, Codes, LEN, store_f16};
use super::vector::Work;

/// Values of a sub-block, and sub-blocks of a super-block.
const S: usize = 16;

/// Below this magnitude nothing is coded.
const NOTHING: f32 = 1e-15;

/// The value of largest magnitude so far, the first of equals; NaN is passed over.
#[inline(always)]
fn extreme<const N: usize>(so_far: Simd<N>, value: Simd<N>) -> Simd<N> {
    value.abs().gt(so_far.abs()).select(value, so_far)
}

/// As [`extreme`], of the scales of one super-block.
#[inline(always)]
fn extreme_scale(scales: &[f32; S]) -> f32 {
    let mut extreme = 0.0f32;
    for scale in scales {
        if scale.abs() > extreme.abs() {
            extreme = *scale;
        }
    }
    extreme
}

/// Sums of `w * x * code` and of `w * code^2`. Not a closure: one that is called twice is not inlined.
#[inline(always)]
fn sums<const N: usize, const S: usize>(
    x: &Tile<N, S>,
    w: &Tile<N, S>,
    wx: &Tile<N, S>,
    inverse: Simd<N>,
    half: f32,
) -> (Simd<N>, Simd<N>) {
    let (mut lx, mut l2) = (Simd::ZERO, Simd::ZERO);
    for i in 0..S {
        let code = (inverse * x[i]).round(-half, half - 1.0);
        lx = lx + wx[i] * code;
        l2 = l2 + w[i] * code * code;
    }
    (lx, l2)
}

/// Searches scales (`make_qx_quants` of ggml-quants.c) for codes from `-half` up to `half - 1`; weights that are not
/// given are the squares of the values. The codes are those of the second result times the values; where that is NaN,
/// all are the lowest.
#[inline(always)]
pub(in super::super) fn fit<const N: usize, const S: usize>(
    x: &Tile<N, S>,
    weights: Option<&Tile<N, S>>,
    half: f32,
) -> (Simd<N>, Simd<N>) {
    let zero = Simd::ZERO;
    let (mut max, mut w, mut wx) = (zero, *x, *x);
    for i in 0..S {
        max = extreme(max, x[i]);
        w[i] = match weights {
            Some(weights) => weights[i],
            None => x[i] * x[i],
        };
        wx[i] = w[i] * x[i];
    }
    let mut inverse = Simd::splat(-half) / max;
    let (lx, l2) = sums(x, &w, &wx, inverse, half);
    let mut scale = l2.ne(zero).select(lx / l2, zero);
    let mut best = scale * lx;
    for step in -9i8..=9 {
        if step == 0 {
            continue;
        }
        let this_inverse = Simd::splat(-(half + 0.1 * f32::from(step))) / max;
        let (lx, l2) = sums(x, &w, &wx, this_inverse, half);
        let better = l2.gt(zero).and((lx * lx).gt(best * l2));
        scale = better.select(lx / l2, scale);
        best = better.select(scale * lx, best);
        inverse = better.select(this_inverse, inverse);
    }
    let nothing = max.abs().lt(Simd::splat(NOTHING));
    (nothing.select(zero, scale), nothing.select(Simd::splat(f32::NAN), inverse))
}

/// Chooses codes of either sign and refines them one by one (`make_q3_quants` of ggml-quants.c): scales and codes.
#[inline(always)]
fn refine<const N: usize>(x: &Tile<N, S>) -> (Simd<N>, Tile<N, S>) {
    let zero = Simd::ZERO;
    let mut max = zero;
    for i in 0..S {
        max = extreme(max, x[i]);
    }
    let nothing = max.abs().lt(Simd::splat(NOTHING));
    let inverse = Simd::splat(-4.0) / max;
    let (mut codes, mut w, mut wx) = (Tile::ZERO, *x, *x);
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for i in 0..S {
        codes[i] = nothing.select(Simd::splat(-4.0), (inverse * x[i]).round(-4.0, 3.0));
        // Without weight nothing is refined.
        w[i] = nothing.select(zero, x[i] * x[i]);
        wx[i] = w[i] * x[i];
        sum_lx = sum_lx + wx[i] * codes[i];
        sum_l2 = sum_l2 + w[i] * codes[i] * codes[i];
    }
    for _ in 0..5 {
        let mut changed = false;
        // Read from a copy: a choice between a place's value and another would become a masked store, which is slow.
        let old = codes;
        for i in 0..S {
            let lx = sum_lx - wx[i] * old[i];
            let l2 = sum_l2 - w[i] * old[i] * old[i];
            let new = (x[i] * l2 / lx).round(-4.0, 3.0);
            let open = lx.gt(zero).and(new.ne(old[i]));
            let lx = lx + wx[i] * new;
            let l2 = l2 + w[i] * new * new;
            let better = open.and(l2.gt(zero)).and((lx * lx * sum_l2).gt(sum_lx * sum_lx * l2));
            codes[i] = better.select(new, old[i]);
            sum_lx = better.select(lx, sum_lx);
            sum_l2 = better.select(l2, sum_l2);
            changed |= better.any();
        }
        // An element without a change stays without one.
        if !changed {
            break;
        }
    }
    (sum_l2.gt(zero).select(sum_lx / sum_l2, zero), codes)
}

/// The codes of one super-block; `stored` are its scales as a decoder will see them, and `searched` gives a code where
/// they are zero.
#[inline(always)]
fn codes(x: &[f32], stored: &[f32; S], half: f32, searched: impl Fn(usize, usize) -> u8) -> Codes {
    let mut codes = [0; LEN];
    for (j, (x, codes)) in x.chunks_exact(S).zip(codes.chunks_exact_mut(S)).enumerate() {
        if stored[j] == 0.0 {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = searched(j, i);
            }
        } else {
            requantize(x, stored[j], 0.0, -half, half - 1.0, codes);
        }
    }
    codes
}

/// The code that [`fit`] means.
#[inline(always)]
fn searched_code(inverse: f32, x: f32, half: f32) -> u8 {
    if inverse.is_nan() { 0 } else { code(inverse * x, -half, half - 1.0) }
}

#[inline(always)]
fn encode_q6_k<const N: usize>(batch: &Batch<'_>, out: &mut [u8], weights: bool) {
    let (mut scales, mut inverses) = ([[0.0; N]; S], [[0.0; N]; S]);
    for group in 0..batch.runs::<S>().div_ceil(N) {
        let x: Tile<N, S> = batch.load(group * N);
        let (scale, inverse) =
            if weights { fit(&x, Some(&batch.load_importance(group * N)), 32.0) } else { fit(&x, None, 32.0) };
        (scales[group], inverses[group]) = (scale.0, inverse.0);
    }
    let (scales, inverses) = (scales.as_flattened().as_chunks::<S>().0, inverses.as_flattened().as_chunks::<S>().0);
    for (b, (x, out)) in batch.values.chunks_exact(LEN).zip(out.chunks_exact_mut(210)).enumerate() {
        let max = extreme_scale(&scales[b]);
        if max.abs() < NOTHING {
            out.fill(0);
            continue;
        }
        let inverse = -128.0 / max;
        let unit = store_f16(1.0 / inverse, &mut out[208..210]);
        let mut stored = [0.0; S];
        for j in 0..S {
            let level = nearest(inverse * scales[b][j]).min(127) as i8;
            out[192 + j] = level.cast_unsigned();
            stored[j] = unit * f32::from(level);
        }
        let codes = codes(x, &stored, 32.0, |j, i| searched_code(inverses[b][j], x[S * j + i], 32.0));
        let (low, high) = out[..192].split_at_mut(128);
        superblock::pack_six_bits(&codes, low, high);
    }
}

/// Writes a super-block of `Q3_K`; `levels` count from zero on.
#[inline(always)]
fn write_q3_k(x: &[f32], unit: f32, levels: &[u8; S], searched: impl Fn(usize, usize) -> u8, out: &mut [u8]) {
    superblock::pack_sixteen(levels, &mut out[96..108]);
    let unit = store_f16(unit, &mut out[108..110]);
    let mut stored = [0.0; S];
    for j in 0..S {
        stored[j] = unit * (f32::from(levels[j]) - 32.0);
    }
    let codes = codes(x, &stored, 4.0, searched);
    superblock::pack_bit(&codes, 2, &mut out[..32]);
    superblock::pack_crumbs(&codes, &mut out[32..96]);
}

#[inline(always)]
fn encode_q3_k<const N: usize>(batch: &Batch<'_>, out: &mut [u8]) {
    let mut scales = [[0.0; N]; S];
    let mut found = [Tile::<N, S>::ZERO; S];
    for group in 0..batch.runs::<S>().div_ceil(N) {
        let (scale, codes) = refine(&batch.load(group * N));
        (scales[group], found[group]) = (scale.0, codes);
    }
    let scales = scales.as_flattened().as_chunks::<S>().0;
    for (b, (x, out)) in batch.values.chunks_exact(LEN).zip(out.chunks_exact_mut(110)).enumerate() {
        let max = extreme_scale(&scales[b]);
        let inverse = -32.0 / max;
        let mut levels = [0; S];
        if max != 0.0 {
            for j in 0..S {
                let level = nearest(inverse * scales[b][j]) as i8;
                levels[j] = (level.clamp(-32, 31) + 32).cast_unsigned();
            }
        }
        let unit = if max == 0.0 { 0.0 } else { 1.0 / inverse };
        let searched = |j: usize, i: usize| {
            let at = b * S + j;
            code(found[at / N][i].0[at % N], -4.0, 3.0)
        };
        write_q3_k(x, unit, &levels, searched, out);
    }
}

#[inline(always)]
fn encode_q3_k_weighted<const N: usize>(batch: &Batch<'_>, out: &mut [u8]) {
    let (mut scales, mut inverses, mut sums) = ([[0.0; N]; S], [[0.0; N]; S], [[0.0; N]; S]);
    let mean_squares = batch.mean_squares(2.0);
    for group in 0..batch.runs::<S>().div_ceil(N) {
        let x: Tile<N, S> = batch.load(group * N);
        let (w, sum) = batch.weights(group * N, &x, &mean_squares);
        let (scale, inverse) = fit(&x, Some(&w), 4.0);
        (scales[group], inverses[group], sums[group]) = (scale.0, inverse.0, sum.0);
    }
    // The scales of a super-block are fitted as the values of a sub-block are.
    let scales: Tile<N, S> = Tile::load(scales.as_flattened());
    let (unit, inverse) = fit(&scales, Some(&Tile::load(sums.as_flattened())), 32.0);
    let inverses = inverses.as_flattened().as_chunks::<S>().0;
    for (b, (x, out)) in batch.values.chunks_exact(LEN).zip(out.chunks_exact_mut(110)).enumerate() {
        let mut levels = [0; S];
        for j in 0..S {
            levels[j] = searched_code(inverse.0[b], scales[j].0[b], 32.0);
        }
        let searched = |j: usize, i: usize| searched_code(inverses[b][j], x[S * j + i], 4.0);
        write_q3_k(x, unit.0[b], &levels, searched, out);
    }
}

/// Rows to encode as `Q3_K`.
pub(super) struct EncodeQ3K<'a>(pub(super) Rows<'a>);
/// Rows to encode as `Q6_K`.
pub(super) struct EncodeQ6K<'a>(pub(super) Rows<'a>);

impl Work for EncodeQ3K<'_> {
    #[inline(always)]
    fn run<const N: usize>(mut self) {
        let weights = self.0.importance.is_some();
        let mut index = 0;
        while let Some((batch, out)) = self.0.batch::<N>(index, 110) {
            if weights {
                encode_q3_k_weighted::<N>(&batch, out);
            } else {
                encode_q3_k::<N>(&batch, out);
            }
            index += 1;
        }
    }
}

impl Work for EncodeQ6K<'_> {
    #[inline(always)]
    fn run<const N: usize>(mut self) {
        let weights = self.0.importance.is_some();
        let mut index = 0;
        while let Some((batch, out)) = self.0.batch::<N>(index, 210) {
            encode_q6_k::<N>(&batch, out, weights);
            index += 1;
        }
    }
}
