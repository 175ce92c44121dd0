//! Rows that are too long, or have no trainable token: what is cut, and what is dropped for which reason.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::encode::Sample;

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
    /// It has at least that many tokens, more than allowed: so much text was not tokenized.
    FarTooLong(usize),
    /// No token of it is trained on.
    Untrained,
    /// It can't be rendered.
    Refused {
        /// Why.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Reason {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLong(_) | Self::FarTooLong(_) => "too long",
            Self::Untrained => "no trainable token",
            Self::Refused { .. } => "refused",
        }
    }

    /// What to do where no row is left.
    pub fn remedy(&self) -> &str {
        match self {
            Self::TooLong(_) | Self::FarTooLong(_) => {
                "raise ⟦max_length⟧ (by default the model's max_position_embeddings), or cut rows with \
                 ⟦truncation_strategy left⟧"
            }
            Self::Untrained => {
                "raise ⟦max_length⟧, or cut rows with ⟦truncation_strategy left⟧, if their answers are cut off; train \
                 on all turns with ⟦loss_scale default⟧; or give rows whose turns are not all marked with \"loss\": \
                 false"
            }
            Self::Refused { remedy, .. } => remedy,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(tokens) => write!(f, "has {tokens} tokens, more than ⟦max_length⟧"),
            Self::FarTooLong(tokens) => write!(f, "has {tokens} tokens or more, more than ⟦max_length⟧"),
            Self::Untrained => f.write_str("has no trainable token"),
            Self::Refused { problem, remedy } => write!(f, "{problem}; {remedy}"),
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
    /// How many turns are written as their rows have them, since the template leaves out some of their words.
    pub as_given: usize,
}

impl Encoded {
    /// How many tokens each sample has.
    pub fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(|sample| sample.ids.len()).collect()
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
    fn long_rows_are_dropped_or_cut() {
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
}
