//! Byte-level BPE in `tokenizer.json`: GGUF's model "gpt2". The converter's `get_vocab_base` and `_set_vocab_gpt2`.

use super::special::{ROLES, SpecialTokens};
use super::{Token, TokenType, Vocab, VocabOptions, added, write_tokens};
use crate::error::{Error, Result, escaped};
use crate::parallel::both;
use crate::text::pre;
use crate::text::sources::Sources;
use crate::text::tokenizer::HfTokenizer;

/// Converts `tokenizer.json`; false if there is none.
pub(super) fn convert(sources: &Sources<'_>, options: &VocabOptions, vocab: &mut Vocab) -> Result<bool> {
    if sources.tokenizer.is_none() {
        return Ok(false);
    }
    let special = || SpecialTokens::read(sources, &ROLES, None, true);
    let (special, tokenizer) = both(special, || HfTokenizer::open(sources));
    let Some(tokenizer) = tokenizer? else { return Ok(false) };
    let name = pre_tokenizer(&tokenizer, options.pre, vocab)?;
    let tokens = tokens(&tokenizer, options.vocab_size)?;
    vocab.warnings.extend(tokenizer.warnings());
    write_tokens(vocab, "gpt2", &name, tokens);
    special?.write(vocab);
    Ok(true)
}

/// The name of the pre-tokenizer: given, or found by the digest of what the tokenizer makes of the check text.
fn pre_tokenizer(tokenizer: &HfTokenizer<'_>, given: Option<&str>, vocab: &mut Vocab) -> Result<String> {
    if let Some(name) = given {
        if !pre::is_known(name) && name != "default" {
            vocab.warnings.push(format!("no tokenizer is known whose pre-tokenizer is {}", escaped(name)));
        }
        return Ok(name.to_owned());
    }
    let digest = pre::digest(&tokenizer.encode(pre::CHECK_TEXT, true)?);
    pre::by_digest(&digest).map(str::to_owned).ok_or_else(|| {
        Error::unsupported(
            format!("{}: its pre-tokenizer is not known (digest {digest})", tokenizer.shown_path()),
            "if the tokenizer was changed, restore it from the base model; else name the pre-tokenizer of the model \
             that it comes from with ⟦pre⟧, such as llama-bpe, qwen2, tekken or gpt-2: a wrong one gives wrong tokens",
        )
    })
}

/// The tokens by id, up to `vocab_size`; places without one are padded.
fn tokens(tokenizer: &HfTokenizer<'_>, vocab_size: usize) -> Result<Vec<Token>> {
    let texts = tokenizer.vocab();
    let size = tokenizer.places(vocab_size)?;
    let mut texts = texts.iter().peekable();
    let mut tokens = Vec::with_capacity(size);
    for id in 0..size {
        // Ids are below MAX_TOKENS.
        let token = match texts.next_if(|(next, _)| **next == id as u32) {
            None => Token::padding(id, 0.0),
            Some((id, text)) => token(tokenizer, *id, text)?,
        };
        tokens.push(token);
    }
    Ok(tokens)
}

fn token(tokenizer: &HfTokenizer<'_>, id: u32, text: &str) -> Result<Token> {
    let Some(token) = tokenizer.added(id) else {
        return Ok(Token { text: text.to_owned(), kind: TokenType::Normal, score: 0.0 });
    };
    // llama.cpp looks for added tokens in text as it stands, so they are written as they come back from the tokenizer.
    let written = if token.normalized { text.to_owned() } else { tokenizer.round_trip(text)? };
    let (kind, text) = added(written, token.special);
    Ok(Token { text, kind, score: 0.0 })
}
