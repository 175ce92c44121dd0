//! What works on each row or value alone: embeddings, RMSNorm, rotary embedding, SwiGLU; and the arithmetic that they
//! share. Plain loops, which the compiler turns into vector code.

use super::matrix::{Matrix, each_row, each_two_rows};
use crate::arch::Heads;
use crate::engine::Batch;
use crate::error::{Error, Result};

/// e^x to two units in the last place (the polynomial of Cephes' `expf`, Moshier 1984), written so that it becomes
/// vector code, which a call into the system's library would not. x is clamped to -87..88.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding this rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, of which the first has few bits.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const TERMS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * LN2[0] - whole * LN2[1];
    let sum = TERMS[1..].iter().fold(TERMS[0], |sum, term| sum * rest + term);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    (sum * rest * rest + rest + 1.0) * power
}

/// The sum of products, in f64 and in an order that does not depend on threads.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (a_runs, a_rest) = a.as_chunks::<LANES>();
    let (b_runs, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f64; LANES];
    for (a, b) in a_runs.iter().zip(b_runs) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + rest
}

/// `out += x`.
pub(super) fn add(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

pub(super) fn embed(table: &Matrix, batch: &Batch) -> Result<Matrix> {
    let (cols, width) = (table.cols(), table.width());
    check_tokens(table, batch.tokens.iter())?;
    let values = table.values();
    let mut out = vec![0.0; batch.tokens.len() * cols];
    each_row(&mut out, cols, |row, out| {
        let start = batch.tokens[row] as usize * width;
        out.copy_from_slice(&values[start..start + cols]);
    });
    Ok(Matrix::new(out, batch.tokens.len(), cols, cols))
}

/// Refuses tokens that the table has no row for.
pub(super) fn check_tokens<'t>(table: &Matrix, tokens: impl Iterator<Item = &'t u32>) -> Result<()> {
    let rows = table.rows();
    match tokens.max() {
        Some(token) if *token as usize >= rows => Err(Error::inconsistent(
            format!("the data has the token {token}, and the model's embedding has {rows} rows"),
            "use the tokenizer that came with the model",
        )),
        _ => Ok(()),
    }
}

pub(super) fn normalize(x: &Matrix, weight: &[f32], epsilon: f32, padding: usize) -> (Matrix, Vec<f32>) {
    let (rows, cols, x_width) = (x.rows(), x.cols(), x.width());
    let width = cols + padding;
    let (mut out, mut inverse) = (vec![0.0; rows * width], vec![0.0; rows]);
    let values = x.values();
    each_two_rows(&mut out, width, &mut inverse, 1, |row, out, inverse| {
        let x = &values[row * x_width..][..cols];
        let mean = dot(x, x) / cols as f64;
        let root = (1.0 / (mean + f64::from(epsilon)).sqrt()) as f32;
        inverse[0] = root;
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * root * weight;
        }
    });
    (Matrix::new(out, rows, cols, width), inverse)
}

/// With r the inverse root: `dx = r * (w * dy - x * r^2 * mean(w * dy * x))`.
pub(super) fn normalize_back(dy: &Matrix, x: &Matrix, weight: &[f32], inverse: &[f32], mut onto: Matrix) -> Matrix {
    let (cols, width, dy_width, x_width) = (x.cols(), onto.width(), dy.width(), x.width());
    let (dy, x) = (dy.values(), x.values());
    each_row(onto.values_mut(), width, |row, onto| {
        let (dy, x) = (&dy[row * dy_width..][..cols], &x[row * x_width..][..cols]);
        let root = inverse[row];
        let mut sums = [0.0f64; 8];
        for (place, ((dy, x), weight)) in dy.iter().zip(x).zip(weight).enumerate() {
            sums[place % 8] += f64::from(dy * weight) * f64::from(*x);
        }
        let mean = sums.iter().sum::<f64>() / cols as f64;
        let factor = (mean * f64::from(root) * f64::from(root)) as f32;
        for (((onto, dy), x), weight) in onto.iter_mut().zip(dy).zip(x).zip(weight) {
            *onto += root * (dy * weight - x * factor);
        }
    });
    onto
}

pub(super) fn rotate(
    mut qkv: Matrix,
    heads: Heads,
    tables: &[Vec<f32>; 2],
    batch: &Batch,
    back: bool,
) -> Result<Matrix> {
    let (width, half) = (qkv.width(), heads.size / 2);
    let [cos, sin] = tables;
    let positions = cos.len().min(sin.len()) / half.max(1);
    if batch.positions.iter().any(|position| *position as usize >= positions) {
        return Err(Error::bug(
            format!("a conversation is longer than the {positions} positions that were prepared"),
            "report this: conversations should have been cut before",
        ));
    }
    let sign = if back { -1.0 } else { 1.0 };
    each_row(qkv.values_mut(), width, |row, values| {
        let start = batch.positions[row] as usize * half;
        let (cos, sin) = (&cos[start..start + half], &sin[start..start + half]);
        let rotated = (heads.query + heads.key) * heads.size;
        for head in values[..rotated].chunks_exact_mut(heads.size) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let sin = sign * sin;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
    Ok(qkv)
}

pub(super) fn gate(gate_up: &Matrix, padding: usize) -> Matrix {
    let (rows, cols, in_width) = (gate_up.rows(), gate_up.cols() / 2, gate_up.width());
    let width = cols + padding;
    let values = gate_up.values();
    let mut out = vec![0.0; rows * width];
    each_row(&mut out, width, |row, out| {
        let (gate, up) = values[row * in_width..][..2 * cols].split_at(cols);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    });
    Matrix::new(out, rows, cols, width)
}

pub(super) fn gate_back(dy: &Matrix, mut gate_up: Matrix) -> Matrix {
    let (cols, width, dy_width) = (gate_up.cols() / 2, gate_up.width(), dy.width());
    let dy = dy.values();
    each_row(gate_up.values_mut(), width, |row, values| {
        let (gate, up) = values[..2 * cols].split_at_mut(cols);
        for ((dy, gate), up) in dy[row * dy_width..][..cols].iter().zip(gate).zip(up) {
            let share = 1.0 / (1.0 + exp(-*gate));
            let active = *gate * share;
            let slope = share * (1.0 + *gate * (1.0 - share));
            (*gate, *up) = (dy * *up * slope, dy * active);
        }
    });
    gate_up
}
