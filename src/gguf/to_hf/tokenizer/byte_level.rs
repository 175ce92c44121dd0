//! Byte-level BPE, as GPT-2 began it. How a text is cut before the merges is in `pre`.

use serde_json::{Map, Value, json};

use super::super::keys::{Keys, TOKENIZER_REMEDY as REMEDY};
use super::Kind;
use super::pre::{PreTokenizer, byte_level};
use super::vocabulary::{Vocabulary, merges_json};
use crate::error::{Error, Result, escaped};

/// What a byte-level vocabulary brings to tokenizer.json.
pub(crate) fn kind(keys: Keys<'_>, vocabulary: &Vocabulary<'_>) -> Result<Kind> {
    let pre = PreTokenizer::of(keys.text("tokenizer.ggml.pre")?.filter(|name| !name.is_empty()).unwrap_or("default"))?;
    let mut parts = Map::new();
    if pre.composes {
        parts.insert("normalizer".to_owned(), json!({"type": "NFC"}));
    }
    parts.insert("pre_tokenizer".to_owned(), pre.json());
    parts.insert("decoder".to_owned(), byte_level(false));
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": pre.whole_words,
        "vocab": vocabulary.base_ids(),
        "merges": merges(vocabulary)?,
    });
    parts.insert("model".to_owned(), model);
    Ok(Kind { parts, processor: Some(byte_level(false)), adds: (pre.adds_bos, false), sentencepiece: false })
}

/// The merges of the file, each of two tokens that make a third. Tokenizers refuse to load any others.
fn merges(vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let ids = vocabulary.ids();
    let base = |text: &str| ids.get(text).is_some_and(|id| *id < vocabulary.base);
    let Some(merges) = vocabulary.merges.filter(|merges| !merges.is_empty()) else {
        return Err(Error::inconsistent(
            "the model has a vocabulary of the kind gpt2 without tokenizer.ggml.merges",
            REMEDY,
        ));
    };
    let pairs = merges.iter().map(|merge| {
        let pair =
            merge.split_once(' ').filter(|(left, right)| base(left) && base(right) && base(&format!("{left}{right}")));
        pair.ok_or_else(|| {
            Error::inconsistent(format!("the merge {} is not of two tokens that form a third", escaped(merge)), REMEDY)
        })
    });
    Ok(merges_json(&pairs.collect::<Result<Vec<_>>>()?))
}
