//! The help of a GPU, for a thread that has a lane: tried first, and given up when the GPU fails. What a lane does not
//! make, the processor makes, with the same bytes.

use super::block::{Block, Lane, Stages, Trouble};
use crate::ggml::ErrorSums;

/// The help that a thread has.
#[derive(Default)]
pub(crate) struct Assist<'l> {
    lane: Option<Box<dyn Lane + 'l>>,
    lost: Option<String>,
    tally: Tally,
}

/// Who made how many blocks, and how long lanes took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Blocks that GPUs made.
    pub(crate) made: u64,
    /// Blocks that lanes left to the processor.
    pub(crate) left: u64,
    /// Seconds of lanes.
    pub(crate) stages: Stages,
}

impl<'l> Assist<'l> {
    /// No help: everything is done on the processor.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// The help of `lane`.
    pub(crate) fn by(lane: Box<dyn Lane + 'l>) -> Self {
        Self { lane: Some(lane), ..Self::default() }
    }

    /// Most elements of a block, if there is a lane.
    pub(crate) fn capacity(&self) -> Option<usize> {
        self.lane.as_ref().map(|lane| lane.capacity())
    }

    /// Makes `block` on the GPU, if there is one that can: `None` leaves it to the caller.
    pub(crate) fn run(&mut self, block: &Block<'_>, out: &mut [u8]) -> Option<Vec<ErrorSums>> {
        let lane = self.lane.as_mut()?;
        match lane.run(block, out) {
            Ok(sums) => {
                self.tally.made += 1;
                return Some(sums);
            }
            Err(Trouble::Value | Trouble::Unsupported) => {}
            Err(Trouble::Device(said)) => self.lose(said),
        }
        self.tally.left += 1;
        None
    }

    /// Hashes pieces of an input on the GPU, if there is one that can: whether it did.
    pub(crate) fn hash(&mut self, bytes: &[u8], first: usize, values: &mut [u8]) -> bool {
        let Some(lane) = self.lane.as_mut() else { return false };
        match lane.hash(bytes, first, values) {
            Ok(()) => return true,
            Err(Trouble::Value | Trouble::Unsupported) => {}
            Err(Trouble::Device(said)) => self.lose(said),
        }
        false
    }

    fn lose(&mut self, said: String) {
        self.tally = self.tally();
        self.lane = None;
        self.lost = Some(said);
    }

    /// What the driver said when the GPU failed.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// What was done so far.
    pub(crate) fn tally(&self) -> Tally {
        match &self.lane {
            Some(lane) => Tally { stages: lane.stages(), ..self.tally },
            None => self.tally,
        }
    }
}
