//! Causal attention within segments, forward and backward. The scores of one head are made for a run of queries at a
//! time, against the keys up to the last of them, and never kept: the backward pass makes them again.

use std::ops::Range;

use super::elementwise::{add, dot, exp};
use super::matrix::{Matrix, View, each_row, each_two_rows, misfit, times, times_transposed, transposed_times};
use crate::arch::Heads;
use crate::engine::{Batch, Columns, KeysValues};
use crate::error::Result;

/// Queries whose scores are made at once.
const QUERIES: usize = 256;

/// A run of queries of one head and of one segment, and the keys that they may see.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The first query's row.
    row: usize,
    /// The first row of the segment's keys.
    start: usize,
    /// Keys that queries before the run see.
    before: usize,
    queries: usize,
    head: usize,
}

impl Run {
    /// All runs, where keys of the segments begin at `starts`.
    fn all<'b>(heads: Heads, batch: &'b Batch, starts: &'b [u32]) -> impl Iterator<Item = Self> + 'b {
        batch.starts.windows(2).zip(starts).flat_map(move |(pair, keys)| {
            let (first, end) = (pair[0] as usize, pair[1] as usize);
            // Queries that are the last of a longer sequence see keys of tokens before them.
            let known = batch.positions.get(first).map_or(0, |position| *position as usize);
            (0..heads.query).flat_map(move |head| {
                (first..end).step_by(QUERIES).map(move |row| Self {
                    row,
                    start: *keys as usize,
                    before: known + row - first,
                    queries: QUERIES.min(end - row),
                    head,
                })
            })
        })
    }

    /// Rows of the keys that the last query sees.
    fn keys(self) -> Range<usize> {
        self.start..self.start + self.before + self.queries
    }

    /// Rows of the queries.
    fn rows(self) -> Range<usize> {
        self.row..self.row + self.queries
    }

    /// The columns of the run's queries, and of its keys among all keys.
    fn columns(self, heads: Heads) -> [Range<usize>; 2] {
        let key = self.head / (heads.query / heads.key);
        [self.head, key].map(|n| n * heads.size..(n + 1) * heads.size)
    }

    /// The run's queries, keys and values.
    fn parts<'m>(
        self,
        queries: Columns<'m, Matrix>,
        seen: KeysValues<'m, Matrix>,
        heads: Heads,
    ) -> Result<[View<'m>; 3]> {
        let [own, shared] = self.columns(heads);
        let part = |of: Columns<'m, Matrix>, rows: Range<usize>, columns: &Range<usize>| {
            of.matrix.part(rows, of.first + columns.start..of.first + columns.end)
        };
        Ok([
            part(queries, self.rows(), &own)?,
            part(seen.keys, self.keys(), &shared)?,
            part(seen.values, self.keys(), &shared)?,
        ])
    }
}

pub(super) fn attend(
    queries: Columns<'_, Matrix>,
    seen: KeysValues<'_, Matrix>,
    heads: Heads,
    batch: &Batch,
    padding: usize,
) -> Result<(Matrix, Vec<f32>)> {
    let (rows, cols) = (batch.tokens.len(), heads.query * heads.size);
    let (width, scale) = (cols + padding, heads.scale());
    let starts = seen.starts.unwrap_or(&batch.starts);
    if queries.matrix.rows() != rows || starts.len() + 1 < batch.starts.len() {
        return Err(misfit("queries or keys of another batch"));
    }
    let (mut out, mut logs) = (Matrix::zeros(rows, cols, width), vec![0.0; rows * heads.query]);
    let mut sums = [[0.0f32; 2]; QUERIES];
    for run in Run::all(heads, batch, starts) {
        let [q, k, v] = run.parts(queries, seen, heads)?;
        let mut scores = times_transposed(q, k)?;
        let sums = &mut sums.as_flattened_mut()[..2 * run.queries];
        each_two_rows(scores.values_mut(), run.keys().len(), sums, 2, |query, scores, sum| {
            let (seen, hidden) = scores.split_at_mut(run.before + query + 1);
            let most = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            seen.iter_mut().for_each(|score| *score = exp((*score - most) * scale));
            hidden.fill(0.0);
            let total = sum_of(seen);
            sum.copy_from_slice(&[total, most * scale + total.ln()]);
        });
        let heads_out = times(scores.whole(), v)?;
        let [columns, _] = run.columns(heads);
        for (query, found) in heads_out.values().chunks_exact(heads.size).enumerate() {
            let [total, log] = [sums[2 * query], sums[2 * query + 1]];
            let row = run.row + query;
            logs[row * heads.query + run.head] = log;
            for (out, found) in out.values_mut()[row * width..][columns.clone()].iter_mut().zip(found) {
                *out = found / total;
            }
        }
    }
    Ok((out, logs))
}

