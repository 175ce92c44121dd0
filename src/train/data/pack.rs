//! Which samples share a row of training, and in which order rows come. What is made of them is for `batch`.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Samples that are packed with each other: a whole file of the usual size, and few enough to keep neighbours near.
const CHUNK: usize = 1 << 14;

/// Packs samples of `lengths` tokens into rows of at most `max_length`: the longest first, each into the fullest row
/// that has enough free tokens, as ms-swift's packing does (`binpacking.to_constant_volume`), over chunks of 16,384. A sample that is longer gets a row of its own.
pub fn pack(lengths: &[usize], max_length: usize) -> Vec<Vec<usize>> {
    let mut packs = Vec::new();
    for (chunk, some) in lengths.chunks(CHUNK).enumerate() {
        pack_chunk(some, chunk * CHUNK, max_length, &mut packs);
    }
    packs
}

fn pack_chunk(lengths: &[usize], first: usize, max_length: usize, packs: &mut Vec<Vec<usize>>) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(lengths[*at]), *at));
    // Rows by their free tokens, the oldest first among equals.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for at in order {
        let len = lengths[at];
        let found = rooms.range((len, 0)..).next().copied();
        let (room, pack) = found.unwrap_or_else(|| {
            packs.push(Vec::new());
            (max_length, packs.len() - 1)
        });
        rooms.remove(&(room, pack));
        packs[pack].push(first + at);
        let left = room.saturating_sub(len);
        // No sample is empty, so a full row takes no more.
        if left > 0 {
            rooms.insert((left, pack));
        }
    }
}

/// The order in which epoch `epoch` goes through `rows` rows. The same on any machine.
pub fn epoch_order(rows: usize, epoch: u64, seed: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(b"qft order epochs");
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..rows).collect();
    for last in (1..rows).rev() {
        order.swap(last, below(&mut random, last as u64 + 1) as usize);
    }
    order
}

/// A number below `end`, each as likely: by rejection of what would make some likelier.
fn below(random: &mut ChaCha8Rng, end: u64) -> u64 {
    let even = u64::MAX - u64::MAX % end;
    loop {
        let drawn = random.next_u64();
        if drawn < even {
            return drawn % end;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_come_first_and_fill_the_fullest_row() {
        assert_eq!(pack(&[3, 7, 5, 2, 3, 10, 5], 10), [vec![5], vec![1, 0], vec![2, 6], vec![4, 3]]);
        assert_eq!(pack(&[12, 1], 10), [[0], [1]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<usize>>::new());
        let two_chunks = pack(&vec![4; CHUNK + 1], 8);
        assert_eq!((two_chunks.len(), two_chunks.last().unwrap()), (CHUNK / 2 + 1, &vec![CHUNK]));
    }

    proptest! {
        #[test]
        fn no_sample_is_lost_or_repeated_and_no_row_too_long(
            lengths in proptest::collection::vec(1usize..120, 0..400), max in 100usize..300,
        ) {
            let packs = pack(&lengths, max);
            let mut all: Vec<usize> = packs.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for pack in &packs {
                let tokens: usize = pack.iter().map(|at| lengths[*at]).sum();
                prop_assert!(!pack.is_empty() && (tokens <= max || pack.len() == 1));
            }
            // Two rows that are at most half full would have been one.
            let half = packs.iter().filter(|pack| pack.iter().map(|at| lengths[*at]).sum::<usize>() * 2 <= max).count();
            prop_assert!(half <= 1);
        }

        #[test]
        fn an_epoch_has_each_row_once(rows in 0usize..300, epoch: u64, seed: u64) {
            let mut order = epoch_order(rows, epoch, seed);
            prop_assert_eq!(&order, &epoch_order(rows, epoch, seed));
            order.sort_unstable();
            prop_assert_eq!(order, (0..rows).collect::<Vec<_>>());
        }
    }

    #[test]
    fn orders_differ_by_epoch_and_seed_and_stay_as_they_are() {
        assert_eq!(epoch_order(8, 0, 42), ORDER);
        assert!(epoch_order(50, 0, 42) != epoch_order(50, 1, 42) && epoch_order(50, 0, 42) != epoch_order(50, 0, 43));
    }

    /// A resumed run counts on it.
    const ORDER: [usize; 8] = [6, 0, 4, 1, 5, 3, 2, 7];

    #[test]
    fn every_place_is_as_likely() {
        let mut counts = [[0u32; 4]; 4];
        for seed in 0..4000 {
            epoch_order(4, 0, seed).into_iter().enumerate().for_each(|(place, row)| counts[place][row] += 1);
        }
        assert!(counts.as_flattened().iter().all(|count| (880..1120).contains(count)), "{counts:?}");
    }
}
