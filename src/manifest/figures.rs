//! The GGUF files in a manifest: the type of each tensor, the quality of its encoding, and the sums.

use serde::{Deserialize, Serialize};

use super::Named;
use crate::ggml::Quality;

/// A GGUF file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncodedFile {
    /// The mixture, by llama.cpp's name.
    #[serde(rename = "type")]
    pub mixture: String,
    /// In the order of their bytes.
    pub tensors: Named<EncodedForm>,
}

/// How a tensor is encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncodedForm {
    /// The name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// How good that is; `None` where it holds the merged values as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
}

/// How good a model in GGUF files is: sums over its tensors, and the worst of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualitySums {
    /// Its first file.
    pub file: String,
    /// The mixture, by llama.cpp's name.
    #[serde(rename = "type")]
    pub mixture: String,
    /// All tensors together.
    pub total: Summary,
    /// By what a tensor is in its layer, in the order in which a layer applies them.
    pub kinds: Vec<Summary>,
    /// By layer; tensors of no layer come last.
    pub layers: Vec<Summary>,
    /// By type, the one of the most bytes first.
    pub types: Vec<Summary>,
    /// Up to ten, the lowest cosine first.
    pub worst: Vec<WorstTensor>,
}

/// One of the tensors whose decoded values point the furthest away from their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorstTensor {
    /// Its name in the GGUF file.
    pub tensor: String,
    /// The name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Root of the mean squared error in relation to the root of the mean square.
    pub relative: Option<f64>,
    /// Of the angle between the values and the decoded ones.
    pub cosine: Option<f64>,
}

/// Tensors together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What they have in common.
    pub name: String,
    /// How many they are.
    pub tensors: usize,
    /// How many of them hold the values as they were, and are in no figure.
    pub exact: usize,
    /// Their weights.
    pub weights: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bits of a weight, on average.
    pub bits_per_weight: f64,
    /// Over those that were encoded with loss, if there are any.
    #[serde(flatten)]
    pub figures: Option<Figures>,
}

/// How good the encoding of several tensors is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Root of the mean squared error of all weights.
    pub rmse: f64,
    /// The same in relation to the root of their mean square.
    pub relative: f64,
    /// The largest error of all.
    pub max_error: f64,
    /// The lowest cosine of a tensor.
    pub cosine: f64,
}
