//! The K types one value at a time, in the order of ggml-quants.c: what the vector code is tested against.

#![expect(clippy::cast_sign_loss, reason = "codes are counted from zero, or wrap as C's do")]

use super::superblock::{self, Codes, LEN, store_f16};
use crate::ggml::TensorType;

/// Rounds to the nearest integer, ties to even, as `nearest_int` of ggml-quants.c: past 2^22 it wraps, and NaN gives 0.
fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000
}

/// A sum from left to right.
fn sum(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |sum, v| sum + v)
}

/// Candidates that a search tries, and the error that it makes small.
#[derive(Clone, Copy)]
struct Search {
    low: f32,
    step: f32,
    steps: u8,
    absolute: bool,
}

/// A K type of scale and minimum a sub-block.
#[derive(Clone, Copy)]
struct Affine {
    sub: usize,
    max_code: u8,
    max_level: u8,
    plain: Search,
    /// `sigma2` is this many mean squares, with importance.
    squares: f32,
}

const WEIGHTED: Search = Search { low: -0.9, step: 0.05, steps: 36, absolute: false };
const Q2_K: Affine = Affine {
    sub: 16,
    max_code: 3,
    max_level: 15,
    plain: Search { low: -0.5, step: 0.1, steps: 15, absolute: true },
    squares: 1.0,
};
const Q4_K: Affine = Affine {
    sub: 32,
    max_code: 15,
    max_level: 63,
    plain: Search { low: -1.0, step: 0.1, steps: 20, absolute: false },
    squares: 2.0,
};
const Q5_K: Affine = Affine {
    sub: 32,
    max_code: 31,
    max_level: 63,
    plain: Search { low: -0.5, step: 0.1, steps: 15, absolute: false },
    squares: 2.0,
};

