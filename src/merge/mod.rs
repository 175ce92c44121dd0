//! The merge arithmetic, on slices: `out = round(fma(s, acc, w))` and what DoRA adds to it. Knows no file and no
//! adapter format; `export` hands it mapped bytes. The numbers are specified in docs/numerics.md.

mod float;
mod fp8;
mod kernel;
mod parts;
mod vector;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

pub use float::Float;
pub(crate) use float::TO_FLOATS;
pub use fp8::Fp8;
pub(crate) use parts::Parts;
pub use vector::Vector;

/// A matrix of floats somewhere in a tensor's bytes. Strides are in elements, so that a transposed factor or the slice
/// of one expert is read where it lies.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    bytes: &'a [u8],
    float: Float,
    offset: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Factor<'a> {
    /// A view of `rows` x `columns` values; `None` if a value would lie outside of `bytes`.
    pub fn new(bytes: &'a [u8], float: Float, layout: Layout, rows: usize, columns: usize) -> Option<Self> {
        let Layout { offset, row_stride, column_stride } = layout;
        if rows > 0 && columns > 0 {
            let down = (rows - 1).checked_mul(row_stride)?;
            let across = (columns - 1).checked_mul(column_stride)?;
            let last = offset.checked_add(down)?.checked_add(across)?;
            if last >= bytes.len() / float.size() {
                return None;
            }
        }
        Some(Self { bytes, float, offset, row_stride, column_stride })
    }

    /// One row, widened.
    pub fn to_row(&self, row: usize, columns: usize) -> Vec<f32> {
        let mut values = vec![0.0; columns];
        self.row(row, &mut values);
        values
    }

    fn row(&self, row: usize, out: &mut [f32]) {
        let size = self.float.size();
        let start = self.offset + row * self.row_stride;
        if self.column_stride == 1 {
            self.float.widen(&self.bytes[start * size..(start + out.len()) * size], out);
        } else {
            for (column, out) in out.iter_mut().enumerate() {
                let at = (start + column * self.column_stride) * size;
                *out = self.float.widen_one(&self.bytes[at..at + size]);
            }
        }
    }
}

/// Where the values of a [`Factor`] lie, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Layout {
    /// The first value.
    pub offset: usize,
    /// From a row to the next.
    pub row_stride: usize,
    /// From a column to the next.
    pub column_stride: usize,
}

/// One low-rank term: `scale * left @ right`, added to some rows of the output.
#[derive(Debug)]
pub struct LowRank<'a> {
    /// Rows of the output.
    pub rows: Range<usize>,
    /// `rows.len()` x `rank`.
    pub left: Factor<'a>,
    /// `rank` x the output's columns.
    pub right: Factor<'a>,
    /// The inner dimension.
    pub rank: usize,
    /// Factor on the product.
    pub scale: f32,
}

impl LowRank<'_> {
    fn widen_right(&self, columns: usize) -> Vec<f32> {
        let mut widened = vec![0.0; self.rank * columns];
        for (k, out) in widened.chunks_exact_mut(columns.max(1)).enumerate() {
            self.right.row(k, out);
        }
        widened
    }
}

/// A term at work: its right factor is widened.
struct Term<'m> {
    rows: Range<usize>,
    left: &'m Factor<'m>,
    right: Cow<'m, [f32]>,
    rank: usize,
    scale: f32,
}

/// The axis over which DoRA takes norms, as the weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormAxis {
    /// One norm a stored row: linear layers and convolutions.
    Row,
    /// One norm a stored column: embeddings, and `Conv1D`, which is stored transposed.
    Column,
}

/// What to do with a finite value that the output type can't hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// Report a [`Fault`].
    #[default]
    Refuse,
    /// Write the largest finite value of its sign.
    Clamp,
}

/// A value that can't be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Its row.
    pub row: usize,
    /// Its column.
    pub column: usize,
    /// The value before rounding: finite if it overflows, else NaN or infinite.
    pub value: f32,
}

/// Everything that makes one output tensor out of base bytes. Made once a tensor, shared by all workers.
#[derive(Debug)]
pub struct Merge<'a> {
    base: &'a [u8],
    base_float: Float,
    /// Stands in for `base` where that is stored in eight bits.
    encoded: Option<Fp8<'a>>,
    out_float: Float,
    columns: usize,
    terms: Vec<LowRank<'a>>,
    /// The right factor of a single term, widened once. Several (experts) are widened as their rows come up, since
    /// together they may be large.
    widened: Option<Vec<f32>>,
    overwritten: BTreeMap<usize, &'a [u8]>,
    overwritten_float: Float,
    magnitude: Option<(Vec<f32>, NormAxis)>,
    /// `magnitude / norm` by column, for [`NormAxis::Column`].
    column_gains: Vec<f32>,
    rounded_first: Option<Float>,
    must_be_finite: bool,
    overflow: Overflow,
    vector: Vector,
}

