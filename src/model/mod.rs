//! The model that is trained through, written once over an [`super::engine::Engine`]: what a config.json asks for
//! (`spec`), its frozen weights (`weights`), and the forward and backward pass of a layer and of the whole.
//!
//! The backward pass is written out: it makes gradients for inputs and for factors, and none for a frozen weight.

mod layer;
mod pass;
#[cfg(test)]
mod tests;
mod weights;

pub use pass::{Keep, Pass};
pub use weights::Model;
pub(crate) use weights::widened;
