//! `Q2_K`, `Q4_K` and `Q5_K`: a value is scale * code - minimum, and a search finds both for every sub-block.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::levels::{Levels, fit_levels, largest_levels};
use super::rows::{Batch, Rows, requantize};
use super::simd::{Simd, Tile, code};
use super::superblock::{self, Codes, LEN, store_f16};
use super::vector::Work;

/// Candidates of a search, and the error that it makes small.
#[derive(Clone, Copy)]
pub(in super::super) struct Search {
    /// Candidate `i` spreads the values over `max_code + low + step * i` codes.
    low: f32,
    step: f32,
    last: u8,
    /// Sum of differences, not of their squares.
    absolute: bool,
}

/// The search where importance is known.
pub(in super::super) const WEIGHTED: Search = Search { low: -0.9, step: 0.05, last: 36, absolute: false };

/// What sets a type apart from the others. Sub-blocks have `S` values.
pub(super) trait Affine<const S: usize> {
    /// Bytes of a super-block.
    const BYTES: usize;
    /// The largest code of a value.
    const MAX_CODE: f32;
    /// The level of the largest scale and of the largest minimum.
    const MAX_LEVEL: f32;
    /// Where importance is unknown, levels that absurd weights bring above are cut off here.
    const HELD_LEVEL: f32;
    /// The search where importance is unknown.
    const PLAIN: Search;
    /// With importance, weights grow from this many mean squares on.
    const SQUARES: f32;

    /// Weights where importance is unknown, and their sums.
    fn plain_weights<const N: usize>(x: &Tile<N, S>) -> (Tile<N, S>, Simd<N>);

    /// Writes a super-block's scales; gives the scale and minimum of every sub-block as a decoder will see them.
    fn write_scales(scale: f32, min: f32, levels: &[[u8; 16]; 2], out: &mut [u8]) -> [(f32, f32); 16];

    /// Writes a super-block's codes.
    fn write_codes(codes: &Codes, out: &mut [u8]);
}

/// The type `Q2_K`.
pub(super) struct Q2K;
/// The type `Q4_K`.
pub(super) struct Q4K;
/// The type `Q5_K`.
pub(super) struct Q5K;

impl Affine<16> for Q2K {
    const BYTES: usize = 84;
    const MAX_CODE: f32 = 3.0;
    const MAX_LEVEL: f32 = 15.0;
    const HELD_LEVEL: f32 = 255.0;
    const PLAIN: Search = Search { low: -0.5, step: 0.1, last: 15, absolute: true };
    const SQUARES: f32 = 1.0;

    #[inline(always)]
    fn plain_weights<const N: usize>(x: &Tile<N, 16>) -> (Tile<N, 16>, Simd<N>) {
        let (mut w, mut sum) = (*x, Simd::ZERO);
        for i in 0..16 {
            w[i] = x[i].abs();
            sum = sum + w[i];
        }
        (w, sum)
    }

    #[inline(always)]
    fn write_scales(scale: f32, min: f32, levels: &[[u8; 16]; 2], out: &mut [u8]) -> [(f32, f32); 16] {
        let scale = store_f16(scale, &mut out[80..82]);
        let min = store_f16(min, &mut out[82..84]);
        let mut stored = [(0.0, 0.0); 16];
        for j in 0..16 {
            out[j] = levels[0][j] | levels[1][j] << 4;
            stored[j] = (scale * f32::from(out[j] & 15), min * f32::from(out[j] >> 4));
        }
        stored
    }

    #[inline(always)]
    fn write_codes(codes: &Codes, out: &mut [u8]) {
        superblock::pack_crumbs(codes, &mut out[16..80]);
    }
}

/// As ggml-quants.c weighs sub-blocks of 32: root mean square plus magnitude; and the sums.
#[inline(always)]
fn weights_of_32<const N: usize>(x: &Tile<N, 32>) -> (Tile<N, 32>, Simd<N>) {
    let mut squares = Simd::ZERO;
    for i in 0..32 {
        squares = squares + x[i] * x[i];
    }
    let mean = (squares / Simd::splat(32.0)).sqrt();
    let (mut w, mut sum) = (*x, Simd::ZERO);
    for i in 0..32 {
        w[i] = mean + x[i].abs();
        sum = sum + w[i];
    }
    (w, sum)
}

/// Writes the first 16 bytes of `Q4_K` and `Q5_K`.
#[inline(always)]
fn write_scales_of_32(scale: f32, min: f32, levels: &[[u8; 16]; 2], out: &mut [u8]) -> [(f32, f32); 16] {
    let scale = store_f16(scale, &mut out[..2]);
    let min = store_f16(min, &mut out[2..4]);
    superblock::pack_pairs(&levels[0], &levels[1], &mut out[4..16]);
    let mut stored = [(0.0, 0.0); 16];
    for (j, stored) in stored.iter_mut().enumerate().take(8) {
        let levels = superblock::unpack_pair(&out[4..16], j);
        *stored = (scale * f32::from(levels.0), min * f32::from(levels.1));
    }
    stored
}

