//! SentencePiece vocabularies: BPE over characters, with a token for every byte. The file has scores; tokenizer.json
//! wants merges, which follow from them. Writing tokenizer.model is in `model_file`.

use serde_json::{Map, json};

use super::super::keys::{Keys, TOKENIZER_REMEDY as REMEDY};
use super::Kind;
use super::vocabulary::{Vocabulary, merges_json};
use crate::error::{Error, Result};

/// Stands for a space in a piece.
const SPACE: &str = "\u{2581}";
/// Longest token, in bytes, that merges are sought for: no vocabulary has longer pieces, and the search takes the
/// square of the length.
const LONGEST: usize = 1024;

/// What a SentencePiece vocabulary brings to tokenizer.json. A space before the text is put by the normalizer, which
/// does so after each special token too: as llama.cpp does, and as Llama 2's own file.
pub(crate) fn kind(keys: Keys<'_>, vocabulary: &Vocabulary<'_>) -> Result<Kind> {
    if !vocabulary.has_scores() {
        return Err(Error::inconsistent(
            "the model has a vocabulary of the kind llama without tokenizer.ggml.scores",
            REMEDY,
        ));
    }
    let prefix = adds_space(keys)?;
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = super::special_tokens(keys, vocabulary, true)?.into_iter().find(|token| token.name == "unk_token");
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown.map(|token| token.text),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
        "vocab": vocabulary.base_ids(),
        "merges": merges_json(&merges(vocabulary)),
    });
    let mut parts = Map::new();
    parts.insert("normalizer".to_owned(), json!({"type": "Sequence", "normalizers": normalizers}));
    parts.insert("decoder".to_owned(), json!({"type": "Sequence", "decoders": decoders}));
    parts.insert("model".to_owned(), model);
    Ok(Kind { parts, processor: None, adds: (true, false), sentencepiece: true })
}

/// Whether a text gets a space before it.
pub(crate) fn adds_space(keys: Keys<'_>) -> Result<bool> {
    Ok(keys.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true))
}

/// Every pair of tokens that makes a third, by the third's score from the highest; among equal ones, longer left parts
/// first, as transformers orders them (`generate_merges` of `tokenization_utils_base.py`).
fn merges<'a>(vocabulary: &Vocabulary<'a>) -> Vec<(&'a str, &'a str)> {
    let mut ids = vocabulary.ids();
    ids.retain(|_, id| *id < vocabulary.base);
    let mut found = Vec::new();
    for (id, token) in vocabulary.tokens[..vocabulary.base].iter().enumerate().filter(|(_, t)| t.len() <= LONGEST) {
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let first = found.len();
        found.extend(splits.enumerate().filter_map(|(i, (left, right))| {
            let parts = (*ids.get(left)?, *ids.get(right)?);
            Some((vocabulary.score(id), i, parts, left, right))
        }));
        found[first..].sort_by_key(|(_, _, parts, ..)| *parts);
    }
    // Of one token, the longer left part is the shorter right part.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(chars(b.4).cmp(&chars(a.4))));
    found.into_iter().map(|(.., left, right)| (left, right)).collect()
}

fn chars(text: &str) -> usize {
    text.chars().count()
}
