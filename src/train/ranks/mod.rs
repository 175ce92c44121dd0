//! Several processes that train together, each on its share of the data: what they must agree on is summed over all of
//! them. Which process is which is told by the variables that launchers set (RANK, WORLD_SIZE, ...).

use crate::error::Result;

/// The processes of a run, from the side of one.
pub trait Ranks {
    /// This process, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn count(&self) -> usize;
    /// Replaces the values by their sums over all ranks: the same bits on each.
    fn sum(&mut self, values: &mut [f32]) -> Result<()>;
    /// The sums over all ranks.
    fn sum_numbers(&mut self, numbers: [f64; 2]) -> Result<[f64; 2]>;

    /// Whether any rank says so.
    fn any(&mut self, flag: bool) -> Result<bool> {
        Ok(self.sum_numbers([f64::from(u8::from(flag)), 0.0])?[0] > 0.0)
    }
}

/// A run of one process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn sum(&mut self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn sum_numbers(&mut self, numbers: [f64; 2]) -> Result<[f64; 2]> {
        Ok(numbers)
    }
}
