//! SentencePiece in `tokenizer.model`: GGUF's model "llama". The converter's `_create_vocab_sentencepiece`.

use std::path::Path;

use serde_json::Value;

use super::special::{ROLES, SpecialTokens};
use super::{PADDING, Token, TokenType, Vocab, VocabOptions, added, write_tokens};
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result, escaped};
use crate::text::MAX_TOKENS;
use crate::text::sources::{Sources, members};
use crate::text::{PieceKind, SentencePiece};

/// Score of an added token.
const ADDED: f32 = -1_000.0;

/// Converts `tokenizer.model`; false if there is none.
pub(super) fn convert(sources: &Sources<'_>, options: &VocabOptions, vocab: &mut Vocab) -> Result<bool> {
    let files = sources.files;
    let Some(path) = files.paths.get("tokenizer.model") else { return Ok(false) };
    let Some(bytes) = files.bytes("tokenizer.model")? else { return Ok(false) };
    let model = SentencePiece::parse(&bytes).map_err(|problem| {
        let problem = format!("can't be read as a model of SentencePiece: {}", escaped(&problem));
        Error::malformed(path, problem, "restore the file from its source, or delete it if tokenizer.json is beside it")
    })?;
    let size = if options.vocab_size == 0 { model.pieces.len() } else { options.vocab_size };
    if size > MAX_TOKENS {
        return Err(Error::malformed(path, format!("has {size} pieces"), "restore the file from its source"));
    }
    let mut tokens: Vec<Token> = (0..size).map(|id| Token::padding(id, PADDING)).collect();
    if model.pieces.len() > size {
        vocab.warnings.push(format!(
            "tokenizer.model has {} tokens, config.json {size}: the last are left out",
            model.pieces.len()
        ));
    }
    for (token, piece) in tokens.iter_mut().zip(model.pieces) {
        *token = Token { text: piece.text, kind: kind(piece.kind), score: piece.score };
    }
    add_listed(files, &mut tokens, vocab)?;
    add_described(sources, &mut tokens, vocab)?;
    add_stored(sources, &mut tokens);
    let limit = tokens.len();
    write_tokens(vocab, "llama", "default", tokens);
    SpecialTokens::read(sources, &ROLES, Some(limit), false)?.write(vocab);
    Ok(true)
}

/// What a piece is for llama.cpp, which knows user-defined tokens by `added_tokens.json` and `tokenizer_config.json` alone.
fn kind(kind: PieceKind) -> TokenType {
    match kind {
        PieceKind::Normal | PieceKind::UserDefined => TokenType::Normal,
        PieceKind::Unknown => TokenType::Unknown,
        PieceKind::Control => TokenType::Control,
        PieceKind::Unused => TokenType::Unused,
        PieceKind::Byte => TokenType::Byte,
    }
}

/// Tokens of `added_tokens.json`: text to id.
fn add_listed(files: &ModelFiles, tokens: &mut [Token], vocab: &mut Vocab) -> Result<()> {
    for (text, id) in members(files, "added_tokens.json")? {
        let id = id.as_u64().ok_or_else(|| bad_id(files, "added_tokens.json", &text))?;
        if let Some(token) = place(tokens, id, vocab) {
            *token = Token { text, kind: TokenType::UserDefined, score: ADDED };
        }
    }
    Ok(())
}

/// Tokens of `tokenizer_config.json`: id to text and properties.
fn add_described(sources: &Sources<'_>, tokens: &mut [Token], vocab: &mut Vocab) -> Result<()> {
    let listed = sources.config.get("added_tokens_decoder").and_then(Value::as_object);
    for (id, token) in listed.into_iter().flatten() {
        let text = token.get("content").and_then(Value::as_str);
        let (Ok(number), Some(text)) = (id.trim().parse(), text) else {
            return Err(bad_id(sources.files, "tokenizer_config.json", id));
        };
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        let (kind, text) = added(text.to_owned(), special);
        if let Some(token) = place(tokens, number, vocab) {
            *token = Token { text, kind, score: ADDED };
        }
    }
    Ok(())
}

/// Tokens that `tokenizer.json` alone adds, in places that nothing else fills: transformers 5 lists them nowhere else. (The
/// converter does not look there.)
fn add_stored(sources: &Sources<'_>, tokens: &mut [Token]) {
    for token in sources.added_tokens() {
        let id = token.get("id").and_then(Value::as_u64).and_then(|id| usize::try_from(id).ok());
        let (Some(id), Some(text)) = (id, token.get("content").and_then(Value::as_str)) else { continue };
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        if let Some(place) = tokens.get_mut(id).filter(|token| token.is_padding(id)) {
            let (kind, text) = added(text.to_owned(), special);
            *place = Token { text, kind, score: ADDED };
        }
    }
}

/// The place of token `id`; a warning if the vocabulary has none.
fn place<'a>(tokens: &'a mut [Token], id: u64, vocab: &mut Vocab) -> Option<&'a mut Token> {
    let size = tokens.len();
    let token = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id));
    if token.is_none() {
        vocab.warnings.push(format!("added token {id} is left out: config.json has a vocab_size of {size}"));
    }
    token
}

fn bad_id(files: &ModelFiles, name: &str, text: &str) -> Error {
    let path = files.paths.get(name).map_or(Path::new(name), |path| path);
    let problem = format!("has an added token without a number or a text: {}", escaped(text));
    Error::malformed(path, problem, "restore the file from its source")
}
