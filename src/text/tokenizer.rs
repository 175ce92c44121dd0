//! `tokenizer.json` as transformers opens it: with the tokens that `tokenizer_config.json` and its older companions add.
//! Encoding and decoding are the `tokenizers` crate's.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, DecoderWrapper, Model, NormalizerWrapper, PaddingParams, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerBuilder, TokenizerImpl, TruncationParams,
};

use super::MAX_TOKENS;
use super::growth::growth;
use super::sources::{Sources, members, token_text};
use super::tables::TokenizerJson;
use super::words::{AnyModel, Words};
use crate::caught::caught;
use crate::error::{Error, Result, escaped, shown};

/// The named tokens of transformers, in its order.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A tokenizer of the crate, with any model.
pub(crate) type Tokenizer<'t> =
    TokenizerImpl<AnyModel<'t>, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// An open tokenizer.
pub(crate) struct HfTokenizer<'t> {
    path: PathBuf,
    tokenizer: Tokenizer<'t>,
    vocab: BTreeMap<u32, Cow<'t, str>>,
    added: BTreeMap<u32, AddedToken>,
    special: Vec<String>,
    /// Texts of added tokens that the crate counts on to, by the ids that the file gives them.
    stated: BTreeMap<String, u32>,
}

impl<'t> HfTokenizer<'t> {
    /// Opens the tokenizer of a model; `None` if there is no `tokenizer.json`.
    pub(crate) fn open(sources: &'t Sources<'_>) -> Result<Option<Self>> {
        let Some(json) = &sources.tokenizer else { return Ok(None) };
        let extra = ExtraTokens::read(sources)?;
        let parse = || by_words(json).map_or_else(|| serde_json::from_str(json.text), Ok);
        let Some(Opened { path, tokenizer, .. }) = open(sources, &extra, parse)? else { return Ok(None) };
        let mut vocab: BTreeMap<u32, Cow<'_, str>> = match tokenizer.get_model() {
            AnyModel::Words(words) => words.texts().iter().map(|(id, text)| (*id, Cow::Borrowed(*text))).collect(),
            AnyModel::Whole(_) => tokenizer.get_vocab(false).into_iter().map(|(text, id)| (id, text.into())).collect(),
        };
        let mut added = BTreeMap::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            vocab.insert(id, token.content.clone().into());
            added.insert(id, token);
        }
        let stated = stated(&extra, sources.added_tokens());
        let special = extra.tokens.into_iter().map(|token| token.content).collect();
        let mut opened = Self { path, tokenizer, vocab, added, special, stated: BTreeMap::new() };
        opened.keep_stated(stated)?;
        Ok(Some(opened))
    }

    /// Gives added tokens the ids that the files state. The crate counts on from the vocabulary instead, and so closes
    /// gaps; where the vocabulary itself has a token, its id holds.
    fn keep_stated(&mut self, stated: BTreeMap<String, u32>) -> Result<()> {
        let mut moved = Vec::new();
        for (text, id) in stated {
            let Some(counted) = self.tokenizer.token_to_id(&text).filter(|counted| *counted != id) else { continue };
            if !self.is_base(counted) && self.vocab.get(&counted).is_some_and(|there| *there == text) {
                self.vocab.remove(&counted);
                moved.extend(self.added.remove(&counted).map(|token| (id, token)));
            }
        }
        for (id, token) in moved {
            if let Some(other) = self.vocab.insert(id, token.content.clone().into()) {
                let (text, other) = (escaped(&token.content), escaped(&other));
                let problem = format!("gives the id {id} to the added token {text}, and {other} has it too");
                return Err(Error::malformed(&self.path, problem, "restore the file from its source"));
            }
            self.stated.insert(token.content.clone(), id);
            self.added.insert(id, token);
        }
        Ok(())
    }

    /// Warnings of ids that programs disagree about.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        self.stated.iter().filter_map(|(text, id)| {
            let counted = self.tokenizer.token_to_id(text)?;
            let text = escaped(text);
            Some(format!(
                "the tokenizer gives the added token {text} the id {id}, which the GGUF keeps; transformers continues \
                 after the vocabulary, and gives it {counted}"
            ))
        })
    }

    /// Where it was read, for messages.
    pub(crate) fn shown_path(&self) -> String {
        shown(&self.path)
    }

    /// Texts by id, added tokens among them.
    pub(crate) fn vocab(&self) -> &BTreeMap<u32, Cow<'t, str>> {
        &self.vocab
    }

    /// How many places a vocabulary of `vocab_size` has, by config.json; zero for a config without it. Refuses tokens
    /// beyond.
    pub(crate) fn places(&self, vocab_size: usize) -> Result<usize> {
        let highest = self.vocab.keys().next_back().map_or(0, |id| *id as usize + 1);
        let places = if vocab_size == 0 { self.vocab.len() } else { vocab_size };
        if highest <= places && places <= MAX_TOKENS {
            return Ok(places);
        }
        let (path, last) = (self.shown_path(), highest.saturating_sub(1));
        Err(Error::inconsistent(
            format!("{path}: has a token of id {last}; config.json has a vocab_size of {places}"),
            "take tokenizer and config.json from the same model, or resize the model's embeddings to the tokenizer",
        ))
    }

    /// Whether the token with this id is one of the model's own, not added to them.
    pub(crate) fn is_base(&self, id: u32) -> bool {
        self.tokenizer.get_model().id_to_token(id).is_some()
    }

    /// The added token with this id.
    pub(crate) fn added(&self, id: u32) -> Option<&AddedToken> {
        self.added.get(&id)
    }

    /// The texts of the special tokens that the configuration names.
    pub(crate) fn special(&self) -> &[String] {
        &self.special
    }

    /// The id of the token with this text.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.stated.get(text).copied().or_else(|| self.tokenizer.token_to_id(text))
    }

    /// The ids of `text`; with what the post-processor adds if `special`.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        guarded(|| Ok(self.tokenizer.encode(text, special)?.get_ids().to_vec())).map_err(|e| self.refuse(&e))
    }

    /// `text` encoded and decoded again.
    pub(crate) fn round_trip(&self, text: &str) -> Result<String> {
        let ids = self.encode(text, false)?;
        guarded(|| self.tokenizer.decode(&ids, false)).map_err(|e| self.refuse(&e))
    }

    fn refuse(&self, problem: &str) -> Error {
        Error::malformed(&self.path, format!("can't encode a text: {problem}"), "restore the file from its source")
    }
}

