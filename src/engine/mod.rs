//! What a device can do for training: matrices, and the operations of a transformer's forward and backward pass. The
//! model is written once, over this. `cpu` computes in f32 with candle and is what tests hold the cards against;
//! `cuda` computes in bf16 with f32 accumulation.
//!
//! The adapter rides in spare columns. Weights that share an input are stacked along rows into `[N, K + room]`: behind
//! the base's columns lie the modules' `s * B`, each in its own rows and rank columns, zero elsewhere. Inputs have the
//! same spare columns, which hold `dropout(x) * A^T`. One product then gives the base's outputs and every delta, and
//! one product of the backward pass gives the gradients of the input and of `x * A^T`.

mod batch;
#[cfg(test)]
pub(crate) mod checks;
pub mod cpu;
pub mod cuda;
pub mod dropout;

pub use batch::{Batch, Target};
pub use cpu::CpuEngine;
pub use cuda::CudaEngine;

use std::collections::BTreeMap;

use crate::Result;
use crate::checkpoint::Tensor;

use crate::arch::Heads;
use crate::ranks::Ranks;
use crate::train::lora::Group;
use dropout::Dropout;

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

/// A device. Matrices are row-major; "`[T, C]` with room" means that each row has spare columns behind its `C` values,
/// which are unspecified until [`Engine::adapt`] fills them. `T` is the number of tokens of a micro-batch.
pub trait Engine {
    /// A matrix on the device, in its compute type: f32 on the processor, bf16 on cards.
    type Matrix;
    /// A vector of f32 on the device.
    type Vector;
    /// The stacked weights of a [`Group`], with their adapters.
    type Frozen;
    /// A micro-batch on the device.
    type Placed;

    /// A vector with these values.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// The vector's values.
    fn read(&self, vector: &Self::Vector) -> Result<Vec<f32>>;
    /// Overwrites the vector, which has as many values.
    fn write(&self, vector: &mut Self::Vector, values: &[f32]) -> Result<()>;
    /// Sets every value to zero.
    fn zero(&self, vector: &mut Self::Vector) -> Result<()>;

