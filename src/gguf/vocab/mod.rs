//! The tokenizer of a GGUF file: every key under `tokenizer.`, as llama.cpp's converter writes them. Which of a model's
//! tokenizers is converted is chosen here; reading each is in a separate file.

mod byte_level;
mod family;
mod llama_hf;
mod roles;
mod special;
mod spm;
mod template;

use std::collections::HashSet;

use super::value::{Array, Metadata, Value};
use crate::arch::{Recipe, TokenizerKind as Kind};
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};
use crate::text::MAX_TOKENS;
use crate::text::sources::Sources;

/// Score of a place without a token.
const PADDING: f32 = -10_000.0;

/// What a conversion of a tokenizer depends on beside its files.
#[derive(Debug, Clone, Copy)]
pub struct VocabOptions<'a> {
    /// The name of the pre-tokenizer, where the user gives it; else it is found by digest.
    pub pre: Option<&'a str>,
    /// How the model's family does it.
    pub recipe: &'static Recipe,
    /// `vocab_size` of the model's config: how many tokens are written. Zero for a config without it.
    pub vocab_size: usize,
    /// The token with which the chat template ends the assistant's turn, its text and id, where that is known.
    pub turn_end: Option<(&'a str, u32)>,
}

/// Texts of tokens at which llama.cpp stops by itself (`special_eog_ids` in `llama-vocab.cpp`).
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
];

/// A converted tokenizer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocab {
    /// The keys, in the converter's order.
    pub keys: Metadata,
    /// How many tokens were written.
    pub tokens: usize,
    /// What the user should know, a sentence each.
    pub warnings: Vec<String>,
}

/// What a token is, as `llama_token_type` in llama.h numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// A token of the vocabulary to be.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    kind: TokenType,
    /// Written for SentencePiece vocabularies only.
    score: f32,
}

impl Token {
    /// Fills place `id` of a vocabulary that has no token for it.
    fn padding(id: usize, score: f32) -> Self {
        Self { text: format!("[PAD{id}]"), kind: TokenType::Unused, score }
    }

    /// Whether the token is what fills place `id`.
    fn is_padding(&self, id: usize) -> bool {
        self.kind == TokenType::Unused && is_padding(id, &self.text)
    }
}

/// Whether `text` is what fills place `id` of a vocabulary that has no token for it.
pub(crate) fn is_padding(id: usize, text: &str) -> bool {
    let rest = text.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']'));
    rest.map(|rest| rest.trim_end_matches('_')).is_some_and(|digits| digits == id.to_string())
}

/// Gives padding another name where a token has that name already: llama.cpp loads no text twice.
fn rename_padding(tokens: &mut [Token]) {
    let named =
        tokens.iter().enumerate().filter(|(id, token)| token.text.starts_with("[PAD") && !token.is_padding(*id));
    let taken: HashSet<String> = named.map(|(_, token)| token.text.clone()).collect();
    for (id, token) in tokens.iter_mut().enumerate().filter(|_| !taken.is_empty()) {
        while token.is_padding(id) && taken.contains(&token.text) {
            token.text.insert(token.text.len() - 1, '_');
        }
    }
}

/// Has llama.cpp stop at the end of a turn, where no other key and no text that it knows does.
fn end_turns(options: &VocabOptions, vocab: &mut Vocab) {
    const END: &str = "tokenizer.ggml.eot_token_id";
    let Some((text, id)) = options.turn_end.filter(|(_, id)| (*id as usize) < vocab.tokens) else { return };
    let is_eos = vocab.keys.get("tokenizer.ggml.eos_token_id") == Some(&Value::U32(id));
    if !is_eos && !ENDS.contains(&text) && vocab.keys.get(END).is_none() {
        vocab.keys.set(END, Value::U32(id));
    }
}

/// Converts the tokenizer of a model.
pub fn convert(files: &ModelFiles, options: &VocabOptions) -> Result<Vocab> {
    if options.vocab_size > MAX_TOKENS {
        let problem =
            format!("config.json has a vocab_size of {}; at most {MAX_TOKENS} is supported", options.vocab_size);
        return Err(Error::inconsistent(problem, "restore config.json from its source"));
    }
    let text = files.text("tokenizer.json")?;
    let sources = Sources::read(files, text.as_deref())?;
    let mut vocab = Vocab::default();
    family::before(&sources, options, &mut vocab)?;
    for kind in options.recipe.order {
        let converted = match kind {
            Kind::SentencePiece => spm::convert(&sources, options, &mut vocab)?,
            Kind::LlamaHf => llama_hf::convert(&sources, options, &mut vocab)?,
            Kind::ByteLevel => byte_level::convert(&sources, options, &mut vocab)?,
        };
        if converted {
            family::after(&sources, options, &mut vocab)?;
            end_turns(options, &mut vocab);
            return Ok(vocab);
        }
    }
    Err(Error::not_found(
        format!("the model has no tokenizer that can be converted: none of {} exists", options.recipe.files()),
        if files.paths.contains_key("vocab.json") {
            "save the tokenizer again with transformers, which writes tokenizer.json"
        } else {
            "copy the tokenizer's files from the base model beside config.json"
        },
    ))
}

/// Writes the vocabulary proper: what comes before merges and special tokens.
fn write_tokens(vocab: &mut Vocab, model: &str, pre: &str, mut tokens: Vec<Token>) {
    rename_padding(&mut tokens);
    vocab.tokens = tokens.len();
    let keys = &mut vocab.keys;
    keys.set("tokenizer.ggml.model", Value::string(model));
    keys.set("tokenizer.ggml.pre", Value::string(pre));
    let kinds = tokens.iter().map(|token| token.kind as i32).collect();
    let scores = (model == "llama").then(|| tokens.iter().map(|token| token.score).collect());
    keys.set("tokenizer.ggml.tokens", Value::strings(tokens.into_iter().map(|token| token.text)));
    if let Some(scores) = scores {
        keys.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
    }
    keys.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
}

/// Whether an added token ought to be a control token though its file does not call it special: command-r, deepseek
/// and gemma have such. Rule of `conversion/base.py`.
fn looks_special(text: &str) -> bool {
    const WHOLE: [&str; 4] = ["<pad>", "<mask>", "<2mass>", "[@BOS@]"];
    const AROUND: [(&str, &str); 3] = [("<|", "|>"), ("<\u{ff5c}", "\u{ff5c}>"), ("<unused", ">")];
    WHOLE.contains(&text) || AROUND.iter().any(|(head, tail)| text.starts_with(head) && text.ends_with(tail))
}

/// Type and text of an added token: SentencePiece's mark for a space becomes a space in those a user defined.
fn added(text: String, special: bool) -> (TokenType, String) {
    if special || looks_special(&text) {
        (TokenType::Control, text)
    } else {
        (TokenType::UserDefined, text.replace('\u{2581}', " "))
    }
}

#[cfg(test)]
mod tests;
