//! The bytes of an output tensor: rows of a GGUF tensor, decoded, put back in transformers' order and rounded.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ggml::{TensorType, decode};
use crate::gguf::ModelTensor;
use crate::merge::Float;

/// Values decoded at once. Every type's block divides it.
const CHUNK: usize = 4096;

/// Where an output tensor comes from.
#[derive(Debug, Clone)]
pub struct GgufSource {
    /// The encoded values.
    pub tensor: ModelTensor,
    /// Its rows are those of that many heads, in the order of llama.cpp's rotary embedding, which is undone.
    pub heads: Option<usize>,
}

/// The type of GGUF that has the values of `float` in the same bytes.
fn same_bytes(float: Float) -> TensorType {
    match float {
        Float::Bf16 => TensorType::BF16,
        Float::F16 => TensorType::F16,
        Float::F32 => TensorType::F32,
    }
}

impl GgufSource {
    /// Whether the order of rows can be undone: a row holds whole blocks, so that rows can be read apart.
    pub(super) fn is_readable(&self) -> bool {
        let (kind, shape) = (self.tensor.info().kind, &self.tensor.info().shape);
        let columns = if shape.len() < 2 { 1 } else { shape[shape.len() - 1] };
        decode::can_decode(kind) && (self.heads.is_none() || kind.row_bytes(columns).is_some())
    }

    /// Writes bytes `range` of the tensor, called `name` and of type `float` in the output, to `out`. The range begins
    /// and ends between elements.
    pub(super) fn fill(&self, name: &str, float: Float, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        let elements = range.start / float.size()..range.end / float.size();
        let shape = &self.tensor.info().shape;
        let (columns, rows) = match self.heads {
            // Without an order to undo, the tensor is one run of blocks.
            None => (shape.iter().product(), None),
            Some(heads) => {
                let columns = if shape.len() < 2 { 1 } else { shape[shape.len() - 1] };
                (columns, Some(shape.iter().product::<usize>() / columns.max(1) / heads))
            }
        };
        // Undoing the order moves rows within a head only.
        let step = rows.map_or(1, |rows| rows * columns);
        self.prefetch(elements.start / step * step..elements.end.next_multiple_of(step));
        let mut values = Vec::new();
        let mut at = elements.start;
        while at < elements.end {
            let (row, column) = (at / columns, at % columns);
            let len = (columns - column).min(elements.end - at);
            let row = rows.map_or(row, |head| stored_row(row, head));
            let out = &mut out[(at - elements.start) * float.size()..][..len * float.size()];
            self.run(float, row * columns + column, out, &mut values).map_err(|(offset, value)| {
                let width = shape.last().copied().unwrap_or(1).max(1);
                let (row, column) = ((at + offset) / width, (at + offset) % width);
                let (tensor, row, column) = (name.to_owned(), row as u64, column as u64);
                Error::Overflow { tensor, row, column, value, dtype: float.name(), can_clamp: false }
            })?;
            at += len;
        }
        Ok(())
    }

    /// Writes the stored elements from `start` on. The error is the place and value of one that `float` can't hold.
    fn run(&self, float: Float, start: usize, out: &mut [u8], values: &mut Vec<f32>) -> Result<(), (usize, f32)> {
        let kind = self.tensor.info().kind;
        let (block, bytes) = (kind.block_len(), kind.block_bytes());
        let len = out.len() / float.size();
        let first = start / block * bytes;
        if kind == same_bytes(float) {
            out.copy_from_slice(&self.tensor.bytes()[first..][..out.len()]);
            return Ok(());
        }
        let mut done = 0;
        while done < len {
            let from = start + done;
            let skipped = from % block;
            let count = (len - done).min(CHUNK - skipped);
            let blocks = (skipped + count).div_ceil(block);
            values.resize(blocks * block, 0.0);
            decode::decode(kind, &self.tensor.bytes()[from / block * bytes..][..blocks * bytes], values);
            let values = &values[skipped..skipped + count];
            if let Some(place) = values.iter().position(|value| value.abs() > float.max() && float.overflows(*value)) {
                return Err((done + place, values[place]));
            }
            float.narrow(values, &mut out[done * float.size()..][..count * float.size()]);
            done += count;
        }
        Ok(())
    }

    /// Asks the system to map the blocks of stored elements.
    fn prefetch(&self, elements: Range<usize>) {
        let (block, bytes) = (self.tensor.info().kind.block_len(), self.tensor.info().kind.block_bytes());
        let start = elements.start / block * bytes;
        self.tensor.prefetch(start, elements.end.div_ceil(block) * bytes - start);
    }

    /// All values, for small tensors.
    pub(super) fn all(tensor: &ModelTensor) -> Vec<f32> {
        let mut values = vec![0.0; tensor.info().shape.iter().product()];
        decode::decode(tensor.info().kind, tensor.bytes(), &mut values);
        values
    }
}

/// The stored row of row `row`, in heads of `head` rows: of each head, the rows of the first half and of the second half
/// alternate. Inverse of `permute` in conversion/llama.py.
fn stored_row(row: usize, head: usize) -> usize {
    let within = row % head;
    let half = head / 2;
    row - within + within % half * 2 + within / half
}
