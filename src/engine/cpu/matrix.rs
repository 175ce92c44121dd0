//! Matrices of the processor's engine: candle's tensors, which multiply, with their values as slices, which loops read
//! and change where they lie. Also the loops over rows that share the work among threads.

use std::cell::RefCell;
use std::ops::Deref;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};

use crate::error::{Error, Result};

/// Rows of `cols` values in f32, each with spare columns behind them.
#[derive(Debug)]
pub struct Matrix {
    /// `[rows, cols + room]`, contiguous, shared with no other matrix.
    tensor: Tensor,
    cols: usize,
}

impl Matrix {
    /// Takes `values` as rows of `width`, of which the first `cols` count.
    pub(super) fn new(values: Vec<f32>, rows: usize, cols: usize, width: usize) -> Result<Self> {
        Ok(Self { tensor: tensor(values, rows, width)?, cols })
    }

    /// A product, all of whose columns count.
    pub(super) fn of(tensor: Tensor) -> Self {
        let cols = tensor.dims().last().copied().unwrap_or(0);
        Self { tensor, cols }
    }

    /// The same values, of which the first `cols` of a row count.
    pub(super) fn with_cols(self, cols: usize) -> Self {
        Self { cols, ..self }
    }

    pub(super) fn rows(&self) -> usize {
        self.tensor.dims().first().copied().unwrap_or(0)
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Values from one row to the next.
    pub(super) fn width(&self) -> usize {
        self.tensor.dims().last().copied().unwrap_or(0)
    }

    /// All of it, spare columns too.
    pub(super) fn whole(&self) -> &Tensor {
        &self.tensor
    }

    /// A view of some columns.
    pub(super) fn columns(&self, start: usize, len: usize) -> Result<Tensor> {
        self.tensor.narrow(1, start, len).map_err(failed)
    }

    /// A view of some columns of some rows.
    pub(super) fn part(&self, [row, rows]: [usize; 2], [col, cols]: [usize; 2]) -> Result<Tensor> {
        self.tensor.narrow(0, row, rows).and_then(|part| part.narrow(1, col, cols)).map_err(failed)
    }

    /// The values, row by row, spare columns too.
    pub(super) fn values(&self) -> Values<'_> {
        values(&self.tensor)
    }

    /// Changes the values in place.
    pub(super) fn change(&mut self, work: impl FnOnce(&mut [f32])) -> Result<()> {
        change(&self.tensor, work)
    }
}

/// `[rows, cols]` in f32: candle takes the type from the values, and a literal's would be f64.
pub(super) fn tensor(values: Vec<f32>, rows: usize, cols: usize) -> Result<Tensor> {
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).map_err(failed)
}

/// The values of a contiguous tensor that was made here, locked for reading.
pub(super) struct Values<'t>(StorageRef<'t>);

pub(super) fn values(tensor: &Tensor) -> Values<'_> {
    Values(tensor.storage_and_layout().0)
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.0 {
            Storage::Cpu(CpuStorage::F32(values)) => values,
            // Every tensor here is in f32 and on the processor.
            _ => &[],
        }
    }
}

/// Changes the values of a contiguous tensor in place.
pub(super) fn change(tensor: &Tensor, work: impl FnOnce(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&Change(RefCell::new(Some(work)))).map_err(failed)
}

/// Work on the values of a tensor, done once: candle's way to write to one.
struct Change<W>(RefCell<Option<W>>);

impl<W: FnOnce(&mut [f32])> InplaceOp1 for Change<W> {
    fn name(&self) -> &'static str {
        "change"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        if let (CpuStorage::F32(values), Some(work)) = (storage, self.0.take()) {
            work(values);
        }
        Ok(())
    }
}

/// `a * b`.
pub(super) fn times(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.matmul(b).map_err(failed)
}

/// `a * b^T`.
pub(super) fn times_transposed(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.t().and_then(|b| a.matmul(&b)).map_err(failed)
}

/// `a^T * b`.
pub(super) fn transposed_times(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.t().and_then(|a| a.matmul(b)).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
pub(super) fn failed(error: candle_core::Error) -> Error {
    Error::bug(format!("a product of matrices failed: {error}"), "report this: sizes that were checked don't fit")
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
    let threads = candle_core::utils::get_num_threads().min(first.len() / GRAIN).max(1);
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
