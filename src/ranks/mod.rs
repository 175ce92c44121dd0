//! Several processes that train together, each on its share of the data: their gradients are all-reduced over all of
//! them. Which process is which is told by the variables that launchers set (`RANK`, `WORLD_SIZE`, ...): `launch` reads
//! them, `joining` and `meet` bring the processes together, `tcp` all-reduces over the connections, and `cards` on GPUs
//! by NCCL.

pub mod cards;
mod joining;
pub mod launch;
mod meet;
mod reception;
mod talk;
pub mod tcp;
#[cfg(test)]
mod tests;
mod trouble;
mod waiting;
mod wire;

pub use cards::CardRanks;
pub use joining::{Joining, Waiting};
pub use launch::Launch;
pub use tcp::{Patience, TcpRanks};
pub use wire::understood;

use std::ffi::c_void;

use crate::error::Result;

/// The processes of a run, from the side of one. All of them must make the same calls in the same order.
pub trait Ranks {
    /// This process, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn count(&self) -> usize;
    /// Replaces the values by their sums over all ranks: the same bits on each. After an error they are unspecified.
    fn sum(&mut self, values: &mut [f32]) -> Result<()>;
    /// The sums over all ranks.
    fn sum_numbers(&mut self, numbers: [f64; 2]) -> Result<[f64; 2]>;
    /// Waits until every rank is here.
    fn barrier(&mut self) -> Result<()>;
    /// Whether any rank says so: a Ctrl-C that one process sees stops all at the same step.
    fn any(&mut self, flag: bool) -> Result<bool>;
    /// Sums for values that lie on the GPU whose context is current on this thread, if all ranks have such a GPU and
    /// can connect them. All ranks must ask, or none.
    fn on_card(&mut self) -> Result<Option<&mut dyn CardSum>> {
        Ok(None)
    }
    /// Tells the others why this rank goes, so that they end too, and name it.
    fn give_up(&mut self, _why: &str) {}
    /// How gradients travel, for users, and why not by NCCL. It is known once [`Self::on_card`] was called.
    fn transport(&self) -> String;
}

/// Sums over all ranks on their GPUs.
pub trait CardSum {
    /// Replaces `len` f32 at `address` by their sums over all ranks, the same bits on each, after all that was enqueued
    /// on the stream, and waits until it is done.
    ///
    /// # Safety
    /// The values must be on the GPU that was current when [`Ranks::on_card`] was first called, and `stream` must be a
    /// live stream of that GPU, as the driver knows it.
    unsafe fn sum(&mut self, address: u64, len: usize, stream: *mut c_void) -> Result<()>;
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

    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }

    fn any(&mut self, flag: bool) -> Result<bool> {
        Ok(flag)
    }

    fn transport(&self) -> String {
        "one process".to_owned()
    }
}
