//! Matrices and vectors on the GPU.

use super::card::{Card, broken};
use crate::error::Result;
use crate::gpu::{At, DeviceMemory};

/// Rows of bf16, each with `cols` values and padding columns after them up to `stride`, which is a multiple of 8.
pub struct CudaMatrix {
    memory: DeviceMemory,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

impl CudaMatrix {
    /// Not initialized.
    pub(super) fn new(card: &Card, rows: usize, cols: usize, padding: usize) -> Result<Self> {
        let stride = cols.checked_add(padding).and_then(|width| width.checked_next_multiple_of(8));
        let len = stride.and_then(|stride| rows.checked_mul(stride)?.checked_mul(2));
        let (Some(stride), Some(len)) = (stride, len) else { return Err(broken("a matrix larger than all memory")) };
        Ok(Self { memory: card.allocate(len)?, rows, cols, stride })
    }

    /// Its memory.
    pub(super) fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows * self.stride * 2
    }

    /// Where its first value is.
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Where row `row` begins.
    pub(super) fn row(&self, row: usize) -> u64 {
        self.address() + (row * self.stride) as u64 * 2
    }

    /// Where column `col` begins.
    pub(super) fn column(&self, col: usize) -> u64 {
        self.address() + col as u64 * 2
    }

    /// As cuBLAS wants it.
    pub(super) fn at(&self) -> At {
        At { address: self.address(), stride: self.stride }
    }
}

/// Values of f32.
pub struct CudaVector {
    memory: DeviceMemory,
    pub(super) len: usize,
}

impl CudaVector {
    /// Not initialized.
    pub(super) fn new(card: &Card, len: usize) -> Result<Self> {
        Ok(Self { memory: card.allocate(len * 4)?, len })
    }

    /// With these values.
    pub(super) fn of(card: &Card, values: &[f32]) -> Result<Self> {
        Ok(Self { memory: card.upload(values)?, len: values.len() })
    }

    /// Its memory.
    pub(super) fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// Where its first value is.
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Where value `index` is.
    pub(super) fn value(&self, index: usize) -> u64 {
        self.address() + index as u64 * 4
    }
}
