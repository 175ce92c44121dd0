//! SentencePiece's BPE as `tokenizer.json` has it, with tokens for single bytes: GGUF's model "llama". The converter's
//! `LlamaHfVocab`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::special::{ROLES, SpecialTokens};
use super::{PADDING, Token, TokenType, Vocab, VocabOptions, write_tokens};
use crate::error::Result;
use crate::text::sources::Sources;
use crate::text::tokenizer::HfTokenizer;

/// The score of a token that no merge makes.
const SCORE: f32 = -1_000.0;

/// Converts `tokenizer.json`; false if there is none, or one of another kind.
pub(super) fn convert(sources: &Sources<'_>, options: &VocabOptions, vocab: &mut Vocab) -> Result<bool> {
    if !sources.tokenizer.as_ref().is_some_and(|tokenizer| is_this_kind(&tokenizer.rest)) {
        return Ok(false);
    }
    let Some(tokenizer) = HfTokenizer::open(sources)? else { return Ok(false) };
    let mut tokens = tokens(&tokenizer, options.vocab_size)?;
    if let Some(tables) = sources.tokenizer.as_ref().and_then(|tokenizer| tokenizer.tables.as_ref()) {
        rank(&mut tokens, &tables.merges);
    }
    vocab.warnings.extend(tokenizer.warnings());
    let limit = tokens.len();
    write_tokens(vocab, "llama", "default", tokens);
    SpecialTokens::read(sources, &ROLES, Some(limit), false)?.write(vocab);
    Ok(true)
}

/// BPE that falls back to bytes, decoded by a sequence of steps.
fn is_this_kind(tokenizer: &Value) -> bool {
    let model = tokenizer.get("model").unwrap_or(&Value::Null);
    let is = |value: &Value, kind: &str| value.get("type").and_then(Value::as_str) == Some(kind);
    is(model, "BPE")
        && model.get("byte_fallback").and_then(Value::as_bool) == Some(true)
        && tokenizer.get("decoder").is_some_and(|decoder| is(decoder, "Sequence"))
}

/// The tokens by id, up to `vocab_size`: each keeps its id, and places without one are padded. The converter moves tokens
/// after a gap, and ends with the last of them.
fn tokens(tokenizer: &HfTokenizer<'_>, vocab_size: usize) -> Result<Vec<Token>> {
    let specials: HashSet<u32> = tokenizer.special().iter().filter_map(|text| tokenizer.id(text)).collect();
    let mut texts = tokenizer.vocab().iter().peekable();
    let mut tokens = Vec::new();
    for id in 0..tokenizer.places(vocab_size)? {
        // Ids are below MAX_TOKENS.
        let Some((id, text)) = texts.next_if(|(next, _)| **next == id as u32) else {
            tokens.push(Token::padding(id, PADDING));
            continue;
        };
        let is_base = tokenizer.is_base(*id);
        let kind = match () {
            () if is_base && is_byte(text) => TokenType::Byte,
            () if specials.contains(id) => TokenType::Control,
            () if is_base => TokenType::Normal,
            () => TokenType::UserDefined,
        };
        tokens.push(Token { text: text.to_string(), kind, score: SCORE });
    }
    Ok(tokens)
}

/// Scores the tokens that merges make by the rank of the first that does: llama.cpp merges the pair first whose token has
/// the highest score. (The converter gives all one score, so that llama.cpp merges from left to right.)
fn rank(tokens: &mut [Token], merges: &[[Cow<'_, str>; 2]]) {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, pair) in merges.iter().enumerate() {
        ranks.entry(pair.concat()).or_insert(rank);
    }
    for token in tokens.iter_mut().filter(|token| token.kind == TokenType::Normal) {
        if let Some(rank) = ranks.get(&token.text) {
            token.score = 0.0 - *rank as f32;
        }
    }
}

/// Whether a text stands for a byte: `<0x0A>`.
fn is_byte(text: &str) -> bool {
    text.strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_merged_first_scores_highest() {
        let token = |text: &str, kind| Token { text: text.to_owned(), kind, score: SCORE };
        let texts = ["u", "us", "er", "user"];
        let mut tokens: Vec<Token> = texts.iter().map(|text| token(text, TokenType::Normal)).collect();
        tokens.push(token("us", TokenType::Control));
        let merges = [["e", "r"], ["u", "s"], ["us", "er"], ["u", "ser"]].map(|pair| pair.map(Cow::Borrowed));
        rank(&mut tokens, &merges);
        let scores: Vec<f32> = tokens.iter().map(|token| token.score).collect();
        assert_eq!(scores, [SCORE, -1.0, 0.0, -2.0, SCORE]);
    }

    #[test]
    fn bytes_are_two_digits_in_brackets() {
        assert!(is_byte("<0x0A>") && is_byte("<0xff>"));
        for text in ["<0xA>", "<0x0G>", "0x0A", "<0x0A", "<0x00A>", "<0x+1>"] {
            assert!(!is_byte(text), "{text}");
        }
    }
}
