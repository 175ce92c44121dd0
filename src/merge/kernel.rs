//! The merge kernel: plain Rust whose loops become vector code under the features of `vector`'s wrappers. Every value
//! is one chain of fused multiply-adds in a fixed order, so the width and the blocking can't change a bit of it.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use std::ops::Range;

use super::float::{bf16_to_f32, f32_to_bf16};
use super::{Fault, Float, Merge, NormAxis, Overflow, Term};

/// Columns that are worked on at once: both tiles of `ROWS` rows and `CHUNK` tile rows of `right` fit the L1 cache.
const TILE: usize = 512;
/// Rows that share a load of `right`.
const ROWS: usize = 2;
/// Values that the inner loop handles at once: one AVX-512 or two AVX2 registers a row.
const LANES: usize = 16;
/// Sums that a row norm is made of: value `j` goes to sum `j % NORM_LANES`. Part of the numerics.
const NORM_LANES: usize = 16;

type Tile = [[f32; TILE]; ROWS];

/// See [`Merge::run`].
#[inline(always)]
pub(super) fn run(merge: &Merge<'_>, elements: Range<usize>, out: &mut [u8]) -> Result<(), Fault> {
    let size = merge.out_float.size();
    let rows = elements.start / merge.columns.max(1)..elements.end.div_ceil(merge.columns.max(1));
    let terms = merge.terms_of(&rows);
    let mut left = Vec::new();
    let mut done = 0;
    let mut at = elements.start;
    while at < elements.end {
        let (row, column) = (at / merge.columns, at % merge.columns);
        let in_row = (merge.columns - column).min(elements.end - at);
        // Two whole rows go together where every term covers both or neither.
        let pair = in_row == merge.columns && at + ROWS * merge.columns <= elements.end && pairs(&terms, row);
        let rows = if pair { ROWS } else { 1 };
        let taken = rows * in_row;
        let bytes = &mut out[done * size..(done + taken) * size];
        group(merge, &terms, row..row + rows, column..column + in_row, &mut left, bytes)?;
        at += taken;
        done += taken;
    }
    Ok(())
}

