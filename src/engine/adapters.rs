//! What an engine knows of an adapter: low-rank factors on some rows of stacked weights, and where their values lie in one
//! vector of parameters. Who lays that vector out is above.

use std::ops::Range;

/// Padding columns come in multiples of this: rows of bf16 then begin at multiples of 16 bytes.
pub const PADDING_STEP: usize = 8;

/// The factors of one module: `scale * B * A` on its rows of the stacked weights. `A` is `[rank, inputs]` and `B` is
/// `[rows, rank]`, both row-major in the vector of parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its number among all modules of a model, which tells its dropout mask from others.
    pub module: usize,
    /// Its rows among the stacked weights.
    pub rows: Range<usize>,
    /// Its columns, counted from the first padding column.
    pub columns: Range<usize>,
    /// Where `A` lies in the vector of parameters.
    pub a: Range<usize>,
    /// Where `B` lies.
    pub b: Range<usize>,
    /// Where the magnitudes of the rows lie, with DoRA (Liu et al., 2024).
    pub magnitude: Option<Range<usize>>,
}

/// The adapters of projections that share an input. By default there are none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Adapters {
    /// Rows of each `A`, columns of each `B`.
    pub rank: usize,
    /// The factor on every delta.
    pub scale: f32,
    /// The adapted rows, ascending; each slot's columns follow those of the slot before.
    pub slots: Vec<Slot>,
}

impl Adapters {
    /// Columns after those of the weights and of their inputs: one for each row of every `A`, rounded up to
    /// [`PADDING_STEP`].
    pub fn padding(&self) -> usize {
        (self.slots.len() * self.rank).next_multiple_of(PADDING_STEP)
    }
}
