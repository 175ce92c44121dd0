//! GGUF, the file format of llama.cpp: reading and laying out files, naming tensors, choosing and encoding types, and
//! the way back to a Hugging Face directory. Streams nothing; `export` does.

pub mod decode;
pub mod encode;
mod float16;
mod source;
mod types;
mod value;

pub use source::{GgufTensor, HfTensor, ModelFiles, Rows};
pub use types::TensorType;
pub use value::{Array, Metadata, Value, ValueType};
