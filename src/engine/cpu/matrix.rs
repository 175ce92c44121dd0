//! Matrices of the processor's engine: rows of f32 in one vector, with views of some rows and columns. Products are the
//! gemm crate's. Also the loops over rows that share the work among threads. One of the rooms with `unsafe`.

use std::num::NonZero;
use std::ops::Range;
use std::sync::OnceLock;

use gemm::{Parallelism, gemm};

use crate::error::{Error, Result};

/// Rows of `cols` values in f32, each with padding columns after them.
#[derive(Debug)]
pub struct Matrix {
    values: Vec<f32>,
    rows: usize,
    cols: usize,
    width: usize,
}

impl Matrix {
    /// Takes `values` as rows of `width`, of which the first `cols` count.
    pub(super) fn new(values: Vec<f32>, rows: usize, cols: usize, width: usize) -> Self {
        debug_assert!(cols <= width && values.len() == rows * width, "a matrix of another shape than its values");
        Self { values, rows, cols, width }
    }

    /// Of zeros.
    pub(super) fn zeros(rows: usize, cols: usize, width: usize) -> Self {
        Self::new(vec![0.0; rows * width], rows, cols, width)
    }

    /// The same values, of which the first `cols` of a row count.
    pub(super) fn with_cols(self, cols: usize) -> Self {
        Self { cols, ..self }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Values from one row to the next.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The values, row by row, padding columns too.
    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// All of it, padding columns too.
    pub(super) fn whole(&self) -> View<'_> {
        View { values: &self.values, rows: self.rows, cols: self.width, row_step: self.width, col_step: 1 }
    }

    /// A view of some columns.
    pub(super) fn columns(&self, start: usize, len: usize) -> Result<View<'_>> {
        self.part(0..self.rows, start..start + len)
    }

    /// A view of some rows, padding columns too.
    pub(super) fn some_rows(&self, rows: Range<usize>) -> Result<View<'_>> {
        self.part(rows, 0..self.width)
    }

    /// A view of some columns of some rows.
    pub(super) fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Result<View<'_>> {
        if rows.end > self.rows || cols.end > self.width {
            let shape = [self.rows, self.width];
            return Err(misfit(&format!("rows {rows:?} and columns {cols:?} of a matrix of {shape:?}")));
        }
        // A view without values may begin at the end.
        let first = (rows.start * self.width + cols.start).min(self.values.len());
        let values = &self.values[first..];
        Ok(View { values, rows: rows.len(), cols: cols.len(), row_step: self.width, col_step: 1 })
    }
}

/// Some values of a matrix: the one at `row`, `col` is `values[row * row_step + col * col_step]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'m> {
    values: &'m [f32],
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl View<'_> {
    fn transposed(self) -> Self {
        let Self { rows, cols, row_step, col_step, .. } = self;
        Self { rows: cols, cols: rows, row_step: col_step, col_step: row_step, ..self }
    }

    /// Whether every value is there.
    fn is_whole(self) -> bool {
        let last = (self.rows.saturating_sub(1)) * self.row_step + self.cols.saturating_sub(1) * self.col_step;
        self.rows == 0 || self.cols == 0 || last < self.values.len()
    }
}

/// `a * b`.
pub(super) fn times(a: View<'_>, b: View<'_>) -> Result<Matrix> {
    let (rows, cols, depth) = (a.rows, b.cols, a.cols);
    if depth != b.rows || !a.is_whole() || !b.is_whole() {
        return Err(misfit(&format!("a product of {rows} x {depth} and {} x {cols} values", b.rows)));
    }
    let mut out = Matrix::zeros(rows, cols, cols);
    if rows == 0 || cols == 0 || depth == 0 {
        return Ok(out);
    }
    let threads = threads();
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    let step = |step: usize| step.cast_signed();
    // SAFETY: the operands' last values are within their slices, as was just seen, and the result has `rows * cols` values,
    // row by row, which nothing else sees.
    unsafe {
        gemm(
            rows,
            cols,
            depth,
            out.values.as_mut_ptr(),
            1,
            step(cols),
            false,
            a.values.as_ptr(),
            step(a.col_step),
            step(a.row_step),
            b.values.as_ptr(),
            step(b.col_step),
            step(b.row_step),
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(out)
}

/// `a * b^T`.
pub(super) fn times_transposed(a: View<'_>, b: View<'_>) -> Result<Matrix> {
    times(a, b.transposed())
}

/// `a^T * b`.
pub(super) fn transposed_times(a: View<'_>, b: View<'_>) -> Result<Matrix> {
    times(a.transposed(), b)
}

/// A mistake of a caller's.
pub(super) fn misfit(what: &str) -> Error {
    Error::bug(format!("the processor was given {what}"), "report this: sizes that were checked don't match")
}

/// Threads that share the work: as `RAYON_NUM_THREADS` says, or one for each core.
fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse::<usize>().ok());
        let allowed = std::thread::available_parallelism().map_or(1, NonZero::get);
        // Two threads of a core share what multiplies.
        asked.filter(|threads| *threads > 0).unwrap_or_else(|| num_cpus::get_physical().clamp(1, allowed))
    })
}

/// Values below which a thread of its own costs more than it saves.
const GRAIN: usize = 1 << 14;

/// Calls `work` with the number of each row of `width` values and the row, on all threads.
pub(super) fn each_row(values: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    each_two_rows(values, width, &mut [], 0, |row, values, _| work(row, values));
}

/// The same for the rows of two matrices at once. What a row becomes must not depend on other rows of these, so that
/// results are the same whatever the number of threads.
pub(super) fn each_two_rows(
    first: &mut [f32],
    width: usize,
    second: &mut [f32],
    second_width: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    if width == 0 {
        return;
    }
    let rows = first.len() / width;
    let threads = threads().min(first.len() / GRAIN).max(1);
    let run = |start: usize, first: &mut [f32], second: &mut [f32]| {
        let mut second = second;
        for (row, values) in first.chunks_exact_mut(width).enumerate() {
            let (others, rest) = second.split_at_mut(second_width);
            work(start + row, values, others);
            second = rest;
        }
    };
    let run = &run;
    std::thread::scope(move |scope| {
        let share = rows.div_ceil(threads).max(1);
        let (mut first, mut second, mut start) = (first, second, 0);
        while rows - start > share {
            let (own, others) = first.split_at_mut(share * width);
            let (own_second, others_second) = second.split_at_mut(share * second_width);
            scope.spawn(move || run(start, own, own_second));
            (first, second) = (others, others_second);
            start += share;
        }
        run(start, first, second);
    });
}
