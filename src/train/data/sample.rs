//! Seeded choices of rows, the same on every machine: `ChaCha8` keyed by the seed, and Fisher-Yates.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::conversation::{Conversation, Origin};

/// What a choice is for. Each purpose has its own stream of numbers.
#[derive(Clone, Copy)]
enum Purpose {
    Sample = 1,
    Split = 2,
}

/// `count` of `rows` rows by their numbers, without replacement, in their order. If there are fewer, every row comes as
/// often as it fits whole, and the rest is chosen, as ms-swift has it (`dataset/utils.py`). `nth` tells datasets of a run
/// apart.
pub(super) fn sample(rows: usize, count: usize, seed: u64, nth: u64) -> Vec<usize> {
    let (Some(whole), Some(rest)) = (count.checked_div(rows), count.checked_rem(rows)) else { return Vec::new() };
    let chosen = choose(rows, rest, &mut rng(seed, Purpose::Sample, nth));
    let whole = (0..whole).flat_map(|_| 0..rows);
    whole.chain((0..rows).filter(|row| chosen[*row])).collect()
}

/// Parts the rows of `order`, numbers of `conversations`, into those to train on and those held out, both in the order they
/// have. Held out are `held_out` of them, rounded down, but at least one, and one at least is left to train on; none if
/// there is but one, or `held_out` is not above 0. Copies of one row (of a sample that repeats) stay on one side.
pub fn split(conversations: &[Conversation], order: Vec<usize>, held_out: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut numbers: HashMap<&Origin, usize> = HashMap::new();
    let row_of: Vec<usize> = order
        .iter()
        .map(|at| {
            let next = numbers.len();
            *numbers.entry(&conversations[*at].origin).or_insert(next)
        })
        .collect();
    let rows = numbers.len();
    if held_out.is_nan() || held_out <= 0.0 || rows < 2 {
        return (order, Vec::new());
    }
    // Above 0, as was just seen; a float beyond usize becomes its largest value.
    #[allow(clippy::cast_sign_loss)]
    let count = ((rows as f64 * held_out) as usize).clamp(1, rows - 1);
    let chosen = choose(rows, count, &mut rng(seed, Purpose::Split, 0));
    let (held, kept): (Vec<_>, Vec<_>) = order.into_iter().zip(row_of).partition(|(_, row)| chosen[*row]);
    let rows = |part: Vec<(usize, usize)>| part.into_iter().map(|(at, _)| at).collect();
    (rows(kept), rows(held))
}

/// A generator whose key is the seed, the purpose and `nth`: no expansion of a seed that a library might change.
fn rng(seed: u64, purpose: Purpose, nth: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    key[16..24].copy_from_slice(&nth.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Marks `count` of `len` (`count` is at most `len`), each set of them as likely as any other.
fn choose(len: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<bool> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut chosen = vec![false; len];
    for i in 0..count {
        let other = i + below(len - i, rng);
        order.swap(i, other);
        chosen[order[i]] = true;
    }
    chosen
}

/// A number below `bound`, which is not 0, without bias: those beyond the last whole multiple are drawn again.
fn below(bound: usize, rng: &mut ChaCha8Rng) -> usize {
    let bound = bound as u64;
    let excess = (u64::MAX % bound + 1) % bound;
    loop {
        let drawn = rng.next_u64();
        if drawn <= u64::MAX - excess {
            return (drawn % bound) as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn rows(count: u64) -> Vec<Conversation> {
        let file: Arc<Path> = Path::new("rows.jsonl").into();
        let row = |line| Conversation {
            messages: Vec::new(),
            tools: Vec::new(),
            origin: Origin { file: file.clone(), line },
        };
        (1..=count).map(row).collect()
    }

    /// Numbers of rows, from 0: the lines less one.
    const GOLDEN: [usize; 5] = [11, 25, 85, 90, 97];

    #[test]
    fn samples_the_same_rows_for_a_seed_wherever_it_runs() {
        assert_eq!(sample(100, 5, 42, 0), GOLDEN);
        assert_ne!(sample(100, 5, 43, 0), GOLDEN);
        assert_ne!(sample(100, 5, 42, 1), GOLDEN);
    }

    #[test]
    fn repeats_rows_only_when_there_are_too_few() {
        let seven = sample(10, 7, 1, 0);
        assert_eq!((seven.len(), seven.iter().collect::<HashSet<_>>().len()), (7, 7));
        assert!(seven.is_sorted());
        let many = sample(10, 23, 1, 0);
        let times = |row| many.iter().filter(|other| **other == row).count();
        assert_eq!(many.len(), 23);
        assert_eq!((0..10).filter(|row| times(*row) == 3).count(), 3);
        assert!((0..10).all(|row| (2..=3).contains(&times(row))));
        assert_eq!(sample(10, 10, 1, 0), (0..10).collect::<Vec<_>>());
        assert!(sample(0, 3, 1, 0).is_empty());
    }

    #[test]
    fn every_row_is_as_likely() {
        let mut times = [0_u32; 10];
        for seed in 0..5000 {
            sample(10, 3, seed, 0).iter().for_each(|row| times[*row] += 1);
        }
        // 1500 are expected, with a standard deviation of 32.
        assert!(times.iter().all(|times| (1370..1630).contains(times)), "{times:?}");
    }

    fn parted(count: usize, ratio: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
        split(&rows(count as u64), (0..count).collect(), ratio, seed)
    }

    #[test]
    fn holds_out_what_was_asked_and_never_all() {
        for (count, ratio, held) in
            [(100, 0.1, 10), (100, 0.001, 1), (2, 0.01, 1), (1, 0.5, 0), (100, 0.0, 0), (5, 1.0, 4), (5, f64::NAN, 0)]
        {
            let (kept, out) = parted(count, ratio, 7);
            assert_eq!((out.len(), kept.len() + out.len()), (held, count), "{count} rows, {ratio}");
            let mut all = [kept, out].concat();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
        assert_eq!(parted(50, 0.2, 3), parted(50, 0.2, 3));
        assert_ne!(parted(50, 0.2, 3), parted(50, 0.2, 4));
    }

    #[test]
    fn copies_of_a_row_stay_on_one_side() {
        let (kept, held) = split(&rows(10), sample(10, 25, 5, 0), 0.3, 5);
        let (kept, held): (HashSet<_>, HashSet<_>) = (kept.into_iter().collect(), held.into_iter().collect());
        assert_eq!((held.len(), kept.len()), (3, 7));
        assert!(kept.is_disjoint(&held));
    }
}
