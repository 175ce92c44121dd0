//! The tokenizer's files, from the `tokenizer.*` metadata of a GGUF file: tokenizer.json, `tokenizer_config.json`, chat
//! templates, and for SentencePiece vocabularies tokenizer.model. What differs between the two kinds of vocabulary is
//! in `byte_level` and `sentencepiece`.

mod byte_level;
mod model_file;
mod pre;
mod sentencepiece;
mod template;
mod vocabulary;

use serde_json::{Map, Value, json};

use super::keys::{Keys, TOKENIZER_REMEDY as REMEDY};
use crate::error::{Error, Result, escaped};
use vocabulary::Vocabulary;

/// A file's name and bytes.
pub(crate) type Text = (String, Vec<u8>);

/// Special tokens: their name in `tokenizer_config.json`, and the key of their id.
const SPECIAL: [(&str, &str); 7] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("pad_token", "padding_token_id"),
    ("cls_token", "cls_token_id"),
    ("mask_token", "mask_token_id"),
];

/// A special token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Special<'a> {
    /// Its name in `tokenizer_config.json`.
    name: &'static str,
    id: u64,
    text: &'a str,
}

/// What llama.cpp assumes of a SentencePiece vocabulary that does not say.
const SENTENCEPIECE_IDS: [(&str, u64); 3] = [("bos_token", 1), ("eos_token", 2), ("unk_token", 0)];

/// The two kinds of vocabulary that can be converted back, with what each brings to the files.
struct Kind {
    /// `normalizer`, `pre_tokenizer`, `decoder` and `model` of tokenizer.json.
    parts: Map<String, Value>,
    /// What a post-processor does before it adds tokens.
    processor: Option<Value>,
    /// Whether a text begins and ends with a special token, where the file does not say.
    adds: (bool, bool),
    sentencepiece: bool,
}

/// All files of the tokenizer.
pub(crate) fn files(keys: Keys<'_>, rows: u64, context: u64) -> Result<Vec<Text>> {
    let vocabulary = Vocabulary::read(keys, rows)?;
    let kind = match keys.text("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level::kind(keys, &vocabulary)?,
        Some("llama") => sentencepiece::kind(keys, &vocabulary)?,
        other => {
            let problem = format!("a tokenizer of the kind {} can't be converted", escaped(other.unwrap_or("none")));
            return Err(Error::unsupported(problem, REMEDY));
        }
    };
    let special = special_tokens(keys, &vocabulary, kind.sentencepiece)?;
    let flag = |key: &str| keys.flag(&format!("tokenizer.ggml.{key}"));
    let stated = (flag("add_bos_token")?, flag("add_eos_token")?);
    let adds = (stated.0.unwrap_or(kind.adds.0), stated.1.unwrap_or(kind.adds.1));
    let token = |name: &str| special.iter().find(|token| token.name == name).copied();
    let (first, last) = (token("bos_token").filter(|_| adds.0), token("eos_token").filter(|_| adds.1));

    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("model_max_length".to_owned(), json!(context));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    for Special { name, text, .. } in &special {
        config.insert((*name).to_owned(), json!(text));
    }
    if kind.sentencepiece || stated.0.is_some() {
        config.insert("add_bos_token".to_owned(), json!(adds.0));
    }
    if kind.sentencepiece || stated.1.is_some() {
        config.insert("add_eos_token".to_owned(), json!(adds.1));
    }
    if let Some(prefix) = flag("add_space_prefix")? {
        config.insert("add_prefix_space".to_owned(), json!(prefix));
    }
    let mut files = Vec::new();
    if kind.sentencepiece {
        config.insert("added_tokens_decoder".to_owned(), vocabulary.added_tokens_decoder());
        let prefix = sentencepiece::adds_space(keys)?;
        files.push(("tokenizer.model".to_owned(), model_file::encode(&vocabulary, prefix, &special)));
    }
    let mut tokenizer = Map::new();
    tokenizer.insert("version".to_owned(), json!("1.0"));
    tokenizer.insert("truncation".to_owned(), Value::Null);
    tokenizer.insert("padding".to_owned(), Value::Null);
    tokenizer.insert("added_tokens".to_owned(), vocabulary.added_tokens());
    let mut parts = kind.parts;
    for key in ["normalizer", "pre_tokenizer"] {
        tokenizer.insert(key.to_owned(), parts.remove(key).unwrap_or(Value::Null));
    }
    tokenizer.insert("post_processor".to_owned(), post_processor(kind.processor, first, last));
    for key in ["decoder", "model"] {
        tokenizer.insert(key.to_owned(), parts.remove(key).unwrap_or(Value::Null));
    }
    files.push(("tokenizer.json".to_owned(), format!("{:#}\n", Value::Object(tokenizer)).into_bytes()));
    files.push(("tokenizer_config.json".to_owned(), format!("{:#}\n", Value::Object(config)).into_bytes()));
    files.extend(template::files(keys)?);
    Ok(files)
}

/// A warning where the way of cutting texts is a guess: byte-level vocabularies had no name for it before May 2024.
pub(crate) fn guessed(keys: Keys<'_>) -> Result<Option<String>> {
    let named = keys.text("tokenizer.ggml.pre")?.is_some_and(|name| !["", "default"].contains(&name));
    let guessed = keys.text("tokenizer.ggml.model")? == Some("gpt2") && !named;
    Ok(guessed.then(|| {
        "the file does not name its pre-tokenizer (tokenizer.ggml.pre): tokenizer.json splits texts by llama.cpp's \
         default, which gives other tokens than the pre-tokenizers of most models; name a directory with the model's \
         tokenizer by ⟦tokenizer⟧"
            .to_owned()
    }))
}

/// The special tokens that there are.
fn special_tokens<'a>(keys: Keys<'_>, vocabulary: &Vocabulary<'a>, sentencepiece: bool) -> Result<Vec<Special<'a>>> {
    let assumed = |name: &str| SENTENCEPIECE_IDS.iter().find(|row| sentencepiece && row.0 == name).map(|row| row.1);
    let mut tokens = Vec::new();
    for (name, key) in SPECIAL {
        let id = keys.token_id(key)?.or_else(|| assumed(name));
        tokens.extend(id.and_then(|id| Some(Special { name, id, text: vocabulary.text(id)? })));
    }
    Ok(tokens)
}

/// A post-processor that puts the token `first` before and `last` after each text, after what `inner` does.
fn post_processor(inner: Option<Value>, first: Option<Special<'_>>, last: Option<Special<'_>>) -> Value {
    let token = |token: Special<'_>, side| json!({"SpecialToken": {"id": token.text, "type_id": side}});
    let text = |name: &str, side: u8| {
        let middle = json!({"Sequence": {"id": name, "type_id": side}});
        [first.map(|t| token(t, side)), Some(middle), last.map(|t| token(t, side))].into_iter().flatten()
    };
    let entry = |Special { id, text, .. }| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
    let used: Map<String, Value> = [first, last].into_iter().flatten().map(entry).collect();
    let plain = used.is_empty();
    let template = json!({
        "type": "TemplateProcessing",
        "single": text("A", 0).collect::<Vec<_>>(),
        "pair": text("A", 0).chain(text("B", 1)).collect::<Vec<_>>(),
        "special_tokens": used,
    });
    match inner {
        Some(inner) if plain => inner,
        Some(inner) => json!({"type": "Sequence", "processors": [inner, template]}),
        None => template,
    }
}
