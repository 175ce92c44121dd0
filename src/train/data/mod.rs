//! From files of conversations to batches of tokens.

mod batch;

pub use batch::{Batch, Target};
