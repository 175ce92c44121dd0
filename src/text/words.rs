//! BPE for a few words: of a vocabulary and merges that are large, each word gets a model of those that lie within it,
//! which is all that can matter to it. What a model makes of a word is the `tokenizers` crate's business.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeBuilder, BpeTrainer, Merges, Vocab};
use tokenizers::{Model, Result, Token};

use super::tables::Tables;
use crate::parallel::both;

/// Bytes of a word for which a model of the whole vocabulary is cheaper.
const LONG: usize = 1024;
/// Threads that look for merges of unknown tokens.
const THREADS: usize = 8;

/// A model of a tokenizer: any as the `tokenizers` crate reads it, or BPE word by word.
pub(crate) enum AnyModel<'t> {
    Whole(Box<ModelWrapper>),
    Words(Box<Words<'t>>),
}

/// BPE word by word.
pub(crate) struct Words<'t> {
    tables: &'t Tables<'t>,
    settings: Settings,
    /// Ids by token.
    ids: HashMap<&'t str, u32>,
    /// Tokens by id.
    texts: BTreeMap<u32, &'t str>,
    /// Places of the merges.
    ranks: HashMap<[&'t str; 2], u32>,
    /// Bytes of the longest token.
    longest: usize,
    /// The model of the whole vocabulary, once a word wants it.
    whole: OnceLock<std::result::Result<BPE, String>>,
}

/// The settings of a model of BPE, as the `tokenizers` crate reads them.
#[derive(Deserialize)]
struct Settings {
    r#type: String,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
}

impl Settings {
    /// Whether a word depends on nothing but the tokens and merges within it.
    fn are_plain(&self) -> bool {
        let none = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        self.r#type == "BPE"
            && self.dropout.is_none()
            && self.byte_fallback != Some(true)
            && none(&self.continuing_subword_prefix)
            && none(&self.end_of_word_suffix)
    }
}

impl<'t> Words<'t> {
    /// The model of `tables` with the settings of `model`; `None` where the crate would refuse it, or it needs more than
    /// the tokens and merges within a word.
    pub(crate) fn new(tables: &'t Tables<'t>, model: &Value) -> Option<Self> {
        let settings = Settings::deserialize(model).ok().filter(Settings::are_plain)?;
        let Tables { vocab, merges } = tables;
        let pairs = merges.iter().zip(0..).map(|([left, right], rank)| ([&**left, &**right], rank));
        let ids = || vocab.iter().map(|(text, id)| (&**text, *id)).collect::<HashMap<_, _>>();
        let (ranks, ids) = both(move || pairs.collect::<HashMap<_, _>>(), ids);
        let texts: BTreeMap<u32, &str> = vocab.iter().map(|(text, id)| (*id, &**text)).collect();
        let longest = vocab.iter().map(|(text, _)| text.len()).max()?;
        let unique = ids.len() == vocab.len() && texts.len() == vocab.len();
        let words = Self { tables, settings, ids, texts, ranks, longest, whole: OnceLock::new() };
        (unique && all_known(merges, &words.ids)).then_some(words)
    }

