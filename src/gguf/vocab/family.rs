//! What the families of models do differently: which of a model's tokenizers they try first, and the keys that one
//! family alone writes.

use serde_json::Value as Json;

use super::sources::Sources;
use super::special::SpecialTokens;
use super::{Vocab, VocabOptions};
use crate::error::{Error, Result};
use crate::gguf::value::Value;

/// A kind of tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SentencePiece in `tokenizer.model`; GGUF's model "llama".
    SentencePiece,
    /// SentencePiece's BPE with byte fallback in `tokenizer.json`; GGUF's model "llama".
    LlamaHf,
    /// Byte-level BPE in `tokenizer.json`; GGUF's model "gpt2".
    ByteLevel,
}

/// How a family converts its tokenizers.
#[derive(Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The kinds, in the order in which they are tried.
    pub order: &'static [Kind],
    /// Writes `add_space_prefix` where `tokenizer_config.json` has `add_prefix_space`, and what two sizes of vocabulary
    /// demand: the rules of `conversion/llama.py`.
    pub llama_keys: bool,
}

/// Llama, Mistral and their kin.
pub const LLAMA: Recipe = Recipe { order: &[Kind::SentencePiece, Kind::LlamaHf, Kind::ByteLevel], llama_keys: true };

/// Qwen 2 and later.
pub const QWEN: Recipe = Recipe { order: &[Kind::SentencePiece, Kind::ByteLevel], llama_keys: false };

/// `vocab_size` of Code Llama, whose token for the end of an infilling has a number that no file gives.
const CODE_LLAMA: (usize, u32) = (32016, 32010);
/// `vocab_size` of Granite's small models (and SmolLM's), which want no token before a text.
const NO_BOS: usize = 49152;

impl Recipe {
    /// The files it looks for, for messages.
    pub(super) fn files(&self) -> String {
        let names: Vec<&str> = [("tokenizer.model", Kind::SentencePiece), ("tokenizer.json", Kind::ByteLevel)]
            .iter()
            .filter(|(_, kind)| self.order.contains(kind))
            .map(|(name, _)| *name)
            .collect();
        names.join(" and ")
    }
}

/// Writes what comes before the vocabulary.
pub(super) fn before(sources: &Sources<'_>, options: &VocabOptions, vocab: &mut Vocab) -> Result<()> {
    if !options.recipe.llama_keys {
        return Ok(());
    }
    let there = |name: &str| sources.files.paths.contains_key(name);
    if there("tekken.json") && !there("tokenizer.json") {
        return Err(Error::refused(
            "the model has its tokenizer in tekken.json alone, which is not read",
            "copy tokenizer.json from a release of the base model for transformers",
        ));
    }
    if let Some(Json::Bool(prefix)) = sources.config.get("add_prefix_space") {
        vocab.keys.set("tokenizer.ggml.add_space_prefix", Value::Bool(*prefix));
    }
    Ok(())
}

/// Writes what comes after it.
pub(super) fn after(sources: &Sources<'_>, options: &VocabOptions, vocab: &mut Vocab) -> Result<()> {
    if !options.recipe.llama_keys {
        return Ok(());
    }
    if options.vocab_size == CODE_LLAMA.0 {
        let mut special = SpecialTokens::read(sources, &["prefix", "suffix", "middle", "eot"], None, false)?;
        special.set("eot", u64::from(CODE_LLAMA.1), None);
        special.write(vocab);
    }
    if options.vocab_size == NO_BOS {
        vocab.keys.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    }
    Ok(())
}
