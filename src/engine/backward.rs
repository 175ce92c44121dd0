//! The backward passes of the operations of a forward pass. Frozen weights get no gradient: inputs and factors do.

use super::Forward;
use super::dropout::Dropout;
use crate::arch::Heads;
use crate::error::Result;

/// The gradients of what [`Forward`] computes.
pub trait Backward: Forward {
    /// A matrix of zeros as large as `x`.
    fn zeros_like(&self, x: &Self::Matrix) -> Result<Self::Matrix>;
    /// `onto` plus the gradient with respect to `x`, `[T, hidden]`, given that of the output.
    fn normalize_back(
        &self,
        dy: &Self::Matrix,
        x: &Self::Matrix,
        weight: &Self::Vector,
        inverse: &Self::Vector,
        onto: Self::Matrix,
    ) -> Result<Self::Matrix>;
    /// Adds the gradients of the adapters' factors to `gradients` (f32, laid out as the parameters), and gives that of
    /// `x`, `[T, inputs]`.
    fn project_back(
        &self,
        frozen: &Self::Frozen,
        dy: &Self::Matrix,
        x: &Self::Matrix,
        dropout: Option<&Dropout>,
        gradients: &mut Self::Vector,
    ) -> Result<Self::Matrix>;
    /// The gradient with respect to `qkv`, `[T, queries | keys | values]`, of attention to rows of the same run, from
    /// that of its outputs; `out` and `sums` are what [`Forward::attend`] gave.
    fn attend_back(
        &self,
        dout: &Self::Matrix,
        qkv: &Self::Matrix,
        out: &Self::Matrix,
        sums: &Self::Vector,
        heads: Heads,
        batch: &Self::Placed,
    ) -> Result<Self::Matrix>;
    /// The gradient with respect to `gate_up`, `[T, 2 * width]`.
    fn gate_back(&self, dy: &Self::Matrix, gate_up: Self::Matrix) -> Result<Self::Matrix>;
    /// What [`Forward::cross_entropy`] gives, and the gradient of `scale` times the losses' sum with respect to `x`.
    fn cross_entropy_back(
        &self,
        x: &Self::Matrix,
        head: &Self::Matrix,
        batch: &Self::Placed,
        scale: f32,
    ) -> Result<(Self::Vector, Self::Matrix)>;
}
