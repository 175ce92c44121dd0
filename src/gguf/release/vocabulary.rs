//! Rules of the vocabulary: `llama_vocab::impl::load` of llama.cpp, and the shape of the embedding.

use std::collections::HashMap;

use super::{Contents, EMBEDDING, TOKENS};
use crate::error::escaped;
use crate::gguf::value::Value;

/// Keys of arrays that have an element for each token.
const PER_TOKEN: [&str; 2] = ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"];
/// Most pairs of equal tokens that are told.
const TOLD: usize = 8;

/// Arrays of other lengths than the vocabulary.
pub(super) fn lengths(contents: &Contents<'_>) -> Vec<String> {
    let Some(tokens) = tokens(contents) else { return Vec::new() };
    let of = |key: &&str| {
        let len = contents.metadata.get(key).and_then(len).filter(|len| *len != tokens)?;
        Some(format!("{key} has {len} elements, and {TOKENS} has {tokens}"))
    };
    PER_TOKEN.iter().filter_map(of).collect()
}

/// An embedding of another number of rows.
pub(super) fn rows(contents: &Contents<'_>) -> Vec<String> {
    let (Some(tokens), Some(rows)) = (tokens(contents), contents.rows) else { return Vec::new() };
    let differ = tokens != rows;
    differ.then(|| format!("{EMBEDDING} has {rows} rows, and {TOKENS} has {tokens} elements")).into_iter().collect()
}

/// Tokens that are there twice, which llama.cpp stops at. It gives empty ones a name of their own.
pub(super) fn once(contents: &Contents<'_>) -> Vec<String> {
    let Some(texts) = contents.metadata.get(TOKENS).and_then(Value::as_strings) else { return Vec::new() };
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(texts.len());
    let mut found = Vec::new();
    for (id, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        if let Some(first) = ids.insert(text, id) {
            found.push(format!(
                "the tokens {first} and {id} are both {}, and llama.cpp requires unique texts",
                escaped(text)
            ));
        }
    }
    if found.len() > TOLD {
        let more = found.len() - TOLD;
        found.truncate(TOLD);
        found.push(format!("{more} more tokens occur twice"));
    }
    found
}

/// Special tokens beyond the vocabulary.
pub(super) fn ids(contents: &Contents<'_>) -> Vec<String> {
    let Some(tokens) = tokens(contents) else { return Vec::new() };
    let id = |(key, value): (&str, &Value)| {
        let name = key.strip_prefix("tokenizer.ggml.")?.strip_suffix("_token_id")?;
        let id = value.as_u64().filter(|id| *id >= tokens as u64)?;
        Some(format!("the {} token is {id}, and there are {tokens} tokens", escaped(name)))
    };
    contents.metadata.iter().filter_map(id).collect()
}

/// A byte-level vocabulary that does not say how it cuts texts: files from before May 2024.
pub(super) fn pre(contents: &Contents<'_>) -> Vec<String> {
    let text = |key: &str| contents.metadata.get(key).and_then(Value::as_str);
    let missing = text("tokenizer.ggml.model") == Some("gpt2") && text("tokenizer.ggml.pre").is_none_or(str::is_empty);
    let said = "tokenizer.ggml.pre is missing: llama.cpp splits texts by its default, which may differ from the model's \
                own pre-tokenizer";
    missing.then(|| said.to_owned()).into_iter().collect()
}

/// Number of tokens.
fn tokens(contents: &Contents<'_>) -> Option<usize> {
    contents.metadata.get(TOKENS).and_then(len)
}

/// Number of an array's elements.
fn len(value: &Value) -> Option<usize> {
    if let Value::Array(array) = value { Some(array.len()) } else { None }
}
