//! What the families of models do differently: which of a model's tokenizers they try first, and the keys that one
//! family alone writes.

use serde_json::Value as Json;

use super::special::SpecialTokens;
use super::{Vocab, VocabOptions};
use crate::error::{Error, Result};
use crate::gguf::value::Value;
use crate::text::sources::Sources;

/// `vocab_size` of Code Llama, whose token for the end of an infilling has a number that no file gives.
const CODE_LLAMA: (usize, u32) = (32016, 32010);
/// `vocab_size` of Granite's small models (and SmolLM's), which want no token before a text.
const NO_BOS: usize = 49152;

/// Writes what comes before the vocabulary.
pub(super) fn before(sources: &Sources<'_>, options: &VocabOptions, vocab: &mut Vocab) -> Result<()> {
    if !options.recipe.llama_keys {
        return Ok(());
    }
    let there = |name: &str| sources.files.paths.contains_key(name);
    if there("tekken.json") && !there("tokenizer.json") {
        return Err(Error::unsupported(
            "the model has its tokenizer in tekken.json only, which is unsupported",
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
