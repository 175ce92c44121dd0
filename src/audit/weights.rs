//! The audit of safetensors: recompute every tensor of a release from base and adapters, and compare byte for byte.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Inputs;
use crate::checkpoint::{Checkpoint, Tensor, dtype_name};
use crate::error::{Error, Result};
use crate::export::{Merged, MergedTensor, PlacedTensor, Run, Shard, split};
use crate::gpu::Assist;
use crate::merge::Float;
use crate::stream::BLOCK_LEN;

/// Some bytes of one tensor.
pub(super) struct Block {
    pub(super) tensor: usize,
    pub(super) bytes: Range<usize>,
}

/// The blocks of tensors of these lengths.
pub(super) fn blocks(lens: impl Iterator<Item = u64>) -> Vec<Block> {
    let of = |(tensor, len): (usize, u64)| {
        let len = len as usize;
        (0..len).step_by(BLOCK_LEN).map(move |start| Block { tensor, bytes: start..len.min(start + BLOCK_LEN) })
    };
    lens.enumerate().flat_map(of).collect()
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
    /// A file beside the weights is missing, is one too many, or differs.
    File {
        /// Its name.
        file: String,
        /// In what it differs.
        problem: String,
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

/// Compares the tensors of `release` with what its inputs give. `None` if every byte agrees. Nothing is resumed, whatever
/// `how` says.
pub(super) fn audit_weights(release: &Checkpoint, inputs: &Inputs<'_>, how: &Run<'_>) -> Result<Option<Difference>> {
    let merged = Merged::new(inputs.base, inputs.adapters, inputs.dtype)?;
    let expected = whole(split(merged.tensors, u64::MAX))?;
    match compare_forms(release, &expected) {
        None => compare_values(release, inputs, &expected, how),
        difference => Ok(difference),
    }
}

/// The one shard that holds a model of any size.
fn whole(shards: Vec<Shard>) -> Result<Shard> {
    let count = shards.len();
    let mut shards = shards.into_iter();
    match (shards.next(), shards.next()) {
        (Some(shard), None) => Ok(shard),
        _ => Err(Error::bug(
            format!("the audit planned the expected tensors in {count} shards, and compares one"),
            "report this: it is a bug in qft",
        )),
    }
}

fn compare_values(
    release: &Checkpoint,
    inputs: &Inputs<'_>,
    expected: &Shard,
    how: &Run<'_>,
) -> Result<Option<Difference>> {
    let uses = |t: &PlacedTensor| (t.len as usize).div_ceil(BLOCK_LEN);
    let work_on = |t| MergedTensor::placed(t, uses(t), inputs.overflow, how.vector);
    let works: Vec<MergedTensor<'_>> = expected.tensors.iter().map(work_on).collect();
    compare_blocks(&blocks(expected.tensors.iter().map(|t| t.len)), how, |block, buffer| {
        compare(release, &expected.tensors[block.tensor], &works[block.tensor], block, buffer)
    })
}

/// Compares `blocks` side by side, and finds the difference in the earliest of them.
pub(super) fn compare_blocks(
    blocks: &[Block],
    how: &Run<'_>,
    compare: impl Fn(&Block, &mut Vec<u8>) -> Result<Option<Difference>> + Sync,
) -> Result<Option<Difference>> {
    how.progress.start(&[("audit".to_owned(), blocks.iter().map(|block| block.bytes.len() as u64).sum())]);
    let next = AtomicUsize::new(0);
    let first = Mutex::new(Ok(None));
    let work = || {
        let mut buffer = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = blocks.get(index) else { return };
            let found = if how.cancel.load(Ordering::Relaxed) {
                Err(Error::Interrupted { kept: None, finished: 0, shards: 0 })
            } else {
                compare(block, &mut buffer)
            };
            how.progress.advance(0, block.bytes.len() as u64);
            if found.as_ref().is_ok_and(Option::is_none) {
                continue;
            }
            keep_first(&mut first.lock().unwrap_or_else(PoisonError::into_inner), index, found);
            // Blocks are taken in order, so every earlier one is done or in the hands of another worker.
            return next.store(blocks.len(), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..how.jobs {
            scope.spawn(work);
        }
        work();
    });
    how.progress.finish(0);
    let first = first.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    Ok(first.map(|(_, difference)| difference))
}

/// The difference in the earliest block so far, with the block's number; or an error, which outweighs any difference.
type First = Result<Option<(usize, Difference)>>;

fn keep_first(first: &mut First, index: usize, found: Result<Option<Difference>>) {
    match (found, &mut *first) {
        (Ok(Some(difference)), Ok(earliest)) if earliest.as_ref().is_none_or(|(at, _)| index < *at) => {
            *earliest = Some((index, difference));
        }
        (Err(error), Ok(_)) => *first = Err(error),
        _ => {}
    }
}

/// Names, types and shapes.
fn compare_forms(release: &Checkpoint, expected: &Shard) -> Option<Difference> {
    let form = |dtype, shape: &[usize]| format!("{} {shape:?}", dtype_name(dtype));
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
    expected: &PlacedTensor,
    work: &MergedTensor<'_>,
    block: &Block,
    buffer: &mut Vec<u8>,
) -> Result<Option<Difference>> {
    let tensor = expected.name.clone();
    let Some(found) = release.tensors.get(&tensor) else { return Ok(Some(Difference::Missing { tensor })) };
    buffer.resize(block.bytes.len(), 0);
    work.fill(block.bytes.clone(), buffer, &mut Assist::none())?;
    let right = &buffer[..];
    found.prefetch(block.bytes.start, block.bytes.len());
    let left = &found.bytes()[block.bytes.clone()];
    if left == right {
        return Ok(None);
    }
    let at = left.iter().zip(right).position(|(a, b)| a != b).unwrap_or(0);
    Ok(Some(value_difference(found, tensor, block.bytes.start, at, right, left)))
}

fn value_difference(found: &Tensor, tensor: String, start: usize, at: usize, right: &[u8], left: &[u8]) -> Difference {
    let size = found.dtype().bitsize().div_ceil(8);
    let from = at / size * size;
    let element = ((start + from) / size) as u64;
    let columns = found.shape().iter().skip(1).product::<usize>().max(1) as u64;
    let show = |bytes: &[u8]| {
        let bytes = &bytes[from..(from + size).min(bytes.len())];
        let hex = crate::digest::hex(bytes);
        Float::of(found.dtype()).map_or(hex.clone(), |float| format!("{} (0x{hex})", float.widen_one(bytes)))
    };
    Difference::Value {
        tensor,
        row: element / columns,
        column: element % columns,
        expected: show(right),
        found: show(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_shard_is_a_whole_model() {
        let shards = |n| (0..n).flat_map(|_| split(Vec::new(), u64::MAX)).collect::<Vec<_>>();
        assert!(whole(shards(1)).is_ok());
        for n in [0, 2] {
            assert!(whole(shards(n)).unwrap_err().to_string().contains("report this"), "{n} shards");
        }
    }

    #[test]
    fn the_earliest_difference_and_any_error_win() {
        let missing = |tensor: &str| Difference::Missing { tensor: tensor.to_owned() };
        let mut first = Ok(None);
        for (index, name) in [(5, "b"), (3, "a"), (9, "c")] {
            keep_first(&mut first, index, Ok(Some(missing(name))));
        }
        assert_eq!(first.as_ref().unwrap(), &Some((3, missing("a"))));
        keep_first(&mut first, 7, Err(Error::bug("no", "none")));
        keep_first(&mut first, 1, Ok(Some(missing("z"))));
        assert!(first.is_err());
    }
}
