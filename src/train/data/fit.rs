//! Rows that are too long, or that teach nothing: what is cut, and what is dropped for which reason.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::encode::Sample;
use crate::error::{Error, Result};

/// What happens to a row that is longer than allowed, as ms-swift's `--truncation_strategy` names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// It is dropped.
    #[default]
    Delete,
    /// Its beginning is cut off.
    Left,
    /// Its end is cut off.
    Right,
}

/// Why a row was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It has that many tokens, more than allowed.
    TooLong(usize),
    /// No token of it is learned.
    Untrained,
    /// It can't be rendered: file, place and problem.
    Refused(String),
}

impl Reason {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "too long",
            Self::Untrained => "nothing to learn",
            Self::Refused(_) => "refused",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(tokens) => write!(f, "has {tokens} tokens, more than --max_length"),
            Self::Untrained => f.write_str("has no token that is learned"),
            Self::Refused(problem) => f.write_str(problem),
        }
    }
}

/// A row that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its place among the rows.
    pub row: usize,
    /// Why.
    pub reason: Reason,
}

/// A tokenized set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// The samples, in the order of their rows.
    pub samples: Vec<Sample>,
    /// The row of each.
    pub rows: Vec<usize>,
    /// The other rows, in order.
    pub dropped: Vec<Dropped>,
}

impl Encoded {
    /// How many tokens each sample has.
    pub fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(|sample| sample.ids.len()).collect()
    }

    /// Refuses the set if a row couldn't be rendered, with the first; for `--strict`. Rows that are only too long, or
    /// that teach nothing, are dropped all the same.
    pub fn check_strictly(&self) -> Result<()> {
        let refused = self.dropped.iter().find_map(|dropped| match &dropped.reason {
            Reason::Refused(problem) => Some(problem.clone()),
            _ => None,
        });
        refused.map_or(Ok(()), |problem| Err(Error::refused(problem, "or run without --strict, which skips such rows")))
    }
}

/// `sample` within `max_length`.
pub(super) fn fit(mut sample: Sample, max_length: Option<usize>, truncation: Truncation) -> Result<Sample, Reason> {
    let len = sample.ids.len();
    if let Some(max) = max_length.filter(|max| len > *max) {
        match truncation {
            Truncation::Delete => return Err(Reason::TooLong(len)),
            Truncation::Left => {
                sample.ids.drain(..len - max);
                sample.weights.drain(..len - max);
            }
            Truncation::Right => {
                sample.ids.truncate(max);
                sample.weights.truncate(max);
            }
        }
        if let Some(first) = sample.weights.first_mut() {
            *first = 0.0;
        }
    }
    if sample.trained() == 0 { Err(Reason::Untrained) } else { Ok(sample) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(weights: &[f32]) -> Sample {
        Sample { ids: (0..).take(weights.len()).collect(), weights: weights.to_vec() }
    }

    #[test]
    fn long_rows_are_dropped_or_cut_and_the_first_token_teaches_nothing() {
        let row = || sample(&[0.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(fit(row(), Some(5), Truncation::Delete), Ok(row()));
        assert_eq!(fit(row(), None, Truncation::Delete), Ok(row()));
        assert_eq!(fit(row(), Some(4), Truncation::Delete), Err(Reason::TooLong(5)));
        let left = Sample { ids: vec![2, 3, 4], weights: vec![0.0, 0.0, 1.0] };
        assert_eq!(fit(row(), Some(3), Truncation::Left), Ok(left));
        let right = Sample { ids: vec![0, 1, 2], weights: vec![0.0, 0.0, 1.0] };
        assert_eq!(fit(row(), Some(3), Truncation::Right), Ok(right));
        for (max, truncation) in [(2, Truncation::Right), (1, Truncation::Left), (0, Truncation::Left)] {
            assert_eq!(fit(row(), Some(max), truncation), Err(Reason::Untrained));
        }
        assert_eq!(fit(sample(&[]), None, Truncation::Delete), Err(Reason::Untrained));
    }

    #[test]
    fn strictness_minds_broken_rows_only() {
        let set = |reason| Encoded { dropped: vec![Dropped { row: 0, reason }], ..Encoded::default() };
        assert!(set(Reason::TooLong(9)).check_strictly().is_ok() && set(Reason::Untrained).check_strictly().is_ok());
        let problem = set(Reason::Refused("f, line 1: x".to_owned())).check_strictly().unwrap_err().to_string();
        assert!(problem.starts_with("f, line 1: x"), "{problem}");
    }
}
