//! The adapter that is trained: which modules have factors, where they lie in the one vector of parameters, and how they
//! begin. Knows no device.

mod init;
mod layout;

pub use init::initial;
pub use layout::{Layout, LoraSpec, Module};
