//! Frozen weights on the GPU, with the adapters in their padding columns.

use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;

use super::card::{Card, broken};
use super::matrix::{CudaMatrix, CudaVector};
use crate::checkpoint::Tensor;
use crate::engine::{Adapters, Slot, widened};
use crate::error::{Error, Result};
use crate::gpu::{DeviceMemory, MOST_WIDTH};

/// Columns and rows of slots come in multiples of this.
const STEP: usize = 8;
/// Most rows of an A that the kernels of adapters take.
pub(super) const MOST_RANK: usize = 256;

/// Stacked weights, with their adapters.
pub struct CudaFrozen {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) adapters: Adapters,
    /// `[outputs, inputs + padding]`: see [`super::super`].
    pub(super) weights: CudaMatrix,
    pub(super) bias: Option<CudaVector>,
    /// If there are adapters.
    pub(super) tables: Option<Tables>,
}

/// What the kernels of adapters need of them.
pub(super) struct Tables {
    /// Every A as bf16, `[slots * padded, inputs]`, and the same transposed.
    pub(super) stack: DeviceMemory,
    pub(super) turned: DeviceMemory,
    /// For `pack_a`: where each A lies.
    pub(super) offsets: DeviceMemory,
    /// For `pack_b`: first row, rows, where B lies.
    pub(super) spans: DeviceMemory,
    /// For `fold` of A: first value, where it goes. Likewise of B.
    pub(super) fold_a: DeviceMemory,
    pub(super) fold_b: DeviceMemory,
    /// For `factor_b`: first row and rows of each slot.
    pub(super) rows: DeviceMemory,
    pub(super) gains: Option<Gains>,
}

/// Magnitudes over norms, of every row; 1 where a row has none.
pub(super) struct Gains {
    /// Norms of the base's rows.
    pub(super) norms: CudaVector,
    pub(super) values: CudaVector,
    /// 1 / norm of the adapted rows.
    pub(super) inverses: CudaVector,
}

impl CudaFrozen {
    /// Copies the weights to the GPU.
    pub(super) fn new(card: &Card, weights: &[Tensor], biases: &[Option<Tensor>], adapters: &Adapters) -> Result<Self> {
        let inputs = weights.first().and_then(|weight| weight.shape().get(1)).copied().unwrap_or(0);
        let outputs = weights.iter().map(|weight| weight.shape().first().copied().unwrap_or(0)).sum();
        check(inputs, outputs, adapters)?;
        let matrix = CudaMatrix::new(card, outputs, inputs, adapters.padding())?;
        card.clear(matrix.memory(), matrix.bytes())?;
        let mut row = 0;
        for tensor in weights {
            row += copy(card, tensor, &matrix, row)?;
        }
        if row != outputs || biases.len() != weights.len() {
            return Err(broken("weights that don't belong together"));
        }
        let bias = if biases.iter().all(Option::is_none) { None } else { Some(stacked(card, weights, biases)?) };
        let tables =
            (!adapters.slots.is_empty()).then(|| Tables::new(card, [inputs, outputs], adapters)).transpose()?;
        Ok(Self { inputs, outputs, adapters: adapters.clone(), weights: matrix, bias, tables })
    }

    /// Length of the vector of parameters, at least.
    pub(super) fn parameters(&self) -> usize {
        let ends = |slot: &Slot| slot.a.end.max(slot.b.end).max(slot.magnitude.as_ref().map_or(0, |range| range.end));
        self.adapters.slots.iter().map(ends).max().unwrap_or(0)
    }

    /// Whether `x` is an input of these weights, with the adapters' padding.
    pub(super) fn check_input(&self, x: &CudaMatrix) -> Result<()> {
        if x.cols == self.inputs && x.stride >= self.inputs + self.adapters.padding() {
            return Ok(());
        }
        Err(broken("the input of another projection"))
    }

    /// The factors of rows, if they have magnitudes.
    pub(super) fn gains(&self) -> Option<&Gains> {
        self.tables.as_ref()?.gains.as_ref()
    }

    /// Ranks as the kernels pad them.
    pub(super) fn padded(&self) -> usize {
        self.adapters.rank.next_multiple_of(8)
    }
}

impl Tables {
    fn new(card: &Card, [inputs, outputs]: [usize; 2], adapters: &Adapters) -> Result<Self> {
        let Adapters { rank, slots, .. } = adapters;
        let depth = slots.len() * rank.next_multiple_of(8);
        let wide = |values: Vec<usize>| card.upload(&values.into_iter().map(|v| v as u64).collect::<Vec<_>>());
        let first_a = |number: usize| number * rank * inputs;
        let mut first_b = 0;
        let mut fold_b = Vec::new();
        for slot in slots {
            fold_b.extend([first_b, slot.b.start]);
            first_b += slot.b.len();
        }
        let gains = slots.iter().any(|slot| slot.magnitude.is_some()).then(|| -> Result<Gains> {
            let ones = vec![1.0; outputs];
            Ok(Gains {
                norms: CudaVector::new(card, outputs)?,
                values: CudaVector::of(card, &ones)?,
                inverses: CudaVector::of(card, &ones)?,
            })
        });
        Ok(Self {
            stack: card.allocate(depth * inputs * 2)?,
            turned: card.allocate(depth * inputs * 2)?,
            offsets: wide(slots.iter().map(|slot| slot.a.start).collect())?,
            spans: wide(slots.iter().flat_map(|slot| [slot.rows.start, slot.rows.len(), slot.b.start]).collect())?,
            fold_a: wide(slots.iter().enumerate().flat_map(|(i, slot)| [first_a(i), slot.a.start]).collect())?,
            fold_b: wide(fold_b)?,
            rows: wide(slots.iter().flat_map(|slot| [slot.rows.start, slot.rows.len()]).collect())?,
            gains: gains.transpose()?,
        })
    }
}