/// Ids of added tokens by text: those of `tokenizer.json`, and of what is added to it.
fn stated(extra: &ExtraTokens, listed: &[Value]) -> BTreeMap<String, u32> {
    let id = |id: u64| u32::try_from(id).ok();
    let added = extra.listed.iter().filter_map(|(at, token)| Some((token.content.clone(), id(*at)?)));
    let listed =
        listed.iter().filter_map(|token| Some((token_text(token)?.to_owned(), id(token.get("id")?.as_u64()?)?)));
    added.chain(listed).collect()
}

/// A tokenizer of the crate, as it is used.
pub(crate) struct Opened<'t> {
    /// Its file.
    pub(crate) path: PathBuf,
    /// The tokenizer.
    pub(crate) tokenizer: Tokenizer<'t>,
    /// How many times as long it can make a text before it cuts it.
    pub(crate) growth: u64,
}

/// Opens the tokenizer of a model with the crate's model of its whole vocabulary: slower to open, and as fast as the crate
/// is ever after. `None` if there is no `tokenizer.json`.
pub(crate) fn open_whole(sources: &Sources<'_>) -> Result<Option<Opened<'static>>> {
    let Some(json) = &sources.tokenizer else { return Ok(None) };
    open(sources, &ExtraTokens::read(sources)?, || serde_json::from_str(json.text))
}

/// What `parse` makes of `tokenizer.json`, set up for texts of any length, with the tokens that the configuration adds.
fn open<'t>(
    sources: &Sources<'_>,
    extra: &ExtraTokens,
    parse: impl FnOnce() -> serde_json::Result<Tokenizer<'t>>,
) -> Result<Option<Opened<'t>>> {
    let Some(path) = sources.files.paths.get("tokenizer.json") else { return Ok(None) };
    let refuse = |problem: String| {
        let problem = format!("can't be opened as a tokenizer: {problem}");
        Error::malformed(path, problem, "restore the file from its source")
    };
    let growth = sources.tokenizer.as_ref().map_or(Ok(1), |json| growth(&json.rest)).map_err(refuse)?;
    let opened = guarded(|| {
        let mut tokenizer = parse()?;
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        let missing = extra.missing(&tokenizer);
        tokenizer.add_tokens(missing)?;
        tokenizer.set_encode_special_tokens(extra.split_special);
        Ok(tokenizer)
    });
    Ok(Some(Opened { path: path.clone(), tokenizer: opened.map_err(refuse)?, growth }))
}

