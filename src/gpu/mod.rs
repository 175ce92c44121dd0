//! NVIDIA cards: finding them at run time, and making blocks of merged and encoded tensors on them, with the bytes that
//! the processor gives. Knows no file; `stream` schedules the lanes, `export` says what the blocks are.

mod assist;
mod block;
mod budget;
mod card;
mod cards;
mod choice;
mod driver;
mod effort;
mod fault;
mod host;
mod kernels;
mod lane;
mod memory;
mod ptx;
mod resident;
mod simulated;
mod stage;
#[cfg(test)]
mod tests;
mod upload;

pub(crate) use assist::{Assist, Tally};
pub(crate) use block::{Block, Encoding, Importance, Measured, Source, source_row};
pub use budget::CardNeeds;
pub(crate) use card::Card;
pub use cards::Cards;
pub use choice::Device;
pub use driver::NoCard;
pub(crate) use driver::{find as find_cards, said};
pub use effort::Effort;
pub use fault::Fault;
pub(crate) use host::{ALIGN, HostMemory};
pub(crate) use kernels::load_function;
pub(crate) use memory::{DeviceMemory, wait_for};
#[cfg(test)]
pub(crate) use ptx::threads as ptx_threads;
pub(crate) use resident::Resident;
#[cfg(test)]
pub(crate) use simulated::SimulatedCard;
