//! What a merge is made of, for code that does its arithmetic elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Float, LowRank, Merge, NormAxis};

/// References to all that a merge reads.
pub(crate) struct Parts<'m> {
    /// The base's values, whole rows of `columns`.
    pub(crate) base: &'m [u8],
    /// Their type.
    pub(crate) base_float: Float,
    /// Whether the values are decoded from something else, and `base` is empty.
    pub(crate) is_decoded: bool,
    /// Rows of the base.
    pub(crate) rows: usize,
    /// Length of a row.
    pub(crate) columns: usize,
    /// What is added, in this order.
    pub(crate) terms: &'m [LowRank<'m>],
    /// Rows that stand in for the base's, of type `overwritten_float`.
    pub(crate) overwritten: &'m BTreeMap<usize, &'m [u8]>,
    /// Their type.
    pub(crate) overwritten_float: Float,
    /// DoRA's magnitudes of rows; absent where there are none, or of columns.
    pub(crate) row_magnitude: Option<&'m [f32]>,
    /// `magnitude / norm` by column, if they are of columns.
    pub(crate) column_gains: Option<&'m [f32]>,
    /// The type that the base's values are rounded to before anything is added.
    pub(crate) rounded_first: Option<Float>,
}

impl Merge<'_> {
    /// The type of the output.
    pub(crate) fn output(&self) -> Float {
        self.out_float
    }

    /// Length of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// References to all that the merge reads.
    pub(crate) fn parts(&self) -> Parts<'_> {
        let axis = self.magnitude.as_ref().map(|(_, axis)| *axis);
        Parts {
            base: self.base,
            base_float: self.base_float,
            is_decoded: self.encoded.is_some(),
            rows: self.rows(),
            columns: self.columns,
            terms: &self.terms,
            overwritten: &self.overwritten,
            overwritten_float: self.overwritten_float,
            row_magnitude: self.magnitude.as_ref().filter(|(_, axis)| *axis == NormAxis::Row).map(|(m, _)| &m[..]),
            column_gains: (axis == Some(NormAxis::Column)).then_some(&self.column_gains[..]),
            rounded_first: self.rounded_first,
        }
    }

    /// The factors of term number `term`, widened: rows x rank, and rank x columns.
    pub(crate) fn factors(&self, term: usize) -> (Vec<f32>, Cow<'_, [f32]>) {
        let low_rank = &self.terms[term];
        let mut left = vec![0.0; low_rank.rows.len() * low_rank.rank];
        for (row, out) in left.chunks_exact_mut(low_rank.rank.max(1)).enumerate() {
            low_rank.left.row(row, out);
        }
        (left, self.widened_right(low_rank))
    }
}
