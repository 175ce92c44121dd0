//! What a transformer computes, written once over an [`crate::engine::Engine`]: its frozen weights (`weights`), and the
//! forward and backward pass of a layer and of the whole. The forward pass gives hidden states or logits; a loss is put
//! on them above, and its gradient taken back.
//!
//! The backward pass is written out: it makes gradients for inputs and for factors, and none for a frozen weight.

mod layer;
mod pass;
#[cfg(test)]
mod tests;
mod weights;

pub use pass::{Keep, Pass, Traces};
pub use weights::{LayerAdapters, Model, STACKS};