/// `make_qkx2_quants` and `make_qkx3_quants`: scale and negated minimum, and the codes.
fn fit_affine(x: &[f32], w: &[f32], max_code: u8, search: Search, codes: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max, mut sum_w, mut sum_x) = (x[0], x[0], w[0], w[0] * x[0]);
    for (x, w) in x.iter().zip(w).skip(1) {
        min = if *x < min { *x } else { min };
        max = if *x > max { *x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let top = f32::from(max_code);
    let assign = |inverse: f32, min: f32, codes: &mut [u8]| {
        for (code, x) in codes.iter_mut().zip(x) {
            *code = nearest(inverse * (x - min)).clamp(0, i32::from(max_code)) as u8;
        }
    };
    let error = |scale: f32, min: f32, codes: &[u8]| {
        sum(x.iter().zip(w).zip(codes).map(|((x, w), code)| {
            let diff = scale * f32::from(*code) + min - x;
            w * if search.absolute { diff.abs() } else { diff * diff }
        }))
    };
    let inverse = top / (max - min);
    let mut scale = 1.0 / inverse;
    assign(inverse, min, codes);
    let mut best = error(scale, min, codes);
    let mut tried = vec![0; x.len()];
    for step in 0..=search.steps {
        // From the minimum of the best candidate so far, not from that of the values.
        assign((search.low + search.step * f32::from(step) + top) / (max - min), min, &mut tried);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((x, w), code) in x.iter().zip(w).zip(&tried) {
            let l = f32::from(*code);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error(this_scale, this_min, &tried);
            if this_error < best {
                codes.copy_from_slice(&tried);
                (best, scale, min) = (this_error, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// `make_qp_quants`: the scale of `x`, and its codes. A code wraps at 256 as a `uint8_t` does.
fn fit_positive(x: &[f32], w: &[f32], max_code: u8, codes: &mut [u8]) -> f32 {
    let max = x.iter().fold(0.0, |max: f32, x| if max > *x { max } else { *x });
    if max < 1e-15 {
        codes.fill(0);
        return 0.0;
    }
    let (top, top_f) = (i32::from(max_code), f32::from(max_code));
    let mut inverse = top_f / max;
    let error = |scale: f32, code: &dyn Fn(f32) -> f32| {
        sum(x.iter().zip(w).map(|(x, w)| {
            let diff = x - scale * code(*x);
            w * diff * diff
        }))
    };
    let mut best = error(1.0 / inverse, &|x| f32::from(nearest(inverse * x) as u8));
    for step in [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0f32] {
        let tried = (0.1 * step + top_f) / max;
        let this = error(1.0 / tried, &|x| nearest(tried * x).min(top) as f32);
        if this < best {
            (best, inverse) = (this, tried);
        }
    }
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for ((x, w), code) in x.iter().zip(w).zip(codes.iter_mut()) {
        let l = nearest(inverse * x).min(top);
        *code = l as u8;
        sum_lx += w * x * l as f32;
        sum_l2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((x, w), code) in x.iter().zip(w).zip(codes.iter_mut()) {
            let old = f32::from(*code);
            let (mut lx, mut l2) = (sum_lx - w * x * old, sum_l2 - w * old * old);
            if lx > 0.0 && l2 > 0.0 {
                let new = nearest(x * l2 / lx).min(top);
                if new != i32::from(*code) {
                    lx += w * x * new as f32;
                    l2 += w * new as f32 * new as f32;
                    if lx * lx * sum_l2 > sum_lx * sum_lx * l2 {
                        (*code, sum_lx, sum_l2, changed) = (new as u8, lx, l2, true);
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// Codes of `x` once its sub-block's scale is stored; those of the search stay where that scale is zero.
fn requantize(x: &[f32], scale: f32, min: f32, low: i32, high: i32, codes: &mut [u8]) {
    if scale != 0.0 {
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (nearest((x + min) / scale).clamp(low, high) - low) as u8;
        }
    }
}

/// The importance weights of a super-block: `qw * sqrt(sigma2 + x^2)`.
fn importance_weights(x: &[f32], importance: &[f32], squares: f32) -> Vec<f32> {
    let sigma2 = squares * sum(x.iter().map(|x| x * x)) / 256.0;
    x.iter().zip(importance).map(|(x, qw)| qw * (sigma2 + x * x).sqrt()).collect()
}

struct AffineFit {
    codes: Codes,
    scales: Vec<f32>,
    mins: Vec<f32>,
    sums: Vec<f32>,
}

fn fit_affine_block(kind: &Affine, x: &[f32], importance: Option<&[f32]>) -> AffineFit {
    let weights = importance.map(|importance| importance_weights(x, importance, kind.squares));
    let mut fit = AffineFit { codes: [0; LEN], scales: vec![], mins: vec![], sums: vec![] };
    for (j, x) in x.chunks_exact(kind.sub).enumerate() {
        let at = j * kind.sub..(j + 1) * kind.sub;
        let (w, search) = match &weights {
            Some(weights) => (weights[at.clone()].to_vec(), WEIGHTED),
            None if kind.plain.absolute => (x.iter().map(|x| x.abs()).collect(), kind.plain),
            None => {
                let mean = (sum(x.iter().map(|x| x * x)) / 32.0).sqrt();
                (x.iter().map(|x| mean + x.abs()).collect(), kind.plain)
            }
        };
        fit.sums.push(sum(w.iter().copied()));
        let (scale, min) = fit_affine(x, &w, kind.max_code, search, &mut fit.codes[at]);
        fit.scales.push(scale);
        fit.mins.push(min);
    }
    fit
}

/// The largest value, from zero on: NaN is passed over.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, v| if *v > max { *v } else { max })
}

fn encode_q2_k(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let mut fit = fit_affine_block(&Q2_K, x, importance);
    let (mut scales, mut mins) = ([0; 16], [0; 16]);
    let (d, m) = if importance.is_some() {
        let d = fit_positive(&fit.scales, &fit.sums, 15, &mut scales);
        (d, fit_positive(&fit.mins, &fit.sums, 15, &mut mins))
    } else {
        let (max_scale, max_min) = (largest(&fit.scales), largest(&fit.mins));
        for (max, values, codes) in [(max_scale, &fit.scales, &mut scales), (max_min, &fit.mins, &mut mins)] {
            if max > 0.0 {
                let inverse = 15.0 / max;
                codes.iter_mut().zip(values).for_each(|(code, v)| *code = nearest(inverse * v) as u8);
            }
        }
        (max_scale / 15.0, max_min / 15.0)
    };
    let d = store_f16(d, &mut out[80..82]);
    let m = store_f16(m, &mut out[82..84]);
    for j in 0..16 {
        out[j] = scales[j] | mins[j] << 4;
        let (scale, min) = (d * f32::from(out[j] & 15), m * f32::from(out[j] >> 4));
        requantize(&x[16 * j..][..16], scale, min, 0, 3, &mut fit.codes[16 * j..][..16]);
    }
    superblock::pack_crumbs(&fit.codes, &mut out[16..80]);
}

fn encode_q4_k_or_q5_k(kind: &Affine, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let mut fit = fit_affine_block(kind, x, importance);
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    let (d, m) = if importance.is_some() {
        let d = fit_positive(&fit.scales, &fit.sums, kind.max_level, &mut scales);
        (d, fit_positive(&fit.mins, &fit.sums, kind.max_level, &mut mins))
    } else {
        let (max_scale, max_min) = (largest(&fit.scales), largest(&fit.mins));
        for (max, values, codes) in [(max_scale, &fit.scales, &mut scales), (max_min, &fit.mins, &mut mins)] {
            let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
            codes.iter_mut().zip(values).for_each(|(code, v)| *code = nearest(inverse * v) as u8);
        }
        (max_scale / 63.0, max_min / 63.0)
    };
    // Q4_K with importance is the one form that lets codes above 63 through.
    if importance.is_none() || kind.max_code == 31 {
        scales.iter_mut().chain(&mut mins).for_each(|code| *code = (*code).min(63));
    }
    let d = store_f16(d, &mut out[..2]);
    let m = store_f16(m, &mut out[2..4]);
    superblock::pack_pairs(&scales, &mins, &mut out[4..16]);
    for j in 0..8 {
        let (scale, min) = superblock::unpack_pair(&out[4..16], j);
        let (scale, min) = (d * f32::from(scale), m * f32::from(min));
        requantize(&x[32 * j..][..32], scale, min, 0, i32::from(kind.max_code), &mut fit.codes[32 * j..][..32]);
    }
    if kind.max_code == 31 {
        superblock::pack_bit(&fit.codes, 4, &mut out[16..48]);
        superblock::pack_nibbles(&fit.codes, &mut out[48..176]);
    } else {
        superblock::pack_nibbles(&fit.codes, &mut out[16..144]);
    }
}

/// The value of largest magnitude, the first of equals: NaN is passed over.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold((0.0, 0.0), |(most, at), v| if v.abs() > most { (v.abs(), *v) } else { (most, at) }).1
}

/// `make_qx_quants` with the weights given: the scale, and codes from zero on.
fn fit_symmetric(x: &[f32], w: &[f32], half: i32, codes: &mut [u8]) -> f32 {
    let max = extreme(x);
    if max.abs() < 1e-15 {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, x: f32| nearest(inverse * x).clamp(-half, half - 1);
    let sums = |inverse: f32| {
        x.iter().zip(w).fold((0.0f32, 0.0f32), |(lx, l2), (x, w)| {
            let l = code(inverse, *x) as f32;
            (lx + w * x * l, l2 + w * l * l)
        })
    };
    let mut inverse = -(half as f32) / max;
    let (lx, l2) = sums(inverse);
    let mut scale = if l2 == 0.0 { 0.0 } else { lx / l2 };
    let mut best = scale * lx;
    for step in (-9i8..=9).filter(|step| *step != 0) {
        let tried = -(half as f32 + 0.1 * f32::from(step)) / max;
        let (lx, l2) = sums(tried);
        if l2 > 0.0 && lx * lx > best * l2 {
            scale = lx / l2;
            best = scale * lx;
            inverse = tried;
        }
    }
    codes.iter_mut().zip(x).for_each(|(out, x)| *out = (code(inverse, *x) + half) as u8);
    scale
}

/// `make_q3_quants`, which refines codes one by one: the scale, and codes from zero on.
fn fit_q3(x: &[f32], codes: &mut [u8]) -> f32 {
    let max = extreme(x);
    if max.abs() < 1e-15 {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -4.0 / max;
    let mut levels: Vec<i32> = x.iter().map(|x| nearest(inverse * x).clamp(-4, 3)).collect();
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for (x, l) in x.iter().zip(&levels) {
        let (w, l) = (x * x, *l as f32);
        sum_lx += w * x * l;
        sum_l2 += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (x, level) in x.iter().zip(&mut levels) {
            let (w, old) = (x * x, *level as f32);
            let mut lx = sum_lx - w * x * old;
            if lx > 0.0 {
                let mut l2 = sum_l2 - w * old * old;
                let new = nearest(x * l2 / lx).clamp(-4, 3);
                if new != *level {
                    lx += w * x * new as f32;
                    l2 += w * new as f32 * new as f32;
                    if l2 > 0.0 && lx * lx * sum_l2 > sum_lx * sum_lx * l2 {
                        (*level, sum_lx, sum_l2, changed) = (new, lx, l2, true);
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    codes.iter_mut().zip(&levels).for_each(|(code, level)| *code = (level + 4) as u8);
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

fn encode_q3_k(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let mut codes = [0; LEN];
    let mut scales = [0.0; 16];
    let mut levels = [0; 16];
    let d = if let Some(importance) = importance {
        let weights = importance_weights(x, importance, 2.0);
        let mut sums = [0.0; 16];
        for j in 0..16 {
            let at = 16 * j..16 * j + 16;
            sums[j] = sum(weights[at.clone()].iter().copied());
            scales[j] = fit_symmetric(&x[at.clone()], &weights[at.clone()], 4, &mut codes[at]);
        }
        fit_symmetric(&scales, &sums, 32, &mut levels)
    } else {
        for j in 0..16 {
            scales[j] = fit_q3(&x[16 * j..][..16], &mut codes[16 * j..][..16]);
        }
        let max = extreme(&scales);
        if max == 0.0 {
            0.0
        } else {
            let inverse = -32.0 / max;
            for (level, scale) in levels.iter_mut().zip(scales) {
                *level = ((nearest(inverse * scale) as i8).clamp(-32, 31) + 32).cast_unsigned();
            }
            1.0 / inverse
        }
    };
    superblock::pack_sixteen(&levels, &mut out[96..108]);
    let d = store_f16(d, &mut out[108..110]);
    for j in 0..16 {
        let scale = d * (f32::from(levels[j]) - 32.0);
        requantize(&x[16 * j..][..16], scale, 0.0, -4, 3, &mut codes[16 * j..][..16]);
    }
    superblock::pack_bit(&codes, 2, &mut out[..32]);
    superblock::pack_crumbs(&codes, &mut out[32..96]);
}

fn encode_q6_k(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let mut codes = [0; LEN];
    let mut scales = [0.0; 16];
    for (j, scale) in scales.iter_mut().enumerate() {
        let at = 16 * j..16 * j + 16;
        let w = importance.map_or_else(|| x[at.clone()].iter().map(|x| x * x).collect(), |qw| qw[at.clone()].to_vec());
        *scale = fit_symmetric(&x[at.clone()], &w, 32, &mut codes[at]);
    }
    let max = extreme(&scales);
    if max.abs() < 1e-15 {
        out.fill(0);
        return;
    }
    let inverse = -128.0 / max;
    let d = store_f16(1.0 / inverse, &mut out[208..210]);
    for j in 0..16 {
        let level = nearest(inverse * scales[j]).min(127) as i8;
        out[192 + j] = level.cast_unsigned();
        requantize(&x[16 * j..][..16], d * f32::from(level), 0.0, -32, 31, &mut codes[16 * j..][..16]);
    }
    let (low, high) = out[..192].split_at_mut(128);
    superblock::pack_six_bits(&codes, low, high);
}

/// Encodes rows as K type `kind`.
pub(super) fn encode(kind: TensorType, values: &[f32], columns: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, out)) in values.chunks_exact(LEN).zip(out.chunks_exact_mut(kind.block_bytes())).enumerate() {
        let importance = importance.map(|importance| &importance[i * LEN % columns..][..LEN]);
        match kind {
            TensorType::Q2_K => encode_q2_k(x, importance, out),
            TensorType::Q3_K => encode_q3_k(x, importance, out),
            TensorType::Q4_K => encode_q4_k_or_q5_k(&Q4_K, x, importance, out),
            TensorType::Q5_K => encode_q4_k_or_q5_k(&Q5_K, x, importance, out),
            _ => encode_q6_k(x, importance, out),
        }
    }
}