impl Affine<32> for Q4K {
    const BYTES: usize = 144;
    const MAX_CODE: f32 = 15.0;
    const MAX_LEVEL: f32 = 63.0;
    const HELD_LEVEL: f32 = 63.0;
    const PLAIN: Search = Search { low: -1.0, step: 0.1, last: 20, absolute: false };
    const SQUARES: f32 = 2.0;

    #[inline(always)]
    fn plain_weights<const N: usize>(x: &Tile<N, 32>) -> (Tile<N, 32>, Simd<N>) {
        weights_of_32(x)
    }

    #[inline(always)]
    fn write_scales(scale: f32, min: f32, levels: &[[u8; 16]; 2], out: &mut [u8]) -> [(f32, f32); 16] {
        write_scales_of_32(scale, min, levels, out)
    }

    #[inline(always)]
    fn write_codes(codes: &Codes, out: &mut [u8]) {
        superblock::pack_nibbles(codes, &mut out[16..144]);
    }
}

impl Affine<32> for Q5K {
    const BYTES: usize = 176;
    const MAX_CODE: f32 = 31.0;
    const MAX_LEVEL: f32 = 63.0;
    const HELD_LEVEL: f32 = 63.0;
    const PLAIN: Search = Search { low: -0.5, step: 0.1, last: 15, absolute: false };
    const SQUARES: f32 = 2.0;

    #[inline(always)]
    fn plain_weights<const N: usize>(x: &Tile<N, 32>) -> (Tile<N, 32>, Simd<N>) {
        weights_of_32(x)
    }

    #[inline(always)]
    fn write_scales(scale: f32, min: f32, levels: &[[u8; 16]; 2], out: &mut [u8]) -> [(f32, f32); 16] {
        let mut levels = *levels;
        for level in levels.as_flattened_mut() {
            *level = (*level).min(63);
        }
        write_scales_of_32(scale, min, &levels, out)
    }

    #[inline(always)]
    fn write_codes(codes: &Codes, out: &mut [u8]) {
        superblock::pack_bit(codes, 4, &mut out[16..48]);
        superblock::pack_nibbles(codes, &mut out[48..176]);
    }
}

/// What a search found for `N` sub-blocks.
pub(in super::super) struct Fit<const N: usize> {
    pub(in super::super) scale: Simd<N>,
    /// The minimum, negated.
    pub(in super::super) min: Simd<N>,
    /// The codes are those of `inverse * (x - floor)`.
    pub(in super::super) inverse: Simd<N>,
    pub(in super::super) floor: Simd<N>,
}

/// What a search sums: the difference that coding makes, as a magnitude or squared.
#[inline(always)]
fn difference<const N: usize>(scale: Simd<N>, min: Simd<N>, code: Simd<N>, x: Simd<N>, absolute: bool) -> Simd<N> {
    let difference = scale * code + min - x;
    if absolute { difference.abs() } else { difference * difference }
}

