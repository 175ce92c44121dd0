//! The files of a tokenizer against each other, and against the rows of the embedding.

use serde_json::Value;

use super::{Facts, Said};
use crate::error::escaped;
use crate::text::token_text;

/// Files of which one is enough for a tokenizer.
const ANY: [&str; 6] = ["tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "vocab.txt", "spiece.model"];
/// Classes that readers of today do not all know, and who does.
const NEW_CLASSES: [(&str, &str); 1] = [("TokenizersBackend", "transformers 4, and vLLM on top of it,")];
/// The tokens that both `special_tokens_map.json` and `tokenizer_config.json` name.
const NAMED: [&str; 4] = ["eos_token", "bos_token", "pad_token", "unk_token"];

pub(super) fn present(facts: &Facts<'_>) -> Vec<Said> {
    if facts.release.files.is_empty() || ANY.iter().any(|name| facts.release.has(name)) {
        return Vec::new();
    }
    if facts.release.files.keys().any(|name| name.ends_with(".tiktoken")) {
        return Vec::new();
    }
    let problem = "no tokenizer beside the base or the adapter; serving the release requires one".to_owned();
    vec![(problem, "copy the tokenizer's files from the original model".to_owned())]
}

/// A remedy, with another one before it where an adapter's tokenizer is in the place of the base's.
fn bases_or(facts: &Facts<'_>, remedy: &str) -> String {
    let other = "take the base's tokenizer with ⟦tokenizer base⟧, or ";
    format!("{}{remedy}", if facts.release.adapters_tokenizer { other } else { "" })
}

pub(super) fn ids(facts: &Facts<'_>) -> Vec<Said> {
    let (Some(vocabulary), Some(rows)) = (&facts.vocabulary, facts.rows) else { return Vec::new() };
    if vocabulary.largest < rows as u64 {
        return Vec::new();
    }
    let names: Vec<String> = vocabulary.added.range(rows as u64..).take(3).map(|(_, text)| escaped(text)).collect();
    let such = if names.is_empty() { String::new() } else { format!(" ({} ...)", names.join(", ")) };
    vec![(
        format!(
            "has ids up to {}{such}, but the embedding has {rows} rows: a text with such a token stops the server",
            vocabulary.largest
        ),
        bases_or(facts, "take the tokenizer that the weights came with, or train with the vocabulary resized"),
    )]
}

pub(super) fn texts(facts: &Facts<'_>) -> Vec<Said> {
    let twice = facts.vocabulary.as_ref().and_then(|vocabulary| vocabulary.twice.first());
    let said = |(text, a, b): &(String, u64, u64)| {
        (
            format!("the text {} belongs to ids {a} and {b}: which of them a reader uses is undefined", escaped(text)),
            "save the tokenizer again from the original, without adding an existing token".to_owned(),
        )
    };
    twice.map(said).into_iter().collect()
}

/// Tokens that `tokenizer_config.json` and tokenizer.json both list, under other ids or with other texts.
pub(super) fn added(facts: &Facts<'_>) -> Vec<Said> {
    let (Some(config), Some(vocabulary)) = (&facts.tokenizer_config, &facts.vocabulary) else { return Vec::new() };
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
    let differs = listed.into_iter().flatten().find_map(|(id, token)| {
        let (number, text) = (id.parse::<u64>().ok()?, token_text(token)?);
        let other = vocabulary.added.get(&number).filter(|other| *other != text);
        let moved = vocabulary.added.iter().find(|(at, other)| **at != number && *other == text);
        if other.is_some() || moved.is_some() { Some((id, text)) } else { None }
    });
    let said = |(id, text): (&String, &str)| {
        (
            format!(
                "gives id {} to {}; tokenizer.json does not: they are of two tokenizers",
                escaped(id),
                escaped(text)
            ),
            "take both files from one directory".to_owned(),
        )
    };
    differs.map(said).into_iter().collect()
}

pub(super) fn special(facts: &Facts<'_>) -> Vec<Said> {
    let (Some(map), Some(config)) = (facts.release.json("special_tokens_map.json"), &facts.tokenizer_config) else {
        return Vec::new();
    };
    let differs = NAMED.iter().find_map(|name| {
        let (in_map, in_config) = (token_text(map.get(name)?)?, token_text(config.get(name)?)?);
        (in_map != in_config).then(|| (*name, in_map.to_owned(), in_config.to_owned()))
    });
    let said = |(name, in_map, in_config): (&str, String, String)| {
        (
            format!(
                "{name} is {}, in tokenizer_config.json {}: loaders disagree on which to use",
                escaped(&in_map),
                escaped(&in_config)
            ),
            "remove special_tokens_map.json, if tokenizer_config.json is the newer one".to_owned(),
        )
    };
    differs.map(said).into_iter().collect()
}

pub(super) fn class(facts: &Facts<'_>) -> Vec<Said> {
    let class = facts.tokenizer_config.as_ref().and_then(|config| config.get("tokenizer_class")?.as_str());
    let row = NEW_CLASSES.iter().find(|(name, _)| Some(*name) == class);
    let said = |(name, who): &(&str, &str)| {
        (
            format!("tokenizer_class is {name}, which {who} do not know"),
            bases_or(facts, "set tokenizer_class to PreTrainedTokenizerFast"),
        )
    };
    row.map(said).into_iter().collect()
}

pub(super) fn extra(facts: &Facts<'_>) -> Vec<Said> {
    let tokens = facts.tokenizer_config.as_ref().and_then(|config| config.get("extra_special_tokens"));
    if !tokens.is_some_and(Value::is_array) {
        return Vec::new();
    }
    vec![(
        "extra_special_tokens is a list; transformers 4, and vLLM on top of it, fail to load it (AttributeError: 'list' object has no \
         attribute 'keys')"
            .to_owned(),
        "make it an object, or move the tokens to additional_special_tokens".to_owned(),
    )]
}
