//! The typed changes that a merge makes to one output tensor, with handles to the adapter's tensors. Checked when they
//! are made, so that running them can't fail on a shape.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;

use crate::checkpoint::Tensor;
use crate::merge::{Factor, Float, Fp8, Layout, LowRank, Merge, NormAxis, Overflow, Vector};
use crate::quantized::Scales;

/// A factor matrix inside an adapter tensor; without a tensor, all ones.
#[derive(Debug, Clone)]
pub struct FactorPlan {
    tensor: Option<(Tensor, Float)>,
    layout: Layout,
    rows: usize,
    columns: usize,
}

/// 1.0 in f32: the one value of a factor of ones.
const ONE: [u8; 4] = 1.0f32.to_le_bytes();

impl FactorPlan {
    /// A view of `rows` x `columns` values of `tensor`; the reason if it isn't one of floats that hold them.
    pub(super) fn new(tensor: &Tensor, layout: Layout, rows: usize, columns: usize) -> Result<Self, String> {
        let float = float_of(tensor)?;
        Factor::new(tensor.bytes(), float, layout, rows, columns).ok_or("is too small for its use")?;
        Ok(Self { tensor: Some((tensor.clone(), float)), layout, rows, columns })
    }

    /// A row-major matrix, that is all of `tensor`.
    pub(super) fn whole(tensor: &Tensor, rows: usize, columns: usize) -> Result<Self, String> {
        Self::new(tensor, Layout { offset: 0, row_stride: columns, column_stride: 1 }, rows, columns)
    }

    /// The transpose of the row-major `columns` x `rows` matrix that `tensor` is.
    pub(super) fn transposed(tensor: &Tensor, rows: usize, columns: usize) -> Result<Self, String> {
        Self::new(tensor, Layout { offset: 0, row_stride: 1, column_stride: rows }, rows, columns)
    }

    /// A 1 x 1 matrix of one.
    pub(super) fn one() -> Self {
        let layout = Layout { offset: 0, row_stride: 0, column_stride: 0 };
        Self { tensor: None, layout, rows: 1, columns: 1 }
    }

    fn view(&self) -> Factor<'_> {
        let (bytes, float) = self.tensor.as_ref().map_or((&ONE[..], Float::F32), |(t, float)| (t.bytes(), *float));
        let view = Factor::new(bytes, float, self.layout, self.rows, self.columns);
        #[expect(clippy::expect_used, reason = "`new` checked the same view, and a map's length never changes")]
        view.expect("a factor that was checked when it was planned")
    }

    /// Whether both hold the same values.
    fn same_values(&self, other: &Self) -> bool {
        let (a, b) = (self.view(), other.view());
        (self.rows, self.columns) == (other.rows, other.columns)
            && (0..self.rows).all(|row| {
                let bits = |view: &Factor<'_>| view.to_row(row, self.columns).into_iter().map(f32::to_bits);
                bits(&a).eq(bits(&b))
            })
    }
}

/// The float type of an adapter tensor, or why it can't be used.
pub(super) fn float_of(tensor: &Tensor) -> Result<Float, String> {
    Float::of(tensor.dtype())
        .ok_or_else(|| format!("is of type {:?}; only BF16, F16 and F32 can be merged", tensor.dtype()))
}

/// `scale * left @ right`, added to `rows` of the output.
#[derive(Debug, Clone)]
pub struct LowRankPlan {
    /// Which adapter it comes from, in the order of the command line.
    pub adapter: usize,
    /// Rows of the output, as it is stored.
    pub rows: Range<usize>,
    /// The inner dimension.
    pub rank: usize,
    /// `weight * alpha / r`.
    pub scale: f32,
    pub(super) left: FactorPlan,
    pub(super) right: FactorPlan,
}

impl LowRankPlan {
    fn prepare(&self) -> LowRank<'_> {
        let LowRankPlan { rank, scale, .. } = *self;
        LowRank { rows: self.rows.clone(), left: self.left.view(), right: self.right.view(), rank, scale }
    }
}

/// What makes one output tensor: a source and the changes to it.
#[derive(Debug, Clone)]
pub struct TensorSource {
    /// Where the values come from: the base, or an adapter that replaces them.
    pub source: Tensor,
    /// The scales with which `source` is decoded, if the base stores it in eight bits.
    pub(crate) scales: Option<Scales>,
    /// The adapter that `source` belongs to, if it replaces the base's values.
    pub replaced_by: Option<usize>,
    /// Whether `source` is the adapter's copy of the base (`base_layer`), not a trained value.
    pub is_base_layer: bool,
    /// Type of the base's tensor, which is the type of the output unless the user asks for another.
    pub dtype: Dtype,
    /// How many leading axes are the rows of the matrix that the tensor is merged as: one, none for a vector, two for a
    /// stack of expert matrices.
    pub row_axes: usize,
    /// Low-rank terms, in the order in which they are applied.
    pub low_rank: Vec<LowRankPlan>,
    /// DoRA: the norms to scale to, their axis, and their adapter.
    pub magnitude: Option<(Tensor, NormAxis, usize)>,
    /// Rows replaced by those of a tensor (row of the output to row of the tensor), and their adapter.
    pub rows: Option<(Tensor, BTreeMap<usize, usize>, usize)>,
}

