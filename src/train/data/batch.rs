//! What a device is given at once: tokens of several conversations in one run, each a segment of its own.

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

impl Batch {
    /// The weight of all targets.
    pub fn weight(&self) -> f64 {
        self.targets.iter().map(|target| f64::from(target.weight)).sum()
    }
}