impl<'a> Merge<'a> {
    /// A cast of `base`, a matrix of `columns` columns, from one type to the other.
    pub fn cast(base: &'a [u8], from: Float, to: Float, columns: usize, overflow: Overflow, vector: Vector) -> Self {
        Self {
            base,
            base_float: from,
            encoded: None,
            out_float: to,
            columns,
            terms: Vec::new(),
            widened: None,
            overwritten: BTreeMap::new(),
            overwritten_float: from,
            magnitude: None,
            column_gains: Vec::new(),
            rounded_first: None,
            must_be_finite: false,
            overflow,
            vector,
        }
    }

    /// A cast of what `encoded` decodes to.
    pub fn decode(encoded: Fp8<'a>, to: Float, overflow: Overflow, vector: Vector) -> Self {
        let columns = encoded.columns;
        Self { encoded: Some(encoded), ..Self::cast(&[], Float::F32, to, columns, overflow, vector) }.finite()
    }

    /// Reports values that are not finite as faults. For every tensor that an adapter changes.
    #[must_use]
    pub fn finite(mut self) -> Self {
        self.must_be_finite = true;
        self
    }

    /// Rounds the base's values to `stored` before anything is added to them: what loading a replacement of another type
    /// into the base model does.
    #[must_use]
    pub fn rounded_first(mut self, stored: Float) -> Self {
        self.rounded_first = Some(stored);
        self
    }

    /// Adds low-rank terms, applied in this order.
    #[must_use]
    pub fn add_terms(mut self, terms: Vec<LowRank<'a>>) -> Self {
        self.widened = match &terms[..] {
            [term] => Some(term.widen_right(self.columns)),
            _ => None,
        };
        self.terms = terms;
        self
    }

    /// The terms of some rows, ready for work.
    fn terms_of(&self, rows: &Range<usize>) -> Vec<Term<'_>> {
        let touches = |term: &&LowRank<'_>| term.rows.start < rows.end && rows.start < term.rows.end;
        self.terms.iter().filter(touches).map(|term| self.ready(term)).collect()
    }

    fn ready<'s>(&'s self, term: &'s LowRank<'a>) -> Term<'s> {
        let right = self.widened_right(term);
        Term { rows: term.rows.clone(), left: &term.left, right, rank: term.rank, scale: term.scale }
    }

    fn widened_right(&self, term: &LowRank<'a>) -> Cow<'_, [f32]> {
        match &self.widened {
            Some(widened) => Cow::Borrowed(&widened[..]),
            None => Cow::Owned(term.widen_right(self.columns)),
        }
    }

    /// Replaces rows by values of `float`.
    #[must_use]
    pub fn overwrite(mut self, rows: BTreeMap<usize, &'a [u8]>, float: Float) -> Self {
        self.overwritten = rows;
        self.overwritten_float = float;
        self
    }

    /// Scales rows or columns to the norms in `magnitude` (DoRA, <https://arxiv.org/abs/2402.09353>, equation 5).
    #[must_use]
    pub fn scale_to(mut self, magnitude: &Factor<'_>, axis: NormAxis) -> Self {
        let length = match axis {
            NormAxis::Row => self.rows(),
            NormAxis::Column => self.columns,
        };
        let values = magnitude.to_row(0, length);
        if axis == NormAxis::Column {
            let norms = self.vector.column_norms(&self);
            self.column_gains = values.iter().zip(&norms).map(|(m, norm)| m / norm).collect();
        }
        self.magnitude = Some((values, axis));
        self
    }

    /// Rows of the base.
    pub(crate) fn rows(&self) -> usize {
        if let Some(encoded) = &self.encoded {
            return encoded.rows();
        }
        self.base.len().checked_div(self.base_float.size() * self.columns).unwrap_or(0)
    }

    /// Writes the output's elements `elements` (row-major) to `out`, which holds just them.
    ///
    /// The bytes depend on nothing but the inputs: not on the range, the thread or the vector width.
    pub fn run(&self, elements: Range<usize>, out: &mut [u8]) -> Result<(), Fault> {
        debug_assert_eq!(out.len(), elements.len() * self.out_float.size());
        self.vector.run(self, elements, out)
    }
}
