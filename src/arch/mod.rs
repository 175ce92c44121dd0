//! The families of models, one file and one row each: what config.json says of a model's sizes, its tensors' names in
//! transformers and in GGUF, its rotary embedding, which tokenizer it has. Knows no GGUF file and no device.

pub(crate) mod back;
pub(crate) mod compute;
pub(crate) mod family;
mod llama;
mod mistral;
pub(crate) mod names;
mod qwen2;
mod qwen3;
mod registry;
pub(crate) mod rope;
mod row;
pub(crate) mod settings;
mod spec;
mod tensors;
mod vocabulary;

pub(crate) use self::registry::{BY_LLAMA_CPP, family, is_known};
pub use self::rope::Rope;
pub(crate) use self::rope::llama3::Scaling;
pub(crate) use self::row::Sizes;
pub use self::spec::{Heads, Projection, Spec};
pub use self::tensors::{GgufTensor, HfTensor, Rows};
#[cfg(test)]
pub(crate) use self::vocabulary::{LLAMA_TOKENIZERS, QWEN_TOKENIZERS};
pub use self::vocabulary::{Recipe, TokenizerKind};
