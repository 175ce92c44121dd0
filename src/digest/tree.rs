//! A BLAKE3 digest from pieces that are made anywhere, in any order: their chaining values are the leaves of a tree
//! whose root is the digest (<https://github.com/BLAKE3-team/BLAKE3-specs>, sections 2.1 and 2.4). The values are
//! made here for the processor, and in gpu/lanes/kernels/blake3.cu on a GPU.

use std::sync::{Mutex, PoisonError};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes of a piece: 64 of BLAKE3's chunks. All but the last have so many.
pub const PIECE: usize = 64 << 10;

/// The digest of an input of known length, joined from its pieces. Each piece is given once, by whichever thread.
#[derive(Debug)]
pub struct PieceTree {
    len: u64,
    found: Mutex<Found>,
}

#[derive(Debug)]
enum Found {
    /// The digest of an input that is no longer than a piece: no value of a tree, since a root is hashed otherwise.
    Whole(Option<[u8; 32]>),
    /// Chaining values by piece, and how many are missing.
    Pieces(Vec<Option<ChainingValue>>, usize),
}

impl PieceTree {
    /// A tree over an input of `len` bytes. Takes half a thousandth of them.
    pub fn new(len: u64) -> Self {
        let found = if len == 0 {
            Found::Whole(Some(blake3::hash(&[]).into()))
        } else if len <= PIECE as u64 {
            Found::Whole(None)
        } else {
            let count = len.div_ceil(PIECE as u64) as usize;
            Found::Pieces(vec![None; count], count)
        };
        Self { len, found: Mutex::new(found) }
    }

    /// Whether chaining values make the digest. The bytes of an input of one piece or less must be given instead.
    pub fn takes_values(&self) -> bool {
        self.len > PIECE as u64
    }

    /// Gives the chaining values (32 bytes each, none a root's) of the pieces from `first` on.
    pub fn add_values(&self, first: usize, values: &[u8]) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let Found::Pieces(pieces, missing) = &mut *found else {
            debug_assert!(values.is_empty(), "one piece has no chaining value of use");
            return;
        };
        let (values, rest) = values.as_chunks::<32>();
        debug_assert!(rest.is_empty() && first + values.len() <= pieces.len(), "no such pieces");
        for (piece, value) in pieces.iter_mut().skip(first).zip(values) {
            *missing -= usize::from(piece.replace(*value).is_none());
        }
    }

    /// Hashes and gives the pieces from `first` on. `bytes` ends with a piece.
    pub fn add_bytes(&self, first: usize, bytes: &[u8]) {
        debug_assert!(
            bytes.len().is_multiple_of(PIECE) || (first * PIECE + bytes.len()) as u64 == self.len,
            "{} bytes are no whole pieces",
            bytes.len()
        );
        if self.takes_values() {
            let values: Vec<u8> =
                bytes.chunks(PIECE).enumerate().flat_map(|(i, piece)| chaining_value(first + i, piece)).collect();
            self.add_values(first, &values);
        } else if self.len > 0 {
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Found::Whole(Some(blake3::hash(bytes).into()));
        }
    }

    /// The digest, or `None` if a piece is missing.
    pub fn finish(self) -> Option<[u8; 32]> {
        let mut level: Vec<ChainingValue> = match self.found.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Found::Whole(digest) => return digest,
            Found::Pieces(_, 1..) => return None,
            Found::Pieces(pieces, 0) => pieces.into_iter().flatten().collect(),
        };
        // Neighbours join level by level, and one without a neighbour rises as it is: every left subtree is then the
        // largest power of two of chunks that leaves something to its right, as BLAKE3 has it.
        loop {
            if let [left, right] = &level[..] {
                return Some(merge_subtrees_root(left, right, Mode::Hash).into());
            }
            level = level.chunks(2).map(join).collect();
        }
    }
}

/// The chaining value of piece `index`.
pub(crate) fn chaining_value(index: usize, piece: &[u8]) -> ChainingValue {
    blake3::Hasher::new().set_input_offset((index * PIECE) as u64).update(piece).finalize_non_root()
}

/// The parent of two neighbours; one alone is its own.
fn join(neighbours: &[ChainingValue]) -> ChainingValue {
    match neighbours {
        [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
        alone => alone.first().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn input(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn digest(bytes: &[u8]) -> [u8; 32] {
        blake3::hash(bytes).into()
    }

    #[test]
    fn is_the_digest_at_every_edge() {
        let whole = input(9 * PIECE + 1);
        let edges = (0..=9).flat_map(|pieces| [0, 1, 63, 64, 1023, 1024, 1025, PIECE - 1].map(|n| pieces * PIECE + n));
        for len in edges.filter(|len| *len <= whole.len()) {
            let tree = PieceTree::new(len as u64);
            // The last piece first.
            for (i, piece) in whole[..len].chunks(PIECE).enumerate().collect::<Vec<_>>().into_iter().rev() {
                tree.add_bytes(i, piece);
            }
            assert_eq!(tree.finish(), Some(digest(&whole[..len])), "{len} bytes");
        }
    }

    #[test]
    fn a_missing_piece_is_no_digest() {
        let bytes = input(3 * PIECE);
        let tree = PieceTree::new(bytes.len() as u64);
        tree.add_bytes(0, &bytes[..PIECE]);
        tree.add_bytes(2, &bytes[2 * PIECE..]);
        // Again: it must not count for the missing one.
        tree.add_bytes(2, &bytes[2 * PIECE..]);
        assert_eq!(tree.finish(), None);
        assert_eq!(PieceTree::new(7).finish(), None);
    }

    #[test]
    fn threads_may_give_pieces_at_once() {
        let bytes = input(21 * PIECE + 77);
        let tree = PieceTree::new(bytes.len() as u64);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (tree, bytes) = (&tree, &bytes);
                scope.spawn(move || {
                    bytes.chunks(PIECE).enumerate().skip(worker).step_by(4).for_each(|(i, piece)| {
                        tree.add_values(i, &chaining_value(i, piece));
                    });
                });
            }
        });
        assert_eq!(tree.finish(), Some(digest(&bytes)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_length_and_order(len in 0..20 * PIECE, seed: u64, run in 1usize..5) {
            let bytes = input(len);
            let tree = PieceTree::new(len as u64);
            let mut runs: Vec<(usize, &[u8])> =
                bytes.chunks(run * PIECE).enumerate().map(|(i, bytes)| (i * run, bytes)).collect();
            runs.sort_by_key(|(first, _)| (*first as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
            for (first, bytes) in runs {
                tree.add_bytes(first, bytes);
            }
            prop_assert_eq!(tree.finish(), Some(digest(&bytes)));
        }
    }
}
