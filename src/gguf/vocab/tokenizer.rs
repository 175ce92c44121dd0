//! `tokenizer.json` as transformers opens it: with the tokens that tokenizer_config.json and its older companions add.
//! Encoding and decoding are the `tokenizers` crate's.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{Error, Result, escaped, shown};
use crate::gguf::source::ModelFiles;

/// The named tokens of transformers, in its order.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// An open tokenizer.
pub(super) struct HfTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    vocab: BTreeMap<u32, String>,
    added: BTreeMap<String, AddedToken>,
    special: Vec<String>,
}

impl HfTokenizer {
    /// Opens the tokenizer of a model; `None` if there is no `tokenizer.json`.
    pub(super) fn open(files: &ModelFiles) -> Result<Option<Self>> {
        let Some(path) = files.paths.get("tokenizer.json") else { return Ok(None) };
        let Some(bytes) = files.bytes("tokenizer.json")? else { return Ok(None) };
        let config = object(files.json("tokenizer_config.json")?);
        let extra = ExtraTokens::read(files, config)?;
        let refuse = |problem: String| {
            Error::malformed(
                path,
                format!("can't be opened as a tokenizer: {problem}"),
                "restore the file from its source",
            )
        };
        let opened = guarded(|| {
            let mut tokenizer = Tokenizer::from_bytes(&bytes)?;
            tokenizer.with_truncation(None)?;
            tokenizer.with_padding(None);
            let missing = extra.missing(&tokenizer);
            tokenizer.add_tokens(missing)?;
            tokenizer.set_encode_special_tokens(extra.split_special);
            Ok(tokenizer)
        });
        let tokenizer = opened.map_err(refuse)?;
        let mut vocab: BTreeMap<u32, String> =
            tokenizer.get_vocab(false).into_iter().map(|(text, id)| (id, text)).collect();
        let mut added = BTreeMap::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            vocab.insert(id, token.content.clone());
            added.insert(token.content.clone(), token);
        }
        Ok(Some(Self { path: path.clone(), tokenizer, vocab, added, special: extra.special }))
    }

    /// Where it was read, for messages.
    pub(super) fn shown_path(&self) -> String {
        shown(&self.path)
    }

    /// Texts by id, added tokens among them.
    pub(super) fn vocab(&self) -> &BTreeMap<u32, String> {
        &self.vocab
    }

    /// How many tokens there are without the added ones.
    pub(super) fn base_len(&self) -> usize {
        self.tokenizer.get_vocab_size(false)
    }

    /// The added token with this text.
    pub(super) fn added(&self, text: &str) -> Option<&AddedToken> {
        self.added.get(text)
    }

    /// The texts of the special tokens that the configuration names.
    pub(super) fn special(&self) -> &[String] {
        &self.special
    }

    /// The id of the token with this text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// The ids of `text`; with what the post-processor adds if `special`.
    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        guarded(|| Ok(self.tokenizer.encode(text, special)?.get_ids().to_vec())).map_err(|e| self.refuse(&e))
    }

    /// `text` encoded and decoded again.
    pub(super) fn round_trip(&self, text: &str) -> Result<String> {
        let ids = self.encode(text, false)?;
        guarded(|| self.tokenizer.decode(&ids, false)).map_err(|e| self.refuse(&e))
    }

    fn refuse(&self, problem: &str) -> Error {
        Error::malformed(&self.path, format!("can't encode a text: {problem}"), "restore the file from its source")
    }
}

/// Runs code of the `tokenizers` crate on input that nobody vouches for: a panic becomes an error.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|e| escaped(&e.to_string())),
        Err(_) => Err("the tokenizers library gave up".to_owned()),
    }
}

