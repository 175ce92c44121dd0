//! A micro-batch on the GPU, with the tiles that attention is cut into.

use super::card::{Card, broken};
use super::kernels::{KEY_ROWS, QUERY_ROWS};
use crate::engine::Batch;
use crate::error::Result;
use crate::gpu::DeviceMemory;

/// See the module.
pub struct CudaBatch {
    /// Tokens, of all segments.
    pub(super) rows: usize,
    pub(super) tokens: DeviceMemory,
    pub(super) positions: DeviceMemory,
    pub(super) starts: DeviceMemory,
    /// Of each segment: its first row, its rows, and the position of its first token.
    pub(super) segments: Vec<Segment>,
    pub(super) query_tiles: Tiles,
    pub(super) key_tiles: Tiles,
    /// How many targets there are, and of each its row, its token and its weight.
    pub(super) targets: usize,
    pub(super) target_rows: DeviceMemory,
    pub(super) target_tokens: DeviceMemory,
    pub(super) target_weights: DeviceMemory,
    /// The largest of each, which tables must reach.
    pub(super) largest_token: usize,
    pub(super) largest_position: usize,
    pub(super) largest_target: usize,
}

/// A segment, as the host knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) first: u32,
    pub(super) rows: u32,
    /// Tokens of the sequence before it.
    pub(super) before: u32,
}

/// Pairs of a segment's number and a first row within it, those with the most work first.
pub(super) struct Tiles {
    pub(super) memory: DeviceMemory,
    pub(super) count: usize,
}

impl CudaBatch {
    pub(super) fn place(card: &Card, batch: &Batch) -> Result<Self> {
        check(batch).map_err(|problem| broken(&format!("a batch of which {problem}")))?;
        let largest = |values: &[u32]| values.iter().max().map_or(0, |largest| *largest as usize);
        let tiles =
            |tiles: Vec<[u32; 2]>| -> Result<Tiles> { Ok(Tiles { memory: card.upload(&tiles)?, count: tiles.len() }) };
        let lengths: Vec<u32> = batch.starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let part = |of: fn(&crate::engine::Target) -> u32| batch.targets.iter().map(of).collect::<Vec<u32>>();
        let segment = |pair: &[u32]| Segment {
            first: pair[0],
            rows: pair[1] - pair[0],
            before: batch.positions.get(pair[0] as usize).copied().unwrap_or(0),
        };
        let weights: Vec<f32> = batch.targets.iter().map(|target| target.weight).collect();
        let (rows, tokens) = (part(|target| target.row), part(|target| target.token));
        Ok(Self {
            largest_token: largest(&batch.tokens),
            largest_position: largest(&batch.positions),
            largest_target: largest(&tokens),
            rows: batch.tokens.len(),
            tokens: card.upload(&batch.tokens)?,
            positions: card.upload(&batch.positions)?,
            starts: card.upload(&batch.starts)?,
            segments: batch.starts.windows(2).map(segment).collect(),
            query_tiles: tiles(cut(&lengths, QUERY_ROWS, |first, _| first))?,
            key_tiles: tiles(cut(&lengths, KEY_ROWS, |first, length| length - first))?,
            targets: batch.targets.len(),
            target_rows: card.upload(&rows)?,
            target_tokens: card.upload(&tokens)?,
            target_weights: card.upload(&weights)?,
        })
    }
}

/// What is wrong with a batch, if anything: kernels trust all of it.
fn check(batch: &Batch) -> Result<(), &'static str> {
    let Batch { tokens, positions, starts, targets } = batch;
    let ascending = |numbers: &[u32]| numbers.windows(2).all(|pair| pair[0] < pair[1]);
    let rows: Vec<u32> = targets.iter().map(|target| target.row).collect();
    let whole = starts.first() == Some(&0) && starts.last().map(|end| *end as usize) == Some(tokens.len());
    let none = tokens.is_empty() && starts.len() <= 1;
    if tokens.len() > i32::MAX as usize {
        return Err("there is too much");
    }
    if positions.len() != tokens.len() {
        return Err("the positions are not those of the tokens");
    }
    let covered = none || (whole && ascending(starts));
    if !covered {
        return Err("the segments don't cover the tokens");
    }
    if !ascending(&rows) || rows.last().is_some_and(|row| *row as usize >= tokens.len()) {
        return Err("the targets are not by ascending row");
    }
    Ok(())
}

impl Tiles {
    /// Tiles of queries that are rows `before..` of sequences, in their order.
    pub(super) fn of_queries(card: &Card, segments: &[Segment]) -> Result<Self> {
        let of = |(number, segment): (u32, &Segment)| {
            let first = segment.before;
            (first..first + segment.rows).step_by(QUERY_ROWS as usize).map(move |row| [number, row])
        };
        let tiles: Vec<[u32; 2]> = (0..).zip(segments).flat_map(of).collect();
        Ok(Self { memory: card.upload(&tiles)?, count: tiles.len() })
    }
}

/// Cuts segments into tiles of `rows` rows, those of the most `work` first.
fn cut(lengths: &[u32], rows: u32, work: impl Fn(u32, u32) -> u32) -> Vec<[u32; 2]> {
    let tiles = lengths
        .iter()
        .zip(0u32..)
        .flat_map(|(length, segment)| (0..*length).step_by(rows as usize).map(move |first| (segment, first, *length)));
    let mut tiles: Vec<_> = tiles.collect();
    tiles.sort_by_key(|(_, first, length)| std::cmp::Reverse(work(*first, *length)));
    tiles.into_iter().map(|(segment, first, _)| [segment, first]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Target;

    #[test]
    fn batches_are_checked() {
        let target = |row| Target { row, token: 0, weight: 1.0 };
        let good = Batch {
            tokens: vec![1, 2, 3],
            positions: vec![0, 1, 0],
            starts: vec![0, 2, 3],
            targets: vec![target(0), target(2)],
        };
        assert_eq!(check(&good), Ok(()));
        let with = |change: &dyn Fn(&mut Batch)| {
            let mut batch = good.clone();
            change(&mut batch);
            check(&batch).is_err()
        };
        assert!(with(&|batch| batch.positions.truncate(2)));
        assert!(with(&|batch| batch.starts[2] = 4) && with(&|batch| batch.starts[1] = 3));
        assert!(with(&|batch| batch.starts.truncate(1)) && with(&|batch| batch.starts[0] = 1));
        assert!(with(&|batch| batch.targets[1].row = 3) && with(&|batch| batch.targets[1].row = 0));
        assert_eq!(check(&Batch::default()), Ok(()));
    }

    #[test]
    fn tiles_cover_every_row_once_the_heaviest_first() {
        let lengths = [1, 128, 300, 64];
        let tiles = cut(&lengths, 128, |first, _| first);
        assert_eq!(tiles[..2], [[2, 256], [2, 128]]);
        let mut sorted = tiles.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [[0, 0], [1, 0], [2, 0], [2, 128], [2, 256], [3, 0]]);
        let tiles = cut(&lengths, 64, |first, length| length - first);
        assert_eq!((tiles.len(), tiles[0], tiles[8]), (9, [2, 0], [0, 0]));
    }
}
