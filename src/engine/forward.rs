//! The operations of a transformer's forward pass.

use super::Engine;
use super::dropout::Dropout;
use super::view::{Columns, KeysValues};
use crate::arch::Heads;
use crate::error::Result;

/// What a model's outputs are computed with. Shapes are as [`Engine`] writes them.
pub trait Forward: Engine {
    /// The tokens' rows of the table: `[T, hidden]`.
    fn embed(&self, table: &Self::Matrix, batch: &Self::Placed) -> Result<Self::Matrix>;
    /// RMSNorm: `x / sqrt(mean(x^2) + epsilon) * weight` with `padding`, and the inverse roots `[T]`, f32.
    fn normalize(
        &self,
        x: &Self::Matrix,
        weight: &Self::Vector,
        epsilon: f32,
        padding: usize,
    ) -> Result<(Self::Matrix, Self::Vector)>;
    /// Fills the padding columns of `x`, `[T, inputs]` with the adapters' padding: `dropout(x) * A^T` of each slot.
    fn adapt(&self, frozen: &Self::Frozen, x: Self::Matrix, dropout: Option<&Dropout>) -> Result<Self::Matrix>;
    /// The stacked outputs `[T, outputs]` from an adapted `x`, biases included, plus `onto`.
    fn project(
        &self,
        frozen: &Self::Frozen,
        x: &Self::Matrix,
        dropout: Option<&Dropout>,
        onto: Option<&Self::Matrix>,
    ) -> Result<Self::Matrix>;
    /// Rotates the queries and keys of `qkv`, `[T, queries | keys | values]`, to their positions, or back. `tables` are
    /// cos and sin, `[positions, size / 2]` each; value `i` of a head is paired with value `i + size / 2`, as
    /// transformers' `rotate_half` does.
    fn rotate(
        &self,
        qkv: Self::Matrix,
        heads: Heads,
        tables: &[Self::Vector; 2],
        batch: &Self::Placed,
        back: bool,
    ) -> Result<Self::Matrix>;
    /// Causal attention of queries, `[T, query heads * size]`, within each segment: outputs of the same shape with
    /// `padding`, and the logarithms of the sums of exponentials of the scaled scores, f32, for the backward pass.
    fn attend(
        &self,
        queries: Columns<'_, Self::Matrix>,
        seen: KeysValues<'_, Self::Matrix>,
        heads: Heads,
        batch: &Self::Placed,
        padding: usize,
    ) -> Result<(Self::Matrix, Self::Vector)>;
    /// SwiGLU: `silu(gate) * up` from rows `[gate | up]`: `[T, width]` with `padding`.
    fn gate(&self, gate_up: &Self::Matrix, padding: usize) -> Result<Self::Matrix>;
    /// The logits of some rows of `x`, `[T, hidden]` after the last norm, in their order: `[rows, vocabulary]`.
    fn logits(&self, x: &Self::Matrix, head: &Self::Matrix, rows: &[u32]) -> Result<Self::Matrix>;
    /// The loss of each target of the batch, `weight * -ln p(token)`, f32, in their order, where `x` is `[T, hidden]` after
    /// the last norm. Logits are made for a bounded number of rows at a time.
    fn cross_entropy(&self, x: &Self::Matrix, head: &Self::Matrix, batch: &Self::Placed) -> Result<Self::Vector>;
}
