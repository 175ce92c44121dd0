//! The tensor types of ggml, llama.cpp's tensor library: their blocks, encoding floats to them and decoding them, and how
//! far encoded values are from the floats. Knows no file; GGUF files are in `gguf`.

pub mod decode;
pub mod encode;
mod float16;
mod quality;
mod scales;
mod types;

pub use quality::{ErrorSums, Quality};
pub use scales::first_bad_scale;
pub use types::TensorType;
