//! A model's tokenizer for much text, such as a training set: ids, and where in the text each comes from. How it is
//! opened is what transformers does, as for a conversion.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::reach::Reach;
use super::sources::Sources;
use super::tokenizer::{Opened, Tokenizer, guarded, open_whole};
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result, shown};
use crate::size::ByteSize;

/// Most bytes of a text that is tokenized in one go, which takes some 160 bytes of memory for each: a million tokens.
const MOST_BYTES: usize = 4 << 20;
/// Most bytes of it that normalizers may make.
const MOST_GROWN: u64 = 4 * MOST_BYTES as u64;
/// Texts of more bytes are tokenized one at a time, whatever the threads.
const MUCH: usize = 256 << 10;

/// The files that say which tokens there are.
const FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// An open tokenizer, to be shared between threads.
pub(crate) struct TextTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer<'static>,
    reach: Option<Reach>,
    ids_end: u32,
    added: HashSet<u32>,
    most_bytes: usize,
    /// Held by the thread that tokenizes much text.
    turn: Mutex<()>,
}

impl TextTokenizer {
    /// Opens the tokenizer of the model in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let there = FILES.iter().map(|name| ((*name).to_owned(), dir.join(name))).filter(|(_, path)| path.exists());
        let files = ModelFiles { paths: there.collect(), ..ModelFiles::default() };
        let text = files.text("tokenizer.json")?;
        let sources = Sources::read(&files, text.as_deref())?;
        let Some(Opened { path, mut tokenizer, growth }) = open_whole(&sources)? else {
            let problem = format!("{} has no tokenizer.json, which training requires", shown(dir));
            return Err(Error::not_found(problem, "copy it from the model's source, or save the tokenizer again"));
        };
        // It would add tokens, which a chat template writes itself, and trim places; places are wanted whole.
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let vocab = tokenizer.get_vocab(true);
        let reach = sources.tokenizer.as_ref().and_then(|json| Reach::new(&json.rest, &vocab));
        let ids_end = vocab.into_values().max().map_or(0, |id| id.saturating_add(1));
        let added = tokenizer.get_added_tokens_decoder().into_keys().collect();
        let most_bytes = usize::try_from(MOST_GROWN / growth).unwrap_or(usize::MAX).min(MOST_BYTES);
        Ok(Self { path, tokenizer, reach, ids_end, added, most_bytes, turn: Mutex::new(()) })
    }

    /// The most bytes of a text that it takes.
    pub(crate) fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// The ids of `text`, special tokens in it read as such and none added, and the bytes of `text` that each covers.
    /// Where a character is several tokens, each covers the character. Longer text than [`Self::most_bytes`] is refused.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        if text.len() > self.most_bytes {
            let most = ByteSize(self.most_bytes as u64);
            let problem = format!("a text has {}, and at most {most} are tokenized", ByteSize(text.len() as u64));
            return Err(Error::unsupported(problem, "cut the row into shorter ones"));
        }
        let _turn = (text.len() > MUCH).then(|| self.turn.lock());
        let encode = || {
            let encoding = self.tokenizer.encode(text, false)?;
            let places = encoding.get_offsets().iter().map(|(start, end)| *start..*end);
            Ok(encoding.get_ids().iter().copied().zip(places).collect())
        };
        guarded(encode).map_err(|problem| {
            let problem = format!("can't encode a text: {problem}");
            Error::malformed(&self.path, problem, "restore the file from its source")
        })
    }

    /// One more than the greatest id that it can give.
    pub(crate) fn ids_end(&self) -> u32 {
        self.ids_end
    }

    /// Whether it is the id of an added token, which is kept whole.
    pub(crate) fn is_added(&self, id: u32) -> bool {
        self.added.contains(&id)
    }

    /// The fewest tokens that `text` can have, without tokenizing it, which takes hundreds of bytes of memory for each of
    /// its own; 0 if that is not certain of this tokenizer.
    pub(crate) fn fewest_tokens(&self, text: &str) -> usize {
        self.reach.map_or(0, |reach| reach.fewest(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every golden tokenizer gives the ids of the one that conversions use, and places that cover the text in order.
    #[test]
    fn ids_are_those_of_conversions_and_come_with_places() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers");
        let (mut compared, mut bounded) = (0, 0);
        for case in std::fs::read_dir(fixtures).unwrap() {
            let dir = case.unwrap().path().join("model");
            let Ok(text) = std::fs::read_to_string(dir.join("tokenizer.json")) else { continue };
            let tokenizer = TextTokenizer::open(&dir).unwrap();
            let paths = FILES.iter().map(|name| ((*name).to_owned(), dir.join(name))).filter(|(_, path)| path.exists());
            let files = ModelFiles { paths: paths.collect(), ..ModelFiles::default() };
            let sources = Sources::read(&files, Some(&text)).unwrap();
            let other = super::super::tokenizer::HfTokenizer::open(&sources).unwrap().unwrap();
            for text in ["the quick <|im_end|>brown fox\n", "", "größer, 我想"] {
                let tokens = tokenizer.encode(text).unwrap();
                let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
                assert_eq!(ids, other.encode(text, false).unwrap(), "{}: {text}", dir.display());
                assert!(tokens.iter().all(|(id, place)| *id < tokenizer.ids_end() && place.end <= text.len()));
                assert!(tokens.is_sorted_by_key(|(_, place)| place.start), "{}: {tokens:?}", dir.display());
                let many = text.repeat(50) + &"x".repeat(500);
                let fewest = tokenizer.fewest_tokens(&many);
                assert!(fewest <= tokenizer.encode(&many).unwrap().len(), "{}: {fewest}", dir.display());
                bounded += usize::from(fewest > 0);
            }
            compared += 1;
        }
        assert!(compared >= 5 && bounded > 0, "only {compared} tokenizers, {bounded} bounds");
    }

    #[test]
    fn a_directory_without_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let problem = TextTokenizer::open(dir.path()).err().unwrap().to_string();
        assert!(problem.contains("has no tokenizer.json"), "{problem}");
    }
}