/// The tokenizer of a file with tables, as the crate would read it, but for a model that works word by word; `None` where
/// something is odd, which is the crate's to judge.
fn by_words<'t>(json: &'t TokenizerJson<'_>) -> Option<Tokenizer<'t>> {
    fn part<T: DeserializeOwned>(json: &Value, name: &str) -> serde_json::Result<Option<T>> {
        json.get(name).map_or(Ok(None), |part| serde_json::from_value(part.clone()))
    }
    let rest = &json.rest;
    let words = Words::new(json.tables.as_ref()?, rest.get("model")?)?;
    let (_, _): (Option<TruncationParams>, Option<PaddingParams>) =
        (part(rest, "truncation").ok()?, part(rest, "padding").ok()?);
    let listed = rest.get("added_tokens").map_or(Some(&[][..]), |tokens| Some(tokens.as_array()?.as_slice()))?;
    let has_id = |token: &Value| token.get("id").and_then(Value::as_u64).is_some_and(|id| u32::try_from(id).is_ok());
    if rest.get("version").is_some_and(|version| version != "1.0") || !listed.iter().all(has_id) {
        return None;
    }
    let tokens: Vec<AddedToken> = part(rest, "added_tokens").ok()?.unwrap_or_default();
    let builder = TokenizerBuilder::new()
        .with_model(AnyModel::Words(Box::new(words)))
        .with_normalizer(part(rest, "normalizer").ok()?)
        .with_pre_tokenizer(part(rest, "pre_tokenizer").ok()?)
        .with_post_processor(part(rest, "post_processor").ok()?)
        .with_decoder(part(rest, "decoder").ok()?);
    let mut tokenizer = builder.build().ok()?;
    tokenizer.add_tokens(tokens).ok()?;
    Some(tokenizer)
}

/// Runs code of the `tokenizers` crate on untrusted input: a panic becomes an error.
pub(crate) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    let done = caught(work).map_err(|panic| format!("the tokenizers library failed ({panic})"))?;
    done.map_err(|e| escaped(&e.to_string()))
}

/// Tokens that a configuration adds to `tokenizer.json`, in the order in which transformers adds them.
struct ExtraTokens {
    /// By id: those that the configuration lists with all their properties.
    listed: BTreeMap<u64, AddedToken>,
    /// Tokens with a name, such as the padding token, and special tokens without one.
    tokens: Vec<AddedToken>,
    /// Special tokens in a text are split as any text is.
    split_special: bool,
}

impl ExtraTokens {
    fn read(sources: &Sources<'_>) -> Result<Self> {
        let mut config = sources.config.clone();
        let mut listed = BTreeMap::new();
        if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
            listed.extend(decoder.iter().filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?))));
        } else {
            config.extend(members(sources.files, "special_tokens_map.json")?);
            let names = named(&config).chain(unnamed(&config)).filter_map(token_text).collect::<HashSet<_>>();
            for (text, id) in members(sources.files, "added_tokens.json")? {
                let special = names.contains(text.as_str());
                listed.extend(id.as_u64().map(|id| (id, AddedToken::from(text, special))));
            }
            let tokens = sources.added_tokens().iter();
            listed.extend(tokens.filter_map(|token| Some((token.get("id")?.as_u64()?, added_token(token)?))));
        }
        let mut tokens: Vec<AddedToken> = named(&config).filter_map(added_token).collect();
        // A token with a name is special, whatever its properties say.
        tokens.iter_mut().for_each(|token| token.special = true);
        let names: HashSet<&str> = tokens.iter().map(|token| token.content.as_str()).collect();
        listed.values_mut().for_each(|token| token.special |= names.contains(token.content.as_str()));
        tokens.extend(unnamed(&config).filter_map(added_token));
        let split_special = config.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { listed, tokens, split_special })
    }

    /// The tokens to add: all that are listed, whose properties then hold, and of the others those that are nowhere.
    fn missing(&self, tokenizer: &Tokenizer<'_>) -> Vec<AddedToken> {
        let mut tokens: Vec<AddedToken> = self.listed.values().cloned().collect();
        let there = tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content);
        let mut there: HashSet<String> = there.chain(tokens.iter().map(|token| token.content.clone())).collect();
        tokens.extend(self.tokens.iter().filter(|token| there.insert(token.content.clone())).cloned());
        tokens
    }
}

