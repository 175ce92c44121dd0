//! What is said of a tokenized set before training: how long its rows are, which were dropped, how full the packs are.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::fit::Encoded;

/// Lengths of a tokenized set, in tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// Samples.
    pub samples: usize,
    /// Tokens of all samples.
    pub tokens: u64,
    /// Tokens that are trained on.
    pub trained: u64,
    /// Tokens of the shortest sample.
    pub min: usize,
    /// Half of the samples are no longer (nearest rank).
    pub median: usize,
    /// 95 of 100 samples are no longer (nearest rank).
    pub p95: usize,
    /// Tokens of the longest sample.
    pub max: usize,
    /// Mean tokens of a sample.
    pub mean: f64,
    /// Rows that were dropped, by the kind of reason.
    pub dropped: BTreeMap<&'static str, usize>,
    /// The packs, if samples were packed.
    pub packing: Option<Packing>,
}

/// How samples were packed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Packing {
    /// Packs.
    pub packs: usize,
    /// Most tokens of a pack.
    pub max_length: usize,
    /// Tokens over what the packs could hold.
    pub efficiency: f64,
}

impl Lengths {
    /// Counts the samples of a set that `order` names, as often as it does.
    pub fn new(set: &Encoded, order: &[usize]) -> Self {
        let samples = || order.iter().map(|at| &set.samples[*at]);
        let mut lengths: Vec<usize> = samples().map(|sample| sample.ids.len()).collect();
        lengths.sort_unstable();
        let rank =
            |percent: usize| lengths.get((lengths.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or(0);
        let mut dropped = BTreeMap::new();
        set.dropped.iter().for_each(|row| *dropped.entry(row.reason.kind()).or_default() += 1);
        let tokens = lengths.iter().map(|len| *len as u64).sum();
        Self {
            samples: lengths.len(),
            tokens,
            trained: samples().map(|sample| sample.trained() as u64).sum(),
            min: lengths.first().copied().unwrap_or(0),
            median: rank(50),
            p95: rank(95),
            max: lengths.last().copied().unwrap_or(0),
            mean: tokens as f64 / lengths.len().max(1) as f64,
            dropped,
            packing: None,
        }
    }

    /// With the figures of a packing into `packs` packs of at most `max_length` tokens.
    #[must_use]
    pub fn packed(mut self, packs: usize, max_length: usize) -> Self {
        let efficiency = self.tokens as f64 / (packs as f64 * max_length as f64).max(1.0);
        self.packing = Some(Packing { packs, max_length, efficiency });
        self
    }
}

/// A few lines for users.
impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, tokens, trained, min, median, p95, max, mean, dropped, packing } = self;
        let share = *trained as f64 / (*tokens).max(1) as f64 * 100.0;
        writeln!(f, "{samples} samples, {tokens} tokens, {trained} of them trainable ({share:.1}%)")?;
        write!(f, "lengths: min {min}, median {median}, mean {mean:.1}, p95 {p95}, max {max}")?;
        if let Some(Packing { packs, max_length, efficiency }) = packing {
            write!(f, "\npacked into {packs} rows of up to {max_length} tokens, {:.1}% full", efficiency * 100.0)?;
        }
        if !dropped.is_empty() {
            let counts: Vec<String> = dropped.iter().map(|(kind, rows)| format!("{rows} {kind}")).collect();
            write!(f, "\ndropped rows: {}", counts.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::Sample;
    use super::super::fit::{Dropped, Reason};
    use super::*;

    #[test]
    fn figures_are_those_of_the_set() {
        let sample = |len: usize| Sample { ids: vec![1; len], weights: (0..len).map(|at| f32::from(at > 1)).collect() };
        let refused = Reason::Refused { problem: String::new(), remedy: String::new() };
        let reasons = [Reason::TooLong(9), Reason::Untrained, Reason::FarTooLong(8), refused];
        let set = Encoded {
            samples: (1..=20).rev().map(sample).collect(),
            rows: (0..20).collect(),
            dropped: reasons.into_iter().zip(20..).map(|(reason, row)| Dropped { row, reason }).collect(),
            as_given: 0,
        };
        let found = Lengths::new(&set, &(0..20).collect::<Vec<_>>()).packed(12, 20);
        assert_eq!(
            (found.min, found.median, found.p95, found.max, found.tokens, found.trained),
            (1, 10, 19, 20, 210, 171)
        );
        let text = "20 samples, 210 tokens, 171 of them trainable (81.4%)\nlengths: min 1, median 10, mean 10.5, p95 \
                    19, max 20\npacked into 12 rows of up to 20 tokens, 87.5% full\ndropped rows: 1 no trainable \
                    token, 1 refused, 2 too long";
        assert_eq!(found.to_string(), text);
        assert_eq!(Lengths::new(&set, &[19, 19, 18]).tokens, 4, "a sample may be there twice");
        let none = Lengths::new(&Encoded::default(), &[]);
        assert_eq!((none.median, none.max, none.mean), (0, 0, 0.0));
    }
}