impl TensorSource {
    /// A base tensor as it is.
    pub fn untouched(tensor: &Tensor) -> Self {
        Self {
            source: tensor.clone(),
            scales: None,
            replaced_by: None,
            is_base_layer: false,
            dtype: tensor.dtype(),
            row_axes: usize::from(tensor.shape().len() > 1),
            low_rank: Vec::new(),
            magnitude: None,
            rows: None,
        }
    }

    /// A base tensor that is decoded with `scales`, to the type that models of its kind are trained in.
    pub(super) fn decoded(tensor: &Tensor, scales: Scales) -> Self {
        Self { scales: Some(scales), dtype: Dtype::BF16, ..Self::untouched(tensor) }
    }

    /// Whether its values are floats that can be added to.
    pub(super) fn is_float(&self) -> bool {
        self.scales.is_some() || Float::of(self.source.dtype()).is_some()
    }

    /// Whether an adapter has a say in it.
    pub fn is_changed(&self) -> bool {
        self.replaced_by.is_some() || self.is_computed()
    }

    fn is_computed(&self) -> bool {
        !self.low_rank.is_empty() || self.magnitude.is_some() || self.rows.is_some()
    }

    /// Rows and columns of the matrix that the tensor is merged as.
    pub fn matrix(&self) -> (usize, usize) {
        let (rows, columns) = self.source.shape().split_at(self.row_axes.min(self.source.shape().len()));
        // A shape with a zero in it may have other lengths whose product overflows.
        let product = |lengths: &[usize]| lengths.iter().fold(1usize, |n, length| n.saturating_mul(*length));
        (product(rows), product(columns))
    }

    /// The arithmetic that makes the output of type `to`; `None` if the source's bytes are the output's.
    pub fn merge(&self, to: Dtype, overflow: Overflow, vector: Vector) -> Option<Merge<'_>> {
        if !self.is_changed() && self.scales.is_none() && self.source.dtype() == to {
            return None;
        }
        let to = Float::of(to)?;
        let (rows, columns) = self.matrix();
        let mut merge = match &self.scales {
            Some(Scales { tensor, float, block }) => {
                let across = columns.div_ceil(block.1);
                let layout = Layout { offset: 0, row_stride: across, column_stride: 1 };
                let scales = Factor::new(tensor.bytes(), *float, layout, rows.div_ceil(block.0), across)?;
                let encoded = Fp8 { codes: self.source.bytes(), scales, block: *block, columns };
                Merge::decode(encoded, to, overflow, vector)
            }
            None => Merge::cast(self.source.bytes(), Float::of(self.source.dtype())?, to, columns, overflow, vector),
        };
        if !self.is_changed() {
            return Some(merge);
        }
        merge = merge.finite();
        // What the adapter brings is loaded into the base, and so takes on its type.
        if let Some(stored) = Float::of(self.dtype).filter(|_| self.replaced_by.is_some() || self.rows.is_some()) {
            merge = merge.rounded_first(stored);
        }
        merge = merge.add_terms(self.low_rank.iter().map(|term| term.prepare()).collect());
        if let Some((tensor, rows, _)) = &self.rows {
            let float = Float::of(tensor.dtype())?;
            let width = columns * float.size();
            let slices = rows.iter().map(|(to, from)| (*to, &tensor.bytes()[from * width..(from + 1) * width]));
            merge = merge.overwrite(slices.collect(), float);
        }
        if let Some((tensor, axis, _)) = &self.magnitude {
            let layout = Layout { offset: 0, row_stride: 0, column_stride: 1 };
            let values = Factor::new(tensor.bytes(), Float::of(tensor.dtype())?, layout, 1, tensor.elements())?;
            merge = merge.scale_to(&values, *axis);
        }
        Some(merge)
    }

    /// Whether both give the same values: the test for embeddings that may stay tied.
    pub(super) fn same_result(&self, other: &Self) -> bool {
        let source = self.source.shape() == other.source.shape()
            && self.source.dtype() == other.source.dtype()
            && self.source.bytes() == other.source.bytes();
        let terms = self.low_rank.len() == other.low_rank.len()
            && self.low_rank.iter().zip(&other.low_rank).all(|(a, b)| {
                (&a.rows, a.rank, a.scale.to_bits()) == (&b.rows, b.rank, b.scale.to_bits())
                    && a.left.same_values(&b.left)
                    && a.right.same_values(&b.right)
            });
        let rows = match (&self.rows, &other.rows) {
            (None, None) => true,
            (Some((a, rows_a, _)), Some((b, rows_b, _))) => rows_a == rows_b && a.bytes() == b.bytes(),
            _ => false,
        };
        source && terms && rows && self.magnitude.is_none() && other.magnitude.is_none()
    }
}

/// Whether two tensors of one shape hold the same values once both are of type `stored`.
pub(super) fn same_values(a: &Tensor, b: &Tensor, stored: Dtype) -> bool {
    if a.shape() != b.shape() {
        return false;
    }
    if a.dtype() == b.dtype() {
        return a.bytes() == b.bytes();
    }
    let rounded = |tensor: &Tensor| -> Option<Vec<u8>> {
        let (from, to) = (Float::of(tensor.dtype())?, Float::of(stored)?);
        let mut out = vec![0; tensor.elements() * to.size()];
        let cast = Merge::cast(tensor.bytes(), from, to, tensor.elements().max(1), Overflow::Clamp, Vector::detect());
        cast.run(0..tensor.elements(), &mut out).ok().map(|()| out)
    };
    rounded(a).is_some_and(|a| rounded(b) == Some(a))
}
