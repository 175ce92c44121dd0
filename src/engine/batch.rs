//! What a device is given at once: tokens of several conversations, one after another, each in its own segment.

/// A micro-batch. Attention and positions stay within a segment; nothing is padded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Positions, from 0 in each segment.
    pub positions: Vec<u32>,
    /// Where segments begin, and the end: `segments + 1` ascending numbers from 0.
    pub starts: Vec<u32>,
    /// What is to be predicted, by ascending row.
    pub targets: Vec<Target>,
}

/// A token that is to be predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The row whose output predicts it: the one before the token's own.
    pub row: u32,
    /// The token.
    pub token: u32,
    /// The weight of its loss.
    pub weight: f32,
}

/// What a segment is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sequence<'s> {
    /// Token ids.
    pub tokens: &'s [u32],
    /// The weight of each token's loss, of which the first counts nothing; none at all where nothing is to be predicted.
    pub weights: &'s [f32],
}

impl Batch {
    /// Joins `sequences`. Empty ones are left out. A micro-batch has far fewer than 2^32 tokens, as memory ends before.
    pub fn new<'s, S: Into<Sequence<'s>>>(sequences: impl IntoIterator<Item = S>) -> Self {
        let mut batch = Self { starts: vec![0], ..Self::default() };
        for Sequence { tokens, weights } in sequences.into_iter().map(Into::into) {
            if tokens.is_empty() {
                continue;
            }
            let start = batch.tokens.len() as u32;
            batch.tokens.extend(tokens);
            batch.positions.extend(0..tokens.len() as u32);
            batch.starts.push(batch.tokens.len() as u32);
            let predicted = tokens.iter().zip(weights).skip(1);
            let targets = (start..).zip(predicted).filter(|(_, (_, weight))| **weight != 0.0);
            batch.targets.extend(targets.map(|(row, (token, weight))| Target { row, token: *token, weight: *weight }));
        }
        batch
    }

    /// The weights of all targets: what the sum of losses is divided by, once summed over a step.
    pub fn weight(&self) -> f64 {
        self.targets.iter().map(|target| f64::from(target.weight)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn segments_follow_each_other_and_the_row_before_predicts() {
        let one = Sequence { tokens: &[7, 8, 9], weights: &[0.0, 0.0, 1.0] };
        let none = Sequence { tokens: &[], weights: &[] };
        let two = Sequence { tokens: &[5, 6], weights: &[1.0, 0.5] };
        let batch = Batch::new([one, none, two]);
        assert_eq!(batch.tokens, [7, 8, 9, 5, 6]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.starts, [0, 3, 5]);
        let target = |row, token, weight| Target { row, token, weight };
        assert_eq!(batch.targets, [target(1, 9, 1.0), target(3, 6, 0.5)]);
        assert!((batch.weight() - 1.5).abs() < 1e-12);
        assert_eq!(Batch::new([none]).starts, [0]);
        let unweighted = Batch::new([Sequence { tokens: &[5, 6], weights: &[] }]);
        assert_eq!((unweighted.tokens, unweighted.targets), (vec![5, 6], vec![]));
    }

    proptest! {
        #[test]
        fn no_target_reaches_out_of_its_segment(
            rows in proptest::collection::vec(proptest::collection::vec((0u32..50, 0u8..3), 0..20), 0..12),
        ) {
            let tokens: Vec<Vec<u32>> = rows.iter().map(|row| row.iter().map(|(id, _)| *id).collect()).collect();
            let weight = |(_, weight): &(u32, u8)| f32::from(*weight);
            let weights: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(weight).collect()).collect();
            let batch = Batch::new(tokens.iter().zip(&weights).map(|(tokens, weights)| Sequence { tokens, weights }));
            prop_assert_eq!(batch.tokens.len(), tokens.iter().map(Vec::len).sum::<usize>());
            prop_assert_eq!(*batch.starts.last().unwrap() as usize, batch.tokens.len());
            let segment = |at: u32| batch.starts.partition_point(|start| *start <= at) - 1;
            for target in &batch.targets {
                let next = target.row + 1;
                prop_assert!((next as usize) < batch.tokens.len());
                prop_assert_eq!(segment(target.row), segment(next));
                prop_assert_eq!(batch.positions[target.row as usize] + 1, batch.positions[next as usize]);
                prop_assert_eq!(batch.tokens[next as usize], target.token);
                prop_assert!(target.weight > 0.0);
            }
            let weights = weights.iter().flat_map(|weights| weights.iter().skip(1));
            let learned = weights.filter(|weight| **weight != 0.0).count();
            prop_assert_eq!(batch.targets.len(), learned);
        }
    }
}