/// Whether kernels can work on such weights and adapters: what they trust.
fn check(inputs: usize, outputs: usize, adapters: &Adapters) -> Result<()> {
    let Adapters { rank, slots, .. } = adapters;
    let edges: Vec<usize> = slots.iter().flat_map(|slot| [slot.rows.start, slot.rows.end]).chain([outputs]).collect();
    if inputs == 0 || !inputs.is_multiple_of(STEP) || !edges.iter().all(|edge| edge.is_multiple_of(STEP)) {
        let problem =
            format!("the model has a projection of {inputs} to {outputs} values; GPUs require multiples of {STEP}");
        return Err(Error::unsupported(problem, "use ⟦device cpu⟧"));
    }
    if !slots.is_empty() && !(1..=MOST_RANK).contains(rank) {
        let problem = format!("GPUs train ranks of 1 to {MOST_RANK}, not {rank}");
        return Err(Error::unsupported(
            problem,
            format!("choose a ⟦lora_rank⟧ up to {MOST_RANK}, or use ⟦device cpu⟧"),
        ));
    }
    let ordered = slots.iter().enumerate().all(|(number, slot)| {
        slot.columns == (number * rank..(number + 1) * rank)
            && slot.module == slots[0].module + number
            && slot.a.len() == rank * inputs
            && slot.b.len() == rank * slot.rows.len()
            && slot.magnitude.as_ref().is_none_or(|magnitude| magnitude.len() == slot.rows.len())
    });
    if !ordered || !edges.is_sorted() {
        return Err(broken("adapters whose slots are out of order"));
    }
    Ok(())
}

/// Copies a tensor's rows, as bf16, to rows `first`.. of the matrix. Returns how many there are.
pub(super) fn copy(card: &Card, tensor: &Tensor, matrix: &CudaMatrix, first: usize) -> Result<usize> {
    let [rows, cols] = *tensor.shape() else { return Err(broken("a weight that is not a matrix")) };
    let size = match tensor.dtype() {
        Dtype::F32 => 4,
        Dtype::BF16 | Dtype::F16 => 2,
        // Says that there is no such type.
        _ => return widened(tensor).map(|_| 0),
    };
    let (bytes, from) = (tensor.bytes(), cols * size);
    if cols != matrix.cols || first + rows > matrix.rows || bytes.len() != rows * from {
        return Err(broken("a weight of another shape than those beside it"));
    }
    if cols * 2 > MOST_WIDTH && rows > 0 {
        let problem = format!("a weight has rows of {cols} values, and GPUs support {} at most", MOST_WIDTH / 2);
        return Err(Error::unsupported(problem, "use ⟦device cpu⟧"));
    }
    let fill = |rows: Range<usize>, to: &mut [u8]| {
        let (start, len) = (rows.start * from, rows.len() * from);
        tensor.prefetch(start, len);
        convert(tensor.dtype(), &bytes[start..start + len], to);
    };
    let pitch = matrix.stride * 2;
    card.write_rows(matrix.memory(), first * pitch, pitch, [rows, cols * 2], &fill)?;
    Ok(rows)
}

/// Stored values as bf16, rounded to the nearest.
fn convert(dtype: Dtype, from: &[u8], to: &mut [u8]) {
    let narrow = |value: f32| bf16::from_f32(value).to_le_bytes();
    let values = to.as_chunks_mut::<2>().0;
    match dtype {
        Dtype::F32 => {
            values.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| *to = narrow(f32::from_le_bytes(*from)));
        }
        Dtype::F16 => {
            let wide = |from: &[u8; 2]| f16::from_le_bytes(*from).to_f32();
            values.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| *to = narrow(wide(from)));
        }
        _ => to.copy_from_slice(from),
    }
}

fn stacked(card: &Card, weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<CudaVector> {
    let mut values = Vec::new();
    for (weight, bias) in weights.iter().zip(biases) {
        match bias {
            Some(bias) if bias.elements() != weight.shape()[0] => return Err(broken("a bias of another weight")),
            Some(bias) => values.extend(widened(bias)?),
            None => values.resize(values.len() + weight.shape()[0], 0.0),
        }
    }
    CudaVector::of(card, &values)
}
