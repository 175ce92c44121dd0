//! Which of a model's tokenizers a conversion to GGUF tries first, by family. Reading them is the business of `text`, their
//! keys that of `gguf`.

/// A kind of tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
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
    pub order: &'static [TokenizerKind],
    /// Writes `add_space_prefix` where `tokenizer_config.json` has `add_prefix_space`, and what two sizes of vocabulary
    /// demand: the rules of `conversion/llama.py`.
    pub llama_keys: bool,
}

/// Llama, Mistral and their kin.
pub(crate) const LLAMA_TOKENIZERS: Recipe = Recipe {
    order: &[TokenizerKind::SentencePiece, TokenizerKind::LlamaHf, TokenizerKind::ByteLevel],
    llama_keys: true,
};

/// Qwen 2 and later.
pub(crate) const QWEN_TOKENIZERS: Recipe =
    Recipe { order: &[TokenizerKind::SentencePiece, TokenizerKind::ByteLevel], llama_keys: false };

impl Recipe {
    /// The files it looks for, for messages.
    pub(crate) fn files(&self) -> String {
        let names: Vec<&str> =
            [("tokenizer.model", TokenizerKind::SentencePiece), ("tokenizer.json", TokenizerKind::ByteLevel)]
                .iter()
                .filter(|(_, kind)| self.order.contains(kind))
                .map(|(name, _)| *name)
                .collect();
        names.join(" and ")
    }
}
