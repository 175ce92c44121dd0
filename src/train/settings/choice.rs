//! Settings that are one of a few words: when something is done, what a checkpoint is best at, the type to compute in. Each is
//! read and written by the word that ms-swift has for it.

use serde::{Deserialize, Serialize};

/// When checkpoints are written, or held-out data is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Every so many steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
    /// Not at all.
    No,
}

/// What the best checkpoint is best at: the loss on held-out data, by either of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// `loss`.
    Loss,
    /// `eval_loss`.
    EvalLoss,
}

/// A type to compute in, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorchDtype {
    /// bf16 with sums in f32.
    #[serde(alias = "bf16")]
    Bfloat16,
    /// f32.
    #[serde(alias = "fp32")]
    Float32,
    /// What the device is best at.
    Auto,
}