/// Searches scale and minimum (`make_qkx2_quants` and `make_qkx3_quants` of ggml-quants.c).
#[inline(always)]
pub(in super::super) fn fit<const N: usize, const S: usize>(
    x: &Tile<N, S>,
    w: &Tile<N, S>,
    sum_w: Simd<N>,
    max_code: f32,
    search: Search,
) -> Fit<N> {
    let zero = Simd::ZERO;
    let (mut min, mut max, mut sum_x) = (x[0], x[0], w[0] * x[0]);
    for i in 1..S {
        min = min.min(x[i]);
        max = max.max(x[i]);
        sum_x = sum_x + w[i] * x[i];
    }
    min = min.min(zero);
    let (lowest, varied) = (min, max.gt(min));
    let mut inverse = Simd::splat(max_code) / (max - min);
    let mut floor = min;
    let mut scale = Simd::splat(1.0) / inverse;
    let mut best = zero;
    for i in 0..S {
        let code = (inverse * (x[i] - min)).round(0.0, max_code);
        best = best + w[i] * difference(scale, min, code, x[i], search.absolute);
    }
    let mut codes = Tile::<N, S>::ZERO;
    for step in 0..=search.last {
        // The range is measured from the minimum of the best candidate so far, not from that of the values.
        let spread = search.low + search.step * f32::from(step) + max_code;
        let this_inverse = Simd::splat(spread) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..S {
            let code = (this_inverse * (x[i] - min)).round(0.0, max_code);
            codes[i] = code;
            let wl = w[i] * code;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * code;
            sum_xl = sum_xl + wl * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        let this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        let this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let above = this_min.gt(zero);
        let this_min = above.select(zero, this_min);
        let this_scale = above.select(sum_xl / sum_l2, this_scale);
        let mut error = zero;
        for i in 0..S {
            error = error + w[i] * difference(this_scale, this_min, codes[i], x[i], search.absolute);
        }
        let better = error.lt(best).and(determinant.gt(zero));
        best = better.select(error, best);
        inverse = better.select(this_inverse, inverse);
        floor = better.select(min, floor);
        scale = better.select(this_scale, scale);
        min = better.select(this_min, min);
    }
    Fit {
        scale: varied.select(scale, zero),
        min: varied.select(min, lowest).neg(),
        inverse: varied.select(inverse, zero),
        floor: varied.select(floor, zero),
    }
}

/// What was found for every sub-block of a batch, in order.
struct Found<const N: usize> {
    scale: [[f32; N]; 16],
    min: [[f32; N]; 16],
    inverse: [[f32; N]; 16],
    floor: [[f32; N]; 16],
    /// Sums of weights.
    weight: [[f32; N]; 16],
}

#[inline(always)]
fn search<K: Affine<S>, const N: usize, const S: usize, const WEIGHTS: bool>(batch: &Batch<'_>) -> Found<N> {
    let empty = [[0.0; N]; 16];
    let mut found = Found { scale: empty, min: empty, inverse: empty, floor: empty, weight: empty };
    let mean_squares = if WEIGHTS { batch.mean_squares(K::SQUARES) } else { Simd::ZERO };
    for group in 0..batch.runs::<S>().div_ceil(N) {
        let x: Tile<N, S> = batch.load(group * N);
        let fit = if WEIGHTS {
            let (w, sum) = batch.weights(group * N, &x, &mean_squares);
            found.weight[group] = sum.0;
            fit(&x, &w, sum, K::MAX_CODE, WEIGHTED)
        } else {
            let (w, sum) = K::plain_weights(&x);
            fit(&x, &w, sum, K::MAX_CODE, K::PLAIN)
        };
        found.scale[group] = fit.scale.0;
        found.min[group] = fit.min.0;
        found.inverse[group] = fit.inverse.0;
        found.floor[group] = fit.floor.0;
    }
    found
}

/// Values of consecutive sub-blocks as SIMD elements of super-blocks.
#[inline(always)]
fn by_block<const N: usize, const S: usize>(values: &[[f32; N]; 16]) -> Tile<N, 16> {
    let mut out = Tile::<N, 16>::ZERO;
    for (l, block) in values.as_flattened().chunks_exact(LEN / S).take(N).enumerate() {
        for (out, value) in out.iter_mut().zip(block) {
            out.0[l] = *value;
        }
    }
    out
}

#[inline(always)]
fn encode<K: Affine<S>, const N: usize, const S: usize, const WEIGHTS: bool>(batch: &Batch<'_>, out: &mut [u8]) {
    let per = LEN / S;
    let found = search::<K, N, S, WEIGHTS>(batch);
    let (scales, mins) = (by_block::<N, S>(&found.scale), by_block::<N, S>(&found.min));
    let (scale, min): (Levels<N>, Levels<N>) = if WEIGHTS {
        let w = by_block::<N, S>(&found.weight);
        (fit_levels(&scales[..per], &w[..per], K::MAX_LEVEL), fit_levels(&mins[..per], &w[..per], K::MAX_LEVEL))
    } else {
        (
            largest_levels(&scales[..per], K::MAX_LEVEL, K::HELD_LEVEL),
            largest_levels(&mins[..per], K::MAX_LEVEL, K::HELD_LEVEL),
        )
    };
    for (b, (x, out)) in batch.values.chunks_exact(LEN).zip(out.chunks_exact_mut(K::BYTES)).enumerate() {
        let levels = [scale.of_block(b), min.of_block(b)];
        let stored = K::write_scales(scale.unit.0[b], min.unit.0[b], &levels, out);
        let mut codes = [0; LEN];
        for (j, (x, codes)) in x.chunks_exact(S).zip(codes.chunks_exact_mut(S)).enumerate() {
            let (scale, min) = stored[j];
            if scale == 0.0 {
                let at = b * per + j;
                let (inverse, floor) = (found.inverse.as_flattened()[at], found.floor.as_flattened()[at]);
                for (out, x) in codes.iter_mut().zip(x) {
                    *out = code(inverse * (x - floor), 0.0, K::MAX_CODE);
                }
            } else {
                requantize(x, scale, min, 0.0, K::MAX_CODE, codes);
            }
        }
        K::write_codes(&codes, out);
    }
}

/// Rows to encode as type `K`.
pub(super) struct EncodeAffine<'a, K, const S: usize>(pub(super) Rows<'a>, pub(super) K);

impl<K: Affine<S>, const S: usize> Work for EncodeAffine<'_, K, S> {
    #[inline(always)]
    fn run<const N: usize>(mut self) {
        let weights = self.0.importance.is_some();
        let mut index = 0;
        while let Some((batch, out)) = self.0.batch::<N>(index, K::BYTES) {
            if weights {
                encode::<K, N, S, true>(&batch, out);
            } else {
                encode::<K, N, S, false>(&batch, out);
            }
            index += 1;
        }
    }
}
