//! Blocks of merged and encoded tensors, made on GPUs: lanes, which are streams with their own memory, and what they
//! share.

mod assist;
mod block;
mod budget;
mod card;
mod cards;
mod effort;
mod fault;
mod kernels;
mod lane;
mod resident;
mod simulated;
mod stage;
#[cfg(test)]
mod tests;
mod upload;

pub(crate) use assist::{Assist, Tally};
pub(crate) use block::{Block, EncoderKind, Encoding, Importance, Measured, Source, source_row};
pub use budget::CardNeeds;
pub(crate) use card::Card;
pub use cards::Cards;
pub use effort::Effort;
pub use fault::Fault;
pub(crate) use resident::Resident;
#[cfg(test)]
pub(crate) use simulated::SimulatedCard;