/// Tokens that a configuration adds to `tokenizer.json`, in the order in which transformers adds them.
struct ExtraTokens {
    /// By id: those that the configuration lists with all their properties.
    listed: BTreeMap<u64, AddedToken>,
    /// Tokens with a name, such as the padding token, and special tokens without one.
    named: Vec<AddedToken>,
    /// The texts of `named` without properties, each once.
    special: Vec<String>,
    /// Special tokens in a text are split as any text is.
    split_special: bool,
}

impl ExtraTokens {
    fn read(files: &ModelFiles, mut config: Map<String, Value>) -> Result<Self> {
        let mut listed = BTreeMap::new();
        if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
            for (id, token) in decoder {
                if let (Ok(id), Some(token)) = (id.parse(), added_token(token)) {
                    listed.insert(id, token);
                }
            }
        } else {
            config.extend(object(files.json("special_tokens_map.json")?));
            for (text, id) in object(files.json("added_tokens.json")?) {
                let special = is_named(&config, &text);
                let token = AddedToken::from(text, special);
                id.as_u64().and_then(|id| listed.insert(id, token));
            }
            for token in files
                .json("tokenizer.json")?
                .as_ref()
                .and_then(|t| t.get("added_tokens")?.as_array())
                .into_iter()
                .flatten()
            {
                if let (Some(id), Some(token)) = (token.get("id").and_then(Value::as_u64), added_token(token)) {
                    listed.insert(id, token);
                }
            }
        }
        let mut named: Vec<AddedToken> = NAMED.iter().filter_map(|name| added_token(config.get(*name)?)).collect();
        for (name, value) in &config {
            if name.ends_with("_token") && !NAMED.contains(&name.as_str()) {
                named.extend(added_token(value));
            }
        }
        // A token with a name is special, whatever its properties say.
        named.iter_mut().for_each(|token| token.special = true);
        let names = named.len();
        match config
            .get("extra_special_tokens")
            .filter(|v| !is_empty(v))
            .or_else(|| config.get("additional_special_tokens"))
        {
            Some(Value::Array(tokens)) => named.extend(tokens.iter().filter_map(added_token)),
            Some(Value::Object(tokens)) => named.extend(tokens.values().filter_map(added_token)),
            _ => {}
        }
        for token in listed.values_mut() {
            token.special |= named[..names].iter().any(|other| other.content == token.content);
        }
        let mut special: Vec<String> = Vec::new();
        for token in &named {
            if !special.contains(&token.content) {
                special.push(token.content.clone());
            }
        }
        let split_special = config.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { listed, named, special, split_special })
    }

    /// The tokens to add: all that are listed, whose properties then hold, and those with a name that are nowhere yet.
    fn missing(&self, tokenizer: &Tokenizer) -> Vec<AddedToken> {
        let there: Vec<String> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let mut tokens: Vec<AddedToken> = self.listed.values().cloned().collect();
        for token in &self.named {
            if !there.contains(&token.content) && !tokens.iter().any(|other| other.content == token.content) {
                tokens.push(token.clone());
            }
        }
        tokens
    }
}

fn is_named(config: &Map<String, Value>, text: &str) -> bool {
    let list = |name: &str| config.get(name).and_then(Value::as_array).into_iter().flatten();
    let extra = list("extra_special_tokens").chain(list("additional_special_tokens"));
    NAMED.iter().filter_map(|name| config.get(*name)).chain(extra).any(|value| token_text(value) == Some(text))
}

/// The text of a token that is written as a string or as an object with properties.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A token written as a string, which is special then, or as an object with properties.
fn added_token(value: &Value) -> Option<AddedToken> {
    let text = token_text(value)?;
    let Value::Object(properties) = value else { return Some(AddedToken::from(text, true)) };
    let flag = |name: &str| properties.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    let token = AddedToken::from(text, special)
        .normalized(flag("normalized").unwrap_or(!special))
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(token)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// The members of an object; none of what is no object.
pub(super) fn object(value: Option<Value>) -> Map<String, Value> {
    if let Some(Value::Object(members)) = value { members } else { Map::new() }
}
