//! What a lane of a GPU is asked to do: make the bytes of some elements of one tensor. And how it answers.

use std::ops::Range;

use super::resident::Resident;
use crate::ggml::{ErrorSums, TensorType};
use crate::gpu::runtime::Failure;
use crate::merge::{Float, Merge};

/// Some elements of one tensor, to be made and perhaps encoded.
pub(crate) struct Block<'b> {
    /// Where the values come from.
    pub(crate) source: Source<'b>,
    /// Which elements of the output tensor, row-major. Whole blocks of the encoding, whole rows where it is weighted.
    pub(crate) elements: Range<usize>,
    /// What becomes of them; absent where the bytes are those that the merge itself gives.
    pub(crate) encoding: Option<Encoding<'b>>,
    /// Which of the bytes of `elements` are wanted.
    pub(crate) wanted: Range<usize>,
}

/// Where the values of a block come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'b> {
    /// A merge, with what it keeps on the GPUs.
    Merged {
        /// The arithmetic and its inputs.
        merge: &'b Merge<'b>,
        /// Its factors on each GPU.
        factors: &'b Resident,
        /// The output's rows are those of the merge, reordered as that many heads (see [`source_row`]).
        heads: Option<usize>,
    },
    /// Floats as they are stored: those of `elements`, and no others.
    Stored {
        /// The bytes.
        bytes: &'b [u8],
        /// Their type.
        float: Float,
    },
}

/// An encoder that blocks of a job will need: a GPU compiles its kernels ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EncoderKind {
    /// The type of the blocks.
    pub(crate) kind: TensorType,
    /// Whether columns have importance.
    pub(crate) weighted: bool,
}

/// How values are encoded.
#[derive(Clone, Copy)]
pub(crate) struct Encoding<'b> {
    /// The type.
    pub(crate) kind: TensorType,
    /// Length of a row.
    pub(crate) columns: usize,
    /// A weight for each column of each matrix.
    pub(crate) importance: Option<Importance<'b>>,
    /// Which values are held against what they decode to, if any.
    pub(crate) measured: Option<Measured>,
}

/// The importance of a tensor's columns.
#[derive(Clone, Copy)]
pub(crate) struct Importance<'b> {
    /// One row of weights for each matrix of a stack, or one for all.
    pub(crate) weights: &'b [f32],
    /// Rows of a matrix.
    pub(crate) rows_per_matrix: usize,
    /// The weights on each GPU.
    pub(crate) resident: &'b Resident,
}

/// Which values of a block are measured, and in which chunks their errors are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Values at the start that are not.
    pub(crate) skipped: usize,
    /// Values of the first chunk.
    pub(crate) first: usize,
    /// Values of every other chunk, but for the last.
    pub(crate) chunk: usize,
}

/// Why a lane did not make a block. The caller makes it on the processor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// A value or a scale is not what its type can hold: the processor finds out which one, and what to do.
    #[error("a value is outside its type's range")]
    Value,
    /// The GPU's code has no such source or encoding, or too little memory for its factors.
    #[error("the GPU does not support this")]
    Unsupported,
    /// The GPU failed; its driver says so. The lane is of no more use.
    #[error("{0}")]
    Device(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TooLarge(_) => Self::Unsupported,
            other => Self::Device(other.to_string()),
        }
    }
}

/// One stream of work on a GPU.
pub(crate) trait Lane {
    /// Most elements of a block.
    fn capacity(&self) -> usize;

    /// Makes `block`, writes the wanted bytes to `out`, and gives the sums of each chunk that is measured. Returns when
    /// all of it is done.
    fn run(&mut self, block: &Block<'_>, out: &mut [u8]) -> Result<Vec<ErrorSums>, Trouble>;

    /// Hashes `bytes`, which are whole pieces of an input from piece `first` on (see
    /// [`crate::digest::PieceTree`]): puts their chaining values into `values`, 32 bytes a piece.
    fn hash(&mut self, bytes: &[u8], first: usize, values: &mut [u8]) -> Result<(), Trouble>;

    /// Seconds by stage since the lane was opened.
    fn stages(&self) -> Stages;
}

/// Seconds of a lane, by stage.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Stages {
    /// Reading inputs into pinned memory.
    pub(crate) read: f64,
    /// From there to the GPU.
    pub(crate) upload: f64,
    /// Kernels.
    pub(crate) kernel: f64,
    /// From the GPU.
    pub(crate) download: f64,
}

/// Which row of a Hugging Face tensor of `rows` rows is row `row` of the GGUF tensor: each head's two halves are
/// interleaved. Rule: `LlamaModel.permute` of llama.cpp's conversion/llama.py.
pub(crate) fn source_row(row: usize, rows: usize, heads: usize) -> usize {
    let head = (rows / heads.max(1)).max(2);
    let (start, within) = (row / head * head, row % head);
    start + within % 2 * (head / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_heads_are_interleaved() {
        let order: Vec<usize> = (0..8).map(|row| source_row(row, 8, 2)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
