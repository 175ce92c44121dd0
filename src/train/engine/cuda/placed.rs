//! A micro-batch on the card, with the tiles that attention is cut into.

use super::card::Card;
use super::kernels::{KEY_ROWS, QUERY_ROWS};
use crate::error::Result;
use crate::gpu::DeviceMemory;
use crate::train::data::Batch;

/// See the module.
pub struct CudaBatch {
    /// Tokens, of all segments.
    pub(super) rows: usize,
    pub(super) tokens: DeviceMemory,
    pub(super) positions: DeviceMemory,
    pub(super) starts: DeviceMemory,
    pub(super) query_tiles: Tiles,
    pub(super) key_tiles: Tiles,
    /// How many targets there are, and of each its row, its token and its weight.
    pub(super) targets: usize,
    pub(super) target_rows: DeviceMemory,
    pub(super) target_tokens: DeviceMemory,
    pub(super) target_weights: DeviceMemory,
}

/// Pairs of a segment's number and a first row within it, those with the most work first.
pub(super) struct Tiles {
    pub(super) memory: DeviceMemory,
    pub(super) count: usize,
}

impl CudaBatch {
    pub(super) fn place(card: &Card, batch: &Batch) -> Result<Self> {
        let tiles =
            |tiles: Vec<[u32; 2]>| -> Result<Tiles> { Ok(Tiles { memory: card.upload(&tiles)?, count: tiles.len() }) };
        let lengths: Vec<u32> = batch.starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let part = |of: fn(&crate::train::data::Target) -> u32| batch.targets.iter().map(of).collect::<Vec<u32>>();
        let weights: Vec<f32> = batch.targets.iter().map(|target| target.weight).collect();
        Ok(Self {
            rows: batch.tokens.len(),
            tokens: card.upload(&batch.tokens)?,
            positions: card.upload(&batch.positions)?,
            starts: card.upload(&batch.starts)?,
            query_tiles: tiles(cut(&lengths, QUERY_ROWS, |first, _| first))?,
            key_tiles: tiles(cut(&lengths, KEY_ROWS, |first, length| length - first))?,
            targets: batch.targets.len(),
            target_rows: card.upload(&part(|target| target.row))?,
            target_tokens: card.upload(&part(|target| target.token))?,
            target_weights: card.upload(&weights)?,
        })
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
