//! Mistral and Mistral-Nemo in Hugging Face's format: a Llama to llama.cpp.

use super::family::Family;
use super::llama::LLAMA;

/// See the file's header.
pub(crate) const MISTRAL: Family = Family { architectures: &["MistralForCausalLM"], ..LLAMA };
