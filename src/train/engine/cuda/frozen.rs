//! Frozen weights on the card, with the adapters in their spare columns.

use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;

use super::card::{Card, broken};
use super::matrix::{CudaMatrix, CudaVector};
use crate::checkpoint::Tensor;
use crate::error::Result;
use crate::gpu::DeviceMemory;
use crate::train::dropout::Dropout;
use crate::train::lora::Group;
use crate::train::model::widened;

/// The stacked weights of a group.
pub struct CudaFrozen {
    pub(super) group: Group,
    /// `[outputs, inputs + room]`: see [`super::super`].
    pub(super) weights: CudaMatrix,
    pub(super) bias: Option<CudaVector>,
    pub(super) adapters: Option<Adapters>,
}

/// What the kernels of adapters need of a group.
pub(super) struct Adapters {
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
    /// The masks' keys that are on the card.
    keys: RefCell<Keys>,
    pub(super) gains: Option<Gains>,
}

#[derive(Default)]
struct Keys {
    values: Vec<u32>,
    memory: Option<DeviceMemory>,
}

/// Magnitudes over norms, of every row of the group; 1 where a row has none.
pub(super) struct Gains {
    /// Norms of the base's rows.
    pub(super) norms: CudaVector,
    pub(super) gains: CudaVector,
    /// 1 / norm of the adapted rows.
    pub(super) inverses: CudaVector,
}

/// The masks of a group, as kernels take them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masks {
    pub(super) keys: u64,
    pub(super) threshold: u64,
    pub(super) scale: u64,
}

impl Masks {
    /// Nothing is dropped.
    const NONE: Self = Self { keys: 0, threshold: 0, scale: 1f32.to_bits() as u64 };
}

impl CudaFrozen {
    /// Copies the weights to the card.
    pub(super) fn new(card: &Card, group: &Group, weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<Self> {
        let matrix = CudaMatrix::new(card, group.outputs, group.inputs, group.room())?;
        card.clear(matrix.memory(), matrix.bytes())?;
        let mut row = 0;
        for tensor in weights {
            row += copy(card, tensor, &matrix, row)?;
        }
        let bias = if biases.iter().all(Option::is_none) { None } else { Some(stacked(card, weights, biases)?) };
        let adapters = (!group.slots.is_empty()).then(|| Adapters::new(card, group)).transpose()?;
        Ok(Self { group: group.clone(), weights: matrix, bias, adapters })
    }

    /// Ranks as the kernels pad them.
    pub(super) fn padded(&self) -> usize {
        self.group.rank.next_multiple_of(8)
    }

    /// The masks of the group's slots, on the card.
    pub(super) fn masks(&self, card: &Card, dropout: Option<&Dropout>) -> Result<Masks> {
        let (Some(dropout), Some(adapters)) = (dropout, &self.adapters) else { return Ok(Masks::NONE) };
        let masks = self.group.slots.iter().map(|slot| dropout.mask(slot.module));
        let threshold = masks.clone().next().map_or(0, |mask| mask.threshold);
        let values: Vec<u32> = masks.flat_map(|mask| mask.key).collect();
        let mut keys = adapters.keys.borrow_mut();
        if keys.values != values || keys.memory.is_none() {
            *keys = Keys { memory: Some(card.upload(&values)?), values };
        }
        let address = keys.memory.as_ref().map_or(0, DeviceMemory::address);
        Ok(Masks { keys: address, threshold: threshold.into(), scale: dropout.scale().to_bits().into() })
    }
}

impl Adapters {
    fn new(card: &Card, group: &Group) -> Result<Self> {
        let slots = &group.slots;
        let depth = slots.len() * group.rank.next_multiple_of(8);
        let wide = |values: Vec<usize>| card.upload(&values.into_iter().map(|v| v as u64).collect::<Vec<_>>());
        let first_a = |number: usize| number * group.rank * group.inputs;
        let mut first_b = 0;
        let mut fold_b = Vec::new();
        for slot in slots {
            fold_b.extend([first_b, slot.b.start]);
            first_b += slot.b.len();
        }
        let gains = slots.iter().any(|slot| slot.magnitude.is_some()).then(|| -> Result<Gains> {
            let ones = vec![1.0; group.outputs];
            Ok(Gains {
                norms: CudaVector::new(card, group.outputs)?,
                gains: CudaVector::of(card, &ones)?,
                inverses: CudaVector::of(card, &ones)?,
            })
        });
        Ok(Self {
            stack: card.allocate(depth * group.inputs * 2)?,
            turned: card.allocate(depth * group.inputs * 2)?,
            offsets: wide(slots.iter().map(|slot| slot.a.start).collect())?,
            spans: wide(slots.iter().flat_map(|slot| [slot.rows.start, slot.rows.len(), slot.b.start]).collect())?,
            fold_a: wide(slots.iter().enumerate().flat_map(|(i, slot)| [first_a(i), slot.a.start]).collect())?,
            fold_b: wide(fold_b)?,
            rows: wide(slots.iter().flat_map(|slot| [slot.rows.start, slot.rows.len()]).collect())?,
            keys: RefCell::default(),
            gains: gains.transpose()?,
        })
    }
}

/// Copies a tensor's rows, as bf16, to rows `first`.. of the matrix. Returns how many there are.
pub(super) fn copy(card: &Card, tensor: &Tensor, matrix: &CudaMatrix, first: usize) -> Result<usize> {
    let [rows, cols] = *tensor.shape() else { return Err(broken("a weight that is no matrix")) };
    let size = match tensor.dtype() {
        Dtype::F32 => 4,
        Dtype::BF16 | Dtype::F16 => 2,
        // Says that there is no such type.
        _ => return widened(tensor).map(|_| 0),
    };
    let (bytes, from) = (tensor.bytes(), cols * size);
    if cols != matrix.cols || first + rows > matrix.rows || bytes.len() != rows * from {
        return Err(broken("a weight of another shape than its group's"));
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
            Some(bias) => values.extend(widened(bias)?),
            None => values.resize(values.len() + weight.shape()[0], 0.0),
        }
    }
    CudaVector::of(card, &values)
}
