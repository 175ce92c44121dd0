//! Views of matrices that attention reads: queries, and keys and values apart from them.

use crate::arch::Heads;

/// Columns of a matrix from `first` on, as many as the operation takes. On GPUs, `first` is a multiple of 8.
#[derive(Debug)]
pub struct Columns<'m, M> {
    /// The matrix.
    pub matrix: &'m M,
    /// The first column.
    pub first: usize,
}

/// The keys and values that queries attend to: `[R, key heads * size]` each, in rows of their own.
///
/// A query at position `p` of a segment attends to `p + 1` rows of that segment's keys, from its first. So queries may be
/// the last of a longer sequence whose keys and values are kept.
#[derive(Debug)]
pub struct KeysValues<'m, M> {
    /// The keys, rotated.
    pub keys: Columns<'m, M>,
    /// The values.
    pub values: Columns<'m, M>,
    /// The first row of each segment's keys; `None` is where the segment's queries begin.
    pub starts: Option<&'m [u32]>,
}

impl<M> Clone for Columns<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Columns<'_, M> {}

impl<M> Clone for KeysValues<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for KeysValues<'_, M> {}

impl<'m, M> Columns<'m, M> {
    /// The queries of rows `[queries | keys | values]`.
    pub fn queries(qkv: &'m M) -> Self {
        Self { matrix: qkv, first: 0 }
    }
}

impl<'m, M> KeysValues<'m, M> {
    /// The keys and values of rows `[queries | keys | values]`, where queries attend to rows of their own run.
    pub fn of(qkv: &'m M, heads: Heads) -> Self {
        let column = |head: usize| Columns { matrix: qkv, first: head * heads.size };
        Self { keys: column(heads.query), values: column(heads.query + heads.key), starts: None }
    }

    /// Whether these and `queries` are the columns of one matrix `[queries | keys | values]`, row for row.
    pub(super) fn are_of(&self, queries: Columns<'m, M>, heads: Heads) -> bool {
        let own = Self::of(queries.matrix, heads);
        let same = |a: Columns<'_, M>, b: Columns<'_, M>| std::ptr::eq(a.matrix, b.matrix) && a.first == b.first;
        queries.first == 0 && self.starts.is_none() && same(self.keys, own.keys) && same(self.values, own.values)
    }
}