/// The sum, in several SIMD elements.
fn sum_of(values: &[f32]) -> f32 {
    let (runs, rest) = values.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for run in runs {
        for lane in 0..8 {
            sums[lane] += run[lane];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// With p the shares and D = sum(dout * out) of a query: `dv = p^T dout`, `ds = p * (dout v^T - D) * scale`,
/// `dq = ds k`, `dk = ds^T q`.
pub(super) fn attend_back(
    dout: &Matrix,
    qkv: &Matrix,
    out: &Matrix,
    logs: &[f32],
    heads: Heads,
    batch: &Batch,
) -> Result<Matrix> {
    let (width, size) = (heads.row(), heads.size);
    let (queries, seen) = (Columns::queries(qkv), KeysValues::of(qkv, heads));
    let mut result = Matrix::zeros(qkv.rows(), width, width);
    let deltas = deltas(dout, out, heads);
    for run in Run::all(heads, batch, &batch.starts) {
        let [q, k, v] = run.parts(queries, seen, heads)?;
        let [own, shared] = run.columns(heads);
        let dout = dout.part(run.rows(), own.clone())?;
        let mut shares = times_transposed(q, k)?;
        let mut dshares = times_transposed(dout, v)?;
        let (of_query, keys) = (|query: usize| (run.row + query) * heads.query + run.head, run.keys().len());
        each_two_rows(shares.values_mut(), keys, dshares.values_mut(), keys, |query, shares, dshares| {
            let (log, delta) = (logs[of_query(query)], deltas[of_query(query)]);
            let seen = run.before + query + 1;
            for (share, dshare) in shares[..seen].iter_mut().zip(&mut dshares[..seen]) {
                *share = exp(*share * heads.scale() - log);
                *dshare = *share * (*dshare - delta) * heads.scale();
            }
            shares[seen..].fill(0.0);
            dshares[seen..].fill(0.0);
        });
        let found = [
            (times(dshares.whole(), k)?, run.row, own.start),
            (transposed_times(dshares.whole(), q)?, run.start, seen.keys.first + shared.start),
            (transposed_times(shares.whole(), dout)?, run.start, seen.values.first + shared.start),
        ];
        for (found, first, column) in &found {
            for (row, found) in found.values().chunks_exact(size).enumerate() {
                add(&mut result.values_mut()[(first + row) * width + column..][..size], found);
            }
        }
    }
    Ok(result)
}

/// The sum of `dout * out` of each row and head, `[T, query]`.
fn deltas(dout: &Matrix, out: &Matrix, heads: Heads) -> Vec<f32> {
    let (dout_width, out_width, size) = (dout.width(), out.width(), heads.size);
    let mut deltas = vec![0.0; out.rows() * heads.query];
    let (dout, out) = (dout.values(), out.values());
    each_row(&mut deltas, heads.query, |row, deltas| {
        for (head, delta) in deltas.iter_mut().enumerate() {
            let of = |width: usize| row * width + head * size..row * width + (head + 1) * size;
            *delta = dot(&dout[of(dout_width)], &out[of(out_width)]) as f32;
        }
    });
    deltas
}