/// Tokens with a name: those of transformers, then whatever else a configuration calls a token.
fn named(config: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let other = |name: &&String| name.ends_with("_token") && !NAMED.contains(&name.as_str());
    let others = config.iter().filter(move |(name, _)| other(name)).map(|(_, value)| value);
    NAMED.iter().filter_map(|name| config.get(*name)).chain(others)
}

/// Special tokens without a name.
fn unnamed(config: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let lists = ["extra_special_tokens", "additional_special_tokens"].into_iter().filter_map(|name| config.get(name));
    lists.map(elements).find(|list| !list.is_empty()).into_iter().flatten()
}

/// The elements of an array, or the values of an object.
fn elements(list: &Value) -> Vec<&Value> {
    match list {
        Value::Array(items) => items.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => Vec::new(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pre::CHECK_TEXT;

    /// Word by word, a tokenizer does what the crate makes of its file.
    #[test]
    fn words_are_tokenized_as_by_the_whole_model() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tokenizers");
        let mut compared = 0;
        for case in std::fs::read_dir(fixtures).unwrap() {
            let path = case.unwrap().path().join("model/tokenizer.json");
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let json = TokenizerJson::parse(&text).unwrap();
            let Some(by_words) = by_words(&json) else { continue };
            let whole: Tokenizer<'_> = serde_json::from_str(&text).unwrap();
            assert!(matches!(whole.get_model(), AnyModel::Whole(_)));
            let long = "ab".repeat(2000);
            for input in [CHECK_TEXT, "", "Hello there, the end.", &long] {
                for special in [false, true] {
                    let ids = |tokenizer: &Tokenizer<'_>| tokenizer.encode(input, special).unwrap().get_ids().to_vec();
                    assert_eq!(ids(&by_words), ids(&whole), "{}: {input:.20}", path.display());
                    let text = |tokenizer: &Tokenizer<'_>| tokenizer.decode(&ids(&whole), false).unwrap();
                    assert_eq!(text(&by_words), text(&whole), "{}", path.display());
                }
            }
            assert_eq!(by_words.get_added_tokens_decoder(), whole.get_added_tokens_decoder());
            assert_eq!(
                (by_words.get_vocab(true), by_words.get_vocab_size(true)),
                (whole.get_vocab(true), whole.get_vocab_size(true))
            );
            compared += 1;
        }
        assert!(compared >= 3, "only {compared} tokenizers");
    }

    #[test]
    fn what_the_crate_would_refuse_is_left_to_it() {
        let file = |model: &str, rest: &str| {
            let text =
                format!(r#"{{"model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1, "ab": 2}}, {model}}}{rest}}}"#);
            by_words(&TokenizerJson::parse(&text).unwrap()).is_some()
        };
        assert!(file(r#""merges": ["a b"]"#, ""));
        assert!(!file(r#""merges": ["a c"]"#, ""), "an unknown part");
        assert!(!file(r#""merges": ["b a"]"#, ""), "an unknown whole");
        assert!(!file(r#""merges": [], "byte_fallback": true"#, ""), "bytes that are not within a word");
        assert!(!file(r#""merges": [], "dropout": 0.5"#, "") && !file(r#""merges": [], "dropout": "x""#, ""));
        assert!(!file(r#""merges": []"#, r#", "version": "2.0""#) && !file(r#""merges": []"#, r#", "truncation": 7"#));
        assert!(!file(r#""merges": []"#, r#", "added_tokens": [{"content": "x"}]"#));
        let twice = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}"#;
        assert!(by_words(&TokenizerJson::parse(twice).unwrap()).is_none());
    }
}
