//! Causal attention within segments, forward and backward. The scores of one head are made for a run of queries at a
//! time, against the keys up to the last of them, and never kept: the backward pass makes them again.

use std::ops::Range;

use candle_core::Tensor;

use super::elementwise::{add, dot, exp};
use super::matrix::{Matrix, change, each_row, each_two_rows, times, times_transposed, transposed_times, values};
use crate::arch::Heads;
use crate::engine::Batch;
use crate::error::Result;

/// Queries whose scores are made at once.
const QUERIES: usize = 256;

/// A run of queries of one head and of one segment, and the keys that they may see.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The first row of the segment.
    start: usize,
    /// Queries before the run in its segment.
    before: usize,
    queries: usize,
    head: usize,
}

impl Run {
    fn all(heads: Heads, batch: &Batch) -> impl Iterator<Item = Self> {
        batch.starts.windows(2).flat_map(move |pair| {
            let (start, end) = (pair[0] as usize, pair[1] as usize);
            (0..heads.query).flat_map(move |head| {
                (0..end - start).step_by(QUERIES).map(move |before| Self {
                    start,
                    before,
                    queries: QUERIES.min(end - start - before),
                    head,
                })
            })
        })
    }

    /// The first query's row.
    fn row(self) -> usize {
        self.start + self.before
    }

    /// Rows of the keys that the last query sees.
    fn keys(self) -> usize {
        self.before + self.queries
    }

    /// The columns of the run's queries, keys and values.
    fn columns(self, heads: Heads) -> [Range<usize>; 3] {
        let key = self.head / (heads.query / heads.key);
        [self.head, heads.query + key, heads.query + heads.key + key].map(|n| n * heads.size..(n + 1) * heads.size)
    }

    fn parts(self, qkv: &Matrix, heads: Heads) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.columns(heads);
        let keys = [self.start, self.keys()];
        Ok([
            qkv.part([self.row(), self.queries], [q.start, heads.size])?,
            qkv.part(keys, [k.start, heads.size])?,
            qkv.part(keys, [v.start, heads.size])?,
        ])
    }
}

pub(super) fn attend(qkv: &Matrix, heads: Heads, batch: &Batch, room: usize) -> Result<(Matrix, Vec<f32>)> {
    let (rows, cols) = (qkv.rows(), heads.query * heads.size);
    let (width, scale) = (cols + room, heads.scale());
    let (mut out, mut logs) = (vec![0.0; rows * width], vec![0.0; rows * heads.query]);
    let mut sums = [[0.0f32; 2]; QUERIES];
    for run in Run::all(heads, batch) {
        let [q, k, v] = run.parts(qkv, heads)?;
        let scores = times_transposed(&q, &k)?;
        let sums = &mut sums.as_flattened_mut()[..2 * run.queries];
        change(&scores, |scores| {
            each_two_rows(scores, run.keys(), sums, 2, |query, scores, sum| {
                let (seen, hidden) = scores.split_at_mut(run.before + query + 1);
                let most = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                seen.iter_mut().for_each(|score| *score = exp((*score - most) * scale));
                hidden.fill(0.0);
                let total = sum_of(seen);
                sum.copy_from_slice(&[total, most * scale + total.ln()]);
            });
        })?;
        let heads_out = times(&scores, &v)?;
        let columns = run.head * heads.size..(run.head + 1) * heads.size;
        for (query, found) in values(&heads_out).chunks_exact(heads.size).enumerate() {
            let [total, log] = [sums[2 * query], sums[2 * query + 1]];
            let row = run.row() + query;
            logs[row * heads.query + run.head] = log;
            for (out, found) in out[row * width..][columns.clone()].iter_mut().zip(found) {
                *out = found / total;
            }
        }
    }
    Ok((Matrix::new(out, rows, cols, width)?, logs))
}

/// The sum, in several lanes.
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
    let (rows, width, size) = (qkv.rows(), heads.row(), heads.size);
    let mut result = vec![0.0; rows * width];
    let deltas = deltas(dout, out, heads);
    for run in Run::all(heads, batch) {
        let [q, k, v] = run.parts(qkv, heads)?;
        let dout = dout.part([run.row(), run.queries], [run.head * size, size])?;
        let shares = times_transposed(&q, &k)?;
        let dshares = times_transposed(&dout, &v)?;
        let of_query = |query: usize| (run.row() + query) * heads.query + run.head;
        let mut inner = Ok(());
        change(&shares, |shares| {
            inner = change(&dshares, |dshares| {
                each_two_rows(shares, run.keys(), dshares, run.keys(), |query, shares, dshares| {
                    let (log, delta) = (logs[of_query(query)], deltas[of_query(query)]);
                    let seen = run.before + query + 1;
                    for (share, dshare) in shares[..seen].iter_mut().zip(&mut dshares[..seen]) {
                        *share = exp(*share * heads.scale() - log);
                        *dshare = *share * (*dshare - delta) * heads.scale();
                    }
                    shares[seen..].fill(0.0);
                    dshares[seen..].fill(0.0);
                });
            });
        })?;
        inner?;
        let found = [times(&dshares, &k)?, transposed_times(&dshares, &q)?, transposed_times(&shares, &dout)?];
        let first = [run.row(), run.start, run.start];
        for ((found, first), columns) in found.iter().zip(first).zip(run.columns(heads)) {
            for (row, found) in values(found).chunks_exact(size).enumerate() {
                add(&mut result[(first + row) * width..][columns.clone()], found);
            }
        }
    }
    Matrix::new(result, rows, width, width)
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
