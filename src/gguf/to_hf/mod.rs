//! The reverse conversion (to-hf): the files beside the weights that a GGUF's metadata make, as transformers reads
//! them. Weights and writing are `export`'s.

pub(crate) mod config;
pub(crate) mod keys;
pub(crate) mod rope;
pub(crate) mod tokenizer;
