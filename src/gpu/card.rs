//! One card.

use std::fmt;

use super::block::{Lane, Trouble};
use super::simulated::SimulatedCard;

/// A card that blocks can be made on.
pub(crate) enum Card {
    /// None that is real.
        Simulated(SimulatedCard),
}

impl Card {
    /// Its name, for people.
    pub(crate) fn name(&self) -> &str {
        match *self {
                        Self::Simulated(_) => "simulated",
        }
    }

    /// How many lanes keep it busy within the memory that it may use.
    pub(crate) fn lanes(&self) -> usize {
        match *self {
                        Self::Simulated(_) => 2,
        }
    }

    /// A lane, for the thread that asks.
    pub(crate) fn lane(&self) -> Result<Box<dyn Lane + '_>, Trouble> {
        match self {
                        Self::Simulated(card) => Ok(card.lane()),
                _ => Err(Trouble::Unsupported),
        }
    }

    /// Pins host memory for every card.
    ///
    /// # Safety
    /// The memory must stay allocated until the pin is dropped.
    pub(super) unsafe fn pin(&self, _address: *mut u8, _len: usize) -> Result<Pin, Trouble> {
        Err(Trouble::Unsupported)
    }
}

/// Pinned memory, until it is dropped.
pub(crate) struct Pin(());

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}