fn pairs(terms: &[Term<'_>], row: usize) -> bool {
    terms.iter().all(|term| term.rows.contains(&row) == term.rows.contains(&(row + 1)))
}

/// Makes and writes `columns` of up to [`ROWS`] rows.
#[inline(always)]
fn group(
    merge: &Merge<'_>,
    terms: &[Term<'_>],
    rows: Range<usize>,
    columns: Range<usize>,
    left: &mut Vec<f32>,
    out: &mut [u8],
) -> Result<(), Fault> {
    let size = merge.out_float.size();
    gather_left(terms, &rows, left);
    let row_gains = match &merge.magnitude {
        Some((magnitude, NormAxis::Row)) => {
            let norms = row_norms(merge, terms, &rows, left);
            std::array::from_fn(|r| magnitude.get(rows.start + r).map_or(1.0, |m| m / norms[r]))
        }
        _ => [1.0; ROWS],
    };
    let mut tile: Tile = [[0.0; TILE]; ROWS];
    let mut start = columns.start;
    while start < columns.end {
        let end = columns.end.min(start + TILE);
        values(merge, terms, &rows, start..end, left, &mut tile);
        for (r, row) in rows.clone().enumerate() {
            let values = &mut tile[r][..end - start];
            match merge.magnitude {
                Some((_, NormAxis::Row)) => values.iter_mut().for_each(|v| *v *= row_gains[r]),
                Some((_, NormAxis::Column)) => {
                    values.iter_mut().zip(&merge.column_gains[start..end]).for_each(|(v, gain)| *v *= gain);
                }
                None => {}
            }
            check(merge, row, start, values)?;
            let offset = (r * columns.len() + start - columns.start) * size;
            narrow(merge.out_float, values, &mut out[offset..offset + values.len() * size]);
        }
        start = end;
    }
    Ok(())
}

/// Widens the rows of every term's left factor, term after term.
fn gather_left(terms: &[Term<'_>], rows: &Range<usize>, left: &mut Vec<f32>) {
    left.clear();
    for term in terms.iter().filter(|term| term.rows.contains(&rows.start)) {
        for row in rows.clone() {
            let at = left.len();
            left.resize(at + term.rank, 0.0);
            term.left.row(row - term.rows.start, &mut left[at..]);
        }
    }
}

/// The values before magnitudes and rounding: `fma(s, acc, w)`, term after term.
#[inline(always)]
fn values(
    merge: &Merge<'_>,
    terms: &[Term<'_>],
    rows: &Range<usize>,
    columns: Range<usize>,
    left: &[f32],
    tile: &mut Tile,
) {
    for (r, row) in rows.clone().enumerate() {
        let values = &mut tile[r][..columns.len()];
        if let Some(bytes) = merge.overwritten.get(&row) {
            let size = merge.overwritten_float.size();
            widen(merge.overwritten_float, &bytes[columns.start * size..columns.end * size], values);
        } else if let Some(encoded) = &merge.encoded {
            encoded.decode(row, columns.clone(), values);
        } else {
            let size = merge.base_float.size();
            let at = (row * merge.columns + columns.start) * size;
            widen(merge.base_float, &merge.base[at..at + columns.len() * size], values);
        }
        if let Some(stored) = merge.rounded_first {
            round(stored, values);
        }
    }
    let mut left = left;
    for term in terms.iter().filter(|term| term.rows.contains(&rows.start)) {
        let (own, rest) = left.split_at(term.rank * rows.len());
        if rows.len() == ROWS {
            add_term::<ROWS>(term, own, merge.columns, columns.clone(), tile);
        } else {
            add_term::<1>(term, own, merge.columns, columns.clone(), tile);
        }
        left = rest;
    }
}

/// `tile = fma(scale, left @ right, tile)` for `R` rows.
#[inline(always)]
fn add_term<const R: usize>(term: &Term<'_>, left: &[f32], stride: usize, columns: Range<usize>, tile: &mut Tile) {
    let n = columns.len();
    let mut acc: Tile = [[0.0; TILE]; ROWS];
    let mut k = 0;
    while k < term.rank {
        let right = &term.right[k * stride + columns.start..];
        k += match term.rank - k {
            8.. => accumulate::<R, 8>(left, term.rank, k, right, stride, n, &mut acc),
            4.. => accumulate::<R, 4>(left, term.rank, k, right, stride, n, &mut acc),
            2.. => accumulate::<R, 2>(left, term.rank, k, right, stride, n, &mut acc),
            _ => accumulate::<R, 1>(left, term.rank, k, right, stride, n, &mut acc),
        };
    }
    for r in 0..R {
        for (value, acc) in tile[r][..n].iter_mut().zip(&acc[r][..n]) {
            *value = term.scale.mul_add(*acc, *value);
        }
    }
}

/// Continues the chains of `acc` with steps `k..k + K`, and returns `K`.
#[inline(always)]
fn accumulate<const R: usize, const K: usize>(
    left: &[f32],
    rank: usize,
    k: usize,
    right: &[f32],
    stride: usize,
    n: usize,
    acc: &mut Tile,
) -> usize {
    // Written out, since `array::from_fn` is not inlined into a function with vector features and so loses them.
    let mut factors = [[0.0f32; K]; R];
    for (r, factors) in factors.iter_mut().enumerate() {
        factors.copy_from_slice(&left[r * rank + k..r * rank + k + K]);
    }
    let mut lines: [&[f32]; K] = [&[]; K];
    for (i, line) in lines.iter_mut().enumerate() {
        *line = &right[i * stride..i * stride + n];
    }
    let whole = n - n % LANES;
    let mut j = 0;
    while j < whole {
        let mut lanes = [[0.0f32; LANES]; R];
        for r in 0..R {
            lanes[r].copy_from_slice(&acc[r][j..j + LANES]);
        }
        for i in 0..K {
            let line = &lines[i][j..j + LANES];
            for r in 0..R {
                for l in 0..LANES {
                    lanes[r][l] = factors[r][i].mul_add(line[l], lanes[r][l]);
                }
            }
        }
        for r in 0..R {
            acc[r][j..j + LANES].copy_from_slice(&lanes[r]);
        }
        j += LANES;
    }
    for r in 0..R {
        for j in whole..n {
            for i in 0..K {
                acc[r][j] = factors[r][i].mul_add(lines[i][j], acc[r][j]);
            }
        }
    }
    K
}

/// Norms of whole rows: squares summed in f64, in [`NORM_LANES`] sums that are then added as a tree.
#[inline(always)]
fn row_norms(merge: &Merge<'_>, terms: &[Term<'_>], rows: &Range<usize>, left: &[f32]) -> [f32; ROWS] {
    let mut sums = [[0.0f64; NORM_LANES]; ROWS];
    let mut tile: Tile = [[0.0; TILE]; ROWS];
    let mut start = 0;
    while start < merge.columns {
        let end = merge.columns.min(start + TILE);
        values(merge, terms, rows, start..end, left, &mut tile);
        for r in 0..rows.len() {
            // TILE is a multiple of NORM_LANES, so a value's place in the tile names its sum.
            for chunk in tile[r][..end - start].chunks(NORM_LANES) {
                for (sum, value) in sums[r].iter_mut().zip(chunk) {
                    *sum += f64::from(*value) * f64::from(*value);
                }
            }
        }
        start = end;
    }
    sums.map(|mut sums| {
        let mut half = NORM_LANES / 2;
        while half > 0 {
            for l in 0..half {
                sums[l] += sums[l + half];
            }
            half /= 2;
        }
        sums[0].sqrt() as f32
    })
}

/// Norms of whole columns: squares summed in f64, row after row.
#[inline(always)]
pub(super) fn column_norms(merge: &Merge<'_>) -> Vec<f32> {
    let mut sums = vec![0.0f64; merge.columns];
    let terms = merge.terms_of(&(0..merge.rows()));
    let mut left = Vec::new();
    let mut tile: Tile = [[0.0; TILE]; ROWS];
    for row in 0..merge.rows() {
        gather_left(&terms, &(row..row + 1), &mut left);
        let mut start = 0;
        while start < merge.columns {
            let end = merge.columns.min(start + TILE);
            values(merge, &terms, &(row..row + 1), start..end, &left, &mut tile);
            for (sum, value) in sums[start..end].iter_mut().zip(&tile[0]) {
                *sum += f64::from(*value) * f64::from(*value);
            }
            start = end;
        }
    }
    sums.into_iter().map(|sum| sum.sqrt() as f32).collect()
}

/// The smallest magnitude, as bits, that does not round to a finite value.
fn limit(float: Float) -> u32 {
    match float {
        Float::Bf16 => 0x7f7f_8000,
        Float::F16 => 0x477f_f000,
        Float::F32 => 0x7f80_0000,
    }
}

/// Finds, and clamps where asked to, what the output type can't hold.
#[inline(always)]
fn check(merge: &Merge<'_>, row: usize, column: usize, values: &mut [f32]) -> Result<(), Fault> {
    let largest = values.iter().fold(0, |largest: u32, v| largest.max(v.to_bits() & 0x7fff_ffff));
    if largest < limit(merge.out_float) { Ok(()) } else { check_each(merge, row, column, values) }
}

#[cold]
fn check_each(merge: &Merge<'_>, row: usize, column: usize, values: &mut [f32]) -> Result<(), Fault> {
    for (j, v) in values.iter_mut().enumerate() {
        let fault = Fault { row, column: column + j, value: *v };
        if !v.is_finite() {
            if merge.must_be_finite {
                return Err(fault);
            }
        } else if v.to_bits() & 0x7fff_ffff >= limit(merge.out_float) {
            match merge.overflow {
                Overflow::Refuse => return Err(fault),
                Overflow::Clamp => *v = merge.out_float.max().copysign(*v),
            }
        }
    }
    Ok(())
}

/// Rounds values to `float` and back.
fn round(float: Float, values: &mut [f32]) {
    let mut bytes = [0; 4 * TILE];
    let bytes = &mut bytes[..values.len() * float.size()];
    float.narrow(values, bytes);
    float.widen(bytes, values);
}

/// As [`Float::widen`], with the common case inlined for the caller's vector features.
#[inline(always)]
fn widen(float: Float, bytes: &[u8], out: &mut [f32]) {
    if float == Float::Bf16 {
        for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = bf16_to_f32(u16::from_le_bytes(*b));
        }
    } else {
        float.widen(bytes, out);
    }
}

/// As [`Float::narrow`], likewise.
#[inline(always)]
fn narrow(float: Float, values: &[f32], out: &mut [u8]) {
    if float == Float::Bf16 {
        for (v, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
            *out = f32_to_bf16(*v).to_le_bytes();
        }
    } else {
        float.narrow(values, out);
    }
}