    /// Tokens by id.
    pub(crate) fn texts(&self) -> &BTreeMap<u32, &'t str> {
        &self.texts
    }

    /// The ids of `word`, as the crate's model gives them.
    fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        // What stands at both sides of an unknown character meets, and so more can matter than lies within the word.
        let known = |c: char| self.ids.contains_key(&*c.encode_utf8(&mut [0; 4]));
        if word.len() <= LONG && word.chars().all(known) {
            return self.model(word)?.tokenize(word);
        }
        match self.whole.get_or_init(|| self.whole().map_err(|e| e.to_string())) {
            Ok(model) => model.tokenize(word),
            Err(problem) => Err(problem.clone().into()),
        }
    }

    /// The tokens that lie within `word`.
    fn tokens<'w>(&self, word: &'w str) -> BTreeMap<&'w str, u32> {
        let ends = |rest: &'w str| rest.char_indices().map(|(at, c)| at + c.len_utf8());
        let within = |rest: &'w str| ends(rest).take_while(|end| *end <= self.longest).map(move |end| &rest[..end]);
        let pieces = word.char_indices().flat_map(|(start, _)| within(&word[start..]));
        pieces.filter_map(|piece| Some((piece, *self.ids.get(piece)?))).collect()
    }

    /// A model of what matters to `word`.
    fn model(&self, word: &str) -> Result<BPE> {
        let tokens = self.tokens(word);
        let rank = |pair: [&str; 2]| Some((*self.ranks.get(&pair)?, owned(pair)));
        let mut merges: Vec<_> = tokens.keys().flat_map(|token| halves(token)).filter_map(rank).collect();
        merges.sort_unstable();
        let vocab = tokens.into_iter().map(|(text, id)| (text.to_owned(), id)).collect();
        self.build(vocab, merges.into_iter().map(|(_, pair)| pair).collect())
    }

    /// The model of all tokens and merges.
    fn whole(&self) -> Result<BPE> {
        let Tables { vocab, merges } = self.tables;
        let vocab = vocab.iter().map(|(text, id)| (text.to_string(), *id)).collect();
        self.build(vocab, merges.iter().map(|[left, right]| owned([left, right])).collect())
    }

    fn build(&self, vocab: Vocab, merges: Merges) -> Result<BPE> {
        let Settings { unk_token, fuse_unk, ignore_merges, .. } = &self.settings;
        let builder = BPE::builder().vocab_and_merges(vocab, merges);
        let builder = builder.fuse_unk(fuse_unk.unwrap_or(false)).ignore_merges(ignore_merges.unwrap_or(false));
        unk_token.iter().cloned().fold(builder, BpeBuilder::unk_token).build()
    }
}

fn owned(pair: [&str; 2]) -> (String, String) {
    let [left, right] = pair.map(str::to_owned);
    (left, right)
}

/// All ways to cut a token in two.
fn halves(token: &str) -> impl Iterator<Item = [&str; 2]> {
    token.char_indices().skip(1).map(|(at, _)| token.split_at(at).into())
}

/// Whether all parts of all `merges`, and what they make, are tokens.
fn all_known(merges: &[[Cow<'_, str>; 2]], ids: &HashMap<&str, u32>) -> bool {
    let known = |merges: &[[Cow<'_, str>; 2]]| {
        let mut whole = String::new();
        merges.iter().all(|[left, right]| {
            whole.clear();
            whole.extend([&**left, &**right]);
            [left, right, whole.as_str()].iter().all(|text| ids.contains_key(*text))
        })
    };
    std::thread::scope(|scope| {
        let parts = merges.chunks(merges.len().div_ceil(THREADS).max(1));
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || known(part))).collect();
        threads.into_iter().all(|thread| thread.join().unwrap_or(false))
    })
}

impl<'de> Deserialize<'de> for AnyModel<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        ModelWrapper::deserialize(deserializer).map(|model| Self::Whole(Box::new(model)))
    }
}

impl Model for AnyModel<'_> {
    type Trainer = BpeTrainer;

    fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        match self {
            Self::Whole(model) => model.tokenize(word),
            Self::Words(words) => words.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Whole(model) => model.token_to_id(token),
            Self::Words(words) => words.ids.get(token).copied(),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Whole(model) => model.id_to_token(id),
            Self::Words(words) => words.texts.get(&id).map(|text| (*text).to_owned()),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Whole(model) => model.get_vocab(),
            Self::Words(words) => words.ids.iter().map(|(text, id)| ((*text).to_owned(), *id)).collect(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Whole(model) => model.get_vocab_size(),
            Self::Words(words) => words.ids.len(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        match self {
            Self::Whole(model) => model.save(folder, prefix),
            Self::Words(_) => Err("it is a model of single words".into()),
        }
    }

    /// Nothing here is trained.
    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
