//! Levels: the small integers that code the scales and minimums of a super-block's sub-blocks, with one unit for all.
//! A SIMD element has a super-block.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::simd::{Simd, code};

/// Levels of `N` super-blocks, as floats that hold a `uint8_t`, and the value of level one.
pub(super) struct Levels<const N: usize> {
    pub(super) unit: Simd<N>,
    levels: [Simd<N>; 16],
}

impl<const N: usize> Levels<N> {
    /// The levels of super-block `block`.
    #[inline(always)]
    pub(super) fn of_block(&self, block: usize) -> [u8; 16] {
        let mut out = [0; 16];
        for (out, levels) in out.iter_mut().zip(&self.levels) {
            *out = code(levels.0[block], 0.0, 255.0);
        }
        out
    }
}

/// Levels up to `max_level`, which the largest value gets, and none above `held`.
#[inline(always)]
pub(super) fn largest_levels<const N: usize>(values: &[Simd<N>], max_level: f32, held: f32) -> Levels<N> {
    let top = Simd::splat(max_level);
    let mut max = Simd::ZERO;
    for value in values {
        max = max.max(*value);
    }
    let some = max.gt(Simd::ZERO);
    let inverse = top / max;
    let mut levels = [Simd::ZERO; 16];
    for (level, value) in levels.iter_mut().zip(values) {
        let wrapped = (inverse * *value).round_below(4_194_303.0).wrap().min(Simd::splat(held));
        *level = some.select(wrapped, Simd::ZERO);
    }
    Levels { unit: max / top, levels }
}

/// Levels up to `max_level` with small weighted squares of differences: a search for the unit, then up to five rounds
/// of single steps (`make_qp_quants` of ggml-quants.c).
#[inline(always)]
pub(super) fn fit_levels<const N: usize>(x: &[Simd<N>], w: &[Simd<N>], max_level: f32) -> Levels<N> {
    let (zero, top) = (Simd::ZERO, Simd::splat(max_level));
    let mut max = zero;
    for x in x {
        max = x.lt(max).select(max, *x);
    }
    let none = max.lt(Simd::splat(1e-15));
    let mut inverse = top / max;
    let unit = Simd::splat(1.0) / inverse;
    let mut best = zero;
    for (x, w) in x.iter().zip(w) {
        let difference = *x - unit * (inverse * *x).round_below(4_194_303.0).wrap();
        best = best + *w * difference * difference;
    }
    for step in -4i8..=4 {
        if step == 0 {
            continue;
        }
        let this_inverse = Simd::splat(0.1 * f32::from(step) + max_level) / max;
        let unit = Simd::splat(1.0) / this_inverse;
        let mut error = zero;
        for (x, w) in x.iter().zip(w) {
            let difference = *x - unit * (this_inverse * *x).round_below(max_level);
            error = error + *w * difference * difference;
        }
        let better = error.lt(best);
        best = better.select(error, best);
        inverse = better.select(this_inverse, inverse);
    }
    let mut levels = [zero; 16];
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for ((x, w), level) in x.iter().zip(w).zip(&mut levels) {
        let l = (inverse * *x).round_below(max_level);
        *level = l.wrap();
        sum_lx = sum_lx + *w * *x * l;
        sum_l2 = sum_l2 + *w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((x, w), level) in x.iter().zip(w).zip(&mut levels) {
            let wx = *w * *x;
            let lx = sum_lx - wx * *level;
            let l2 = sum_l2 - *w * *level * *level;
            let new = (*x * l2 / lx).round_below(max_level);
            let open = lx.gt(zero).and(l2.gt(zero)).and(new.ne(*level));
            let lx = lx + wx * new;
            let l2 = l2 + *w * new * new;
            let better = open.and((lx * lx * sum_l2).gt(sum_lx * sum_lx * l2));
            *level = better.select(new.wrap(), *level);
            sum_lx = better.select(lx, sum_lx);
            sum_l2 = better.select(l2, sum_l2);
            changed |= better.any();
        }
        if !changed {
            break;
        }
    }
    for level in &mut levels {
        *level = none.select(zero, *level);
    }
    let unit = sum_l2.gt(zero).select(sum_lx / sum_l2, zero);
    Levels { unit: none.select(zero, unit), levels }
}
