//! A tensor as a conversion sees it: in the Hugging Face model, and in the GGUF file.

use safetensors::Dtype;

/// Name, type and shape of a tensor of the Hugging Face model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HfTensor {
    /// Its name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape, outermost axis first.
    pub shape: Vec<usize>,
}

/// One tensor of the GGUF file to be.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its shape, outermost axis first (the file has the axes reversed).
    pub shape: Vec<usize>,
    /// Where its rows come from.
    pub rows: Rows,
    /// Whether it is F32 whatever the types of the others: norms, biases, generated factors.
    pub always_f32: bool,
}

/// Where the rows of a tensor come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// A tensor of the Hugging Face model.
    Tensor {
        /// Its name there.
        name: String,
        /// Rows are reordered for llama.cpp's rotary embedding: as that many heads. `None` keeps them.
        heads: Option<usize>,
    },
    /// Values that the conversion makes.
    Values(Vec<f32>),
}
