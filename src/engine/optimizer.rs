//! Updates of what is trained, on vectors in f32.

use super::Engine;
use crate::error::Result;

/// One step of AdamW (Loshchilov and Hutter, 2019), as `torch.optim.AdamW` computes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first moments.
    pub beta1: f64,
    /// Decay of the second moments.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub decay: f64,
    /// The step's number, from 1.
    pub step: u64,
    /// What gradients are multiplied by first: the factor of clipping.
    pub clip: f64,
}

/// What an optimizer needs of a device.
pub trait Optimizer: Engine {
    /// The sum of squares, added up in f64.
    fn sum_of_squares(&self, vector: &Self::Vector) -> Result<f64>;
    /// Updates parameters and moments.
    fn adamw(
        &self,
        parameters: &mut Self::Vector,
        gradients: &Self::Vector,
        first: &mut Self::Vector,
        second: &mut Self::Vector,
        step: &AdamW,
    ) -> Result<()>;
}