    /// A table of the base, `[vocabulary, hidden]`: embeddings or the head.
    fn table(&self, tensor: &Tensor) -> Result<Self::Matrix>;
    /// Stacks the weights of a group (each `[outputs, inputs]`) and their biases (`[outputs]`).
    fn freeze(&self, group: &Group, weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<Self::Frozen>;
    /// Euclidean norm of each row of each slot's base weights, f32, in the order of the slots: where magnitudes begin.
    fn row_norms(&self, frozen: &Self::Frozen) -> Result<Vec<Vec<f32>>>;
    /// Takes over the factors (and magnitudes) from the vector of parameters, after each step.
    fn bind(&self, frozen: &mut Self::Frozen, parameters: &Self::Vector) -> Result<()>;
    /// Puts a micro-batch on the device.
    fn place(&self, batch: &Batch) -> Result<Self::Placed>;

    /// A matrix of zeros as large as `x`.
    fn zeros_like(&self, x: &Self::Matrix) -> Result<Self::Matrix>;
    /// The tokens' rows of the table: `[T, hidden]`.
    fn embed(&self, table: &Self::Matrix, batch: &Self::Placed) -> Result<Self::Matrix>;
    /// RMSNorm: `x / sqrt(mean(x^2) + epsilon) * weight` with `room`, and the inverse roots `[T]`.
    fn normalize(
        &self,
        x: &Self::Matrix,
        weight: &Self::Vector,
        epsilon: f32,
        room: usize,
    ) -> Result<(Self::Matrix, Self::Vector)>;
    /// `onto` plus the gradient with respect to `x`, given that of the output.
    fn normalize_back(
        &self,
        dy: &Self::Matrix,
        x: &Self::Matrix,
        weight: &Self::Vector,
        inverse: &Self::Vector,
        onto: Self::Matrix,
    ) -> Result<Self::Matrix>;

    /// Fills the spare columns of `x`, `[T, inputs]` with the group's room: `dropout(x) * A^T` of each slot.
    fn adapt(&self, frozen: &Self::Frozen, x: Self::Matrix, dropout: Option<&Dropout>) -> Result<Self::Matrix>;
    /// The group's outputs `[T, outputs]` from an adapted `x`, biases included, plus `onto`.
    fn project(
        &self,
        frozen: &Self::Frozen,
        x: &Self::Matrix,
        dropout: Option<&Dropout>,
        onto: Option<&Self::Matrix>,
    ) -> Result<Self::Matrix>;
    /// Adds the gradients of the group's factors to `gradients` (laid out as the parameters), and gives that of `x`,
    /// `[T, inputs]`.
    fn project_back(
        &self,
        frozen: &Self::Frozen,
        dy: &Self::Matrix,
        x: &Self::Matrix,
        dropout: Option<&Dropout>,
        gradients: &mut Self::Vector,
    ) -> Result<Self::Matrix>;

    /// Rotates the queries and keys of `qkv`, or back. `tables` are cos and sin, `[positions, size / 2]` each; value `i`
    /// of a head is paired with value `i + size / 2`, as transformers' `rotate_half` does.
    fn rotate(
        &self,
        qkv: Self::Matrix,
        heads: Heads,
        tables: &[Self::Vector; 2],
        batch: &Self::Placed,
        back: bool,
    ) -> Result<Self::Matrix>;
    /// Causal attention within each segment: outputs `[T, query * size]` with `room`, and the logarithms of the sums of
    /// exponentials of the scaled scores, for the way back.
    fn attend(
        &self,
        qkv: &Self::Matrix,
        heads: Heads,
        batch: &Self::Placed,
        room: usize,
    ) -> Result<(Self::Matrix, Self::Vector)>;
    /// The gradient with respect to `qkv`.
    fn attend_back(
        &self,
        dout: &Self::Matrix,
        qkv: &Self::Matrix,
        out: &Self::Matrix,
        sums: &Self::Vector,
        heads: Heads,
        batch: &Self::Placed,
    ) -> Result<Self::Matrix>;
    /// SwiGLU: `silu(gate) * up` from rows `[gate | up]`: `[T, width]` with `room`.
    fn gate(&self, gate_up: &Self::Matrix, room: usize) -> Result<Self::Matrix>;
    /// The gradient with respect to `gate_up`.
    fn gate_back(&self, dy: &Self::Matrix, gate_up: Self::Matrix) -> Result<Self::Matrix>;

    /// The loss of each target of the batch, `weight * -ln p(token)`, in their order, where `x` is `[T, hidden]` after the
    /// last norm; and, if `back`, the gradient of `scale` times their sum with respect to `x`. Logits are made for a
    /// bounded number of rows at a time.
    fn cross_entropy(
        &self,
        x: &Self::Matrix,
        head: &Self::Matrix,
        batch: &Self::Placed,
        scale: f32,
        back: bool,
    ) -> Result<(Self::Vector, Option<Self::Matrix>)>;

    /// Replaces the vector by its sum over all ranks, the same bits on each, without a way through the host; `false` if
    /// that can't be done, and nothing was.
    fn sum_on_card(&self, _: &mut Self::Vector, _: &mut dyn Ranks) -> Result<bool> {
        Ok(false)
    }

    /// The sum of squares.
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

    /// Most bytes of the device's memory that were in use at once, where it can be told.
    fn peak_memory(&self) -> Option<u64>;
    /// Bytes of the device's memory that are free, where memory is what limits a run.
    fn free_memory(&self) -> Option<u64> {
        None
    }
    /// From here on, every operation is timed, where the device can do that.
    fn time(&self) {}
    /// Seconds that the device spent by operation since [`Self::time`], for which it is waited.
    fn timings(&self) -> Result<BTreeMap<&'static str, f64>> {
        Ok(BTreeMap::new())
    }
    /// What the device is called, for people.
    fn name(&self) -> String;
    /// The type that it computes in, for people.
    const TYPE: &'static str;
}
