//! The audit: recompute every tensor of a release from base and adapters, and compare byte for byte.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::block::{BLOCK_LEN, TensorWork};
use super::plan::unplaced;
use super::shard::{self, PlacedTensor, Shard};
use crate::adapter::{Adapter, resolve};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::merge::{Float, Overflow, Vector};
use crate::progress::Progress;

/// Some bytes of one tensor.
struct Block {
    tensor: usize,
    bytes: Range<usize>,
}

fn blocks(shard: &Shard) -> Vec<Block> {
    let of = |(tensor, placed): (usize, &PlacedTensor)| {
        let len = placed.len as usize;
        (0..len).step_by(BLOCK_LEN).map(move |start| Block { tensor, bytes: start..len.min(start + BLOCK_LEN) })
    };
    shard.tensors.iter().enumerate().flat_map(of).collect()
}

/// The first way in which a release is not what its inputs give.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Difference {
    /// The release lacks a tensor.
    Missing {
        /// Its name.
        tensor: String,
    },
    /// The release has a tensor that the inputs don't give.
    Unexpected {
        /// Its name.
        tensor: String,
    },
    /// Type or shape differ.
    Form {
        /// Its name.
        tensor: String,
        /// Type and shape that the inputs give.
        expected: String,
        /// Type and shape in the release.
        found: String,
    },
    /// A value differs.
    Value {
        /// Its name.
        tensor: String,
        /// Row of the first value that differs (the first axis).
        row: u64,
        /// Its column (the other axes, flattened).
        column: u64,
        /// The value that the inputs give, as hex bytes and, for floats, as a number.
        expected: String,
        /// The value in the release.
        found: String,
    },
}

/// Compares `release` with what `base`, `adapters` and the two options give. `None` if every byte agrees.
#[expect(clippy::too_many_arguments, reason = "two models, the options that made one of the other, and how to run")]
pub fn audit(
    release: &Checkpoint,
    base: &Checkpoint,
    adapters: &[Adapter],
    (dtype, overflow): (Option<Float>, Overflow),
    jobs: usize,
    vector: Vector,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<Option<Difference>> {
    let whole = shard::split(unplaced(resolve(base, adapters)?.tensors, dtype), u64::MAX);
    let [expected] = &whole[..] else { return Ok(None) };
    if let Some(difference) = compare_forms(release, expected) {
        return Ok(Some(difference));
    }
    let blocks = blocks(expected);
    let uses = |t: &PlacedTensor| (t.len as usize).div_ceil(BLOCK_LEN);
    let works: Vec<TensorWork<'_>> =
        expected.tensors.iter().map(|t| TensorWork::new(t, uses(t), overflow, vector)).collect();
    progress.start(&[("audit".to_owned(), expected.tensors.iter().map(|t| t.len).sum())]);
    let next = AtomicUsize::new(0);
    let first: Mutex<Result<Option<(usize, Difference)>>> = Mutex::new(Ok(None));
    let work = || {
        let mut buffer = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = blocks.get(index) else { return };
            let found = if cancel.load(Ordering::Relaxed) {
                Err(Error::Interrupted { kept: None, finished: 0, shards: 0 })
            } else {
                compare(release, expected, &works[block.tensor], block, &mut buffer)
            };
            progress.advance(0, block.bytes.len() as u64);
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            match found {
                Ok(None) => continue,
                Ok(Some(d)) => {
                    if let Ok(earliest) = &mut *first
                        && earliest.as_ref().is_none_or(|(at, _)| index < *at)
                    {
                        *earliest = Some((index, d));
                    }
                }
                Err(e) => *first = Err(e),
            }
            // Blocks are taken in order, so every earlier one is done or in the hands of another worker.
            return next.store(blocks.len(), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.max(1) {
            scope.spawn(work);
        }
        work();
    });
    progress.finish(0);
    let first = first.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    Ok(first.map(|(_, difference)| difference))
}

/// Names, types and shapes.
fn compare_forms(release: &Checkpoint, expected: &Shard) -> Option<Difference> {
    let form = |dtype, shape: &[usize]| format!("{} {shape:?}", super::dtype_name(dtype));
    for tensor in &expected.tensors {
        let Some(found) = release.tensors.get(&tensor.name) else {
            return Some(Difference::Missing { tensor: tensor.name.clone() });
        };
        if (found.dtype(), found.shape()) != (tensor.dtype, &tensor.shape[..]) {
            let (expected, found) = (form(tensor.dtype, &tensor.shape), form(found.dtype(), found.shape()));
            return Some(Difference::Form { tensor: tensor.name.clone(), expected, found });
        }
    }
    let names: BTreeSet<&str> = expected.tensors.iter().map(|t| t.name.as_str()).collect();
    let extra = release.tensors.keys().find(|name| !names.contains(name.as_str()))?;
    Some(Difference::Unexpected { tensor: extra.clone() })
}

fn compare(
    release: &Checkpoint,
    expected: &Shard,
    work: &TensorWork<'_>,
    block: &Block,
    buffer: &mut Vec<u8>,
) -> Result<Option<Difference>> {
    let placed = &expected.tensors[block.tensor];
    let Some(found) = release.tensors.get(&placed.name) else { return Ok(None) };
    buffer.resize(block.bytes.len(), 0);
    work.fill(block.bytes.clone(), buffer)?;
    let right = &buffer[..];
    found.prefetch(block.bytes.start, block.bytes.len());
    let left = &found.bytes()[block.bytes.clone()];
    if left == right {
        return Ok(None);
    }
    let at = left.iter().zip(right).position(|(a, b)| a != b).unwrap_or(0);
    Ok(Some(value_difference(found, &placed.name, block.bytes.start, at, right, left)))
}

fn value_difference(tensor: &Tensor, name: &str, start: usize, at: usize, right: &[u8], left: &[u8]) -> Difference {
    let size = tensor.dtype().bitsize().div_ceil(8);
    let from = at / size * size;
    let element = ((start + from) / size) as u64;
    let columns = tensor.shape().iter().skip(1).product::<usize>().max(1) as u64;
    let show = |bytes: &[u8]| {
        let bytes = &bytes[from..(from + size).min(bytes.len())];
        let hex = super::hex(bytes);
        Float::of(tensor.dtype()).map_or(hex.clone(), |float| format!("{} (0x{hex})", float.widen_one(bytes)))
    };
    Difference::Value {
        tensor: name.to_owned(),
        row: element / columns,
        column: element % columns,
        expected: show(right),
        found: show(left),
    }
}
