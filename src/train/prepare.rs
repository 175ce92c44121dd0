//! Data made ready: files to conversations, to samples, to the rows that batches are made of. Tokenized sets are kept
//! beside the runs and found again by their content.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::data::{
    self, Batch, Conversation, DatasetSpec, EncodeOptions, Encoded, Encoder, Lengths, Skipped, cache, pack,
};
use super::log::TrainProgress;
use super::model::Spec;
use super::settings::Settings;
use crate::digest::{Hex, sha256};
use crate::error::{Error, Result};

/// Directory of the tokenized sets below that of the runs.
const CACHE: &str = "tokens";

/// Samples, and the rows that they share.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// The samples.
    pub set: Encoded,
    /// Of each row, its samples: one, or a pack.
    pub rows: Vec<Vec<usize>>,
}

impl Rows {
    fn new(set: Encoded, max_length: Option<usize>) -> Self {
        let rows = match max_length {
            Some(max_length) => pack(&set.lengths(), max_length),
            None => (0..set.samples.len()).map(|sample| vec![sample]).collect(),
        };
        Self { set, rows }
    }

    /// The micro-batch of these rows.
    pub fn batch(&self, rows: &[usize]) -> Batch {
        Batch::new(rows.iter().flat_map(|row| &self.rows[*row]).map(|sample| &self.set.samples[*sample]))
    }

    /// Tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        let tokens = |row: &Vec<usize>| row.iter().map(|sample| self.set.samples[*sample].ids.len()).sum();
        self.rows.iter().map(tokens).max().unwrap_or(0)
    }

    /// Tokens of the longest sample.
    pub fn longest_sample(&self) -> usize {
        self.set.samples.iter().map(|sample| sample.ids.len()).max().unwrap_or(0)
    }
}

/// What a run learns from, and what it is tested on.
#[derive(Debug, Clone, Default)]
pub struct Prepared {
    /// What is learned.
    pub train: Rows,
    /// What is held out.
    pub held_out: Rows,
    /// Lengths of what is learned.
    pub lengths: Lengths,
    /// Rows of files that could not be used.
    pub skipped: Vec<Skipped>,
    /// What tells these rows from others.
    pub fingerprint: Hex,
}

impl Prepared {
    /// Reads and tokenizes what the settings name, for the model in `dir`, which `spec` describes.
    pub fn new(
        settings: &Settings,
        dir: &Path,
        spec: &Spec,
        jobs: usize,
        cancel: &AtomicBool,
        progress: &dyn TrainProgress,
    ) -> Result<Self> {
        progress.phase("reading");
        let specs = |names: &[String]| names.iter().map(|name| name.parse()).collect::<Result<Vec<DatasetSpec>>>();
        let (specs, held_out_specs) = (specs(&settings.dataset)?, specs(&settings.val_dataset)?);
        let loaded = data::load(&specs, settings.strict, settings.data_seed)?;
        let mut skipped = loaded.skipped;
        let (train, held_out) = if held_out_specs.is_empty() {
            data::split(loaded.conversations, settings.split_dataset_ratio, settings.data_seed)
        } else {
            let held_out = data::load(&held_out_specs, settings.strict, settings.data_seed)?;
            skipped.extend(held_out.skipped);
            (loaded.conversations, held_out.conversations)
        };
        let max_length = settings.max_length.map(|length| length as usize);
        let options = EncodeOptions {
            system: settings.system_prompt()?,
            loss_scale: named(&settings.loss_scale, "--loss_scale")?,
            max_length: max_length.or(spec.positions),
            truncation: named(&settings.truncation_strategy, "--truncation_strategy")?,
        };
        let encoder = Encoder::new(dir, options)?;
        let vocabulary = spec.vocabulary;
        if encoder.ids_end() as usize > vocabulary {
            return Err(Error::refused(
                format!(
                    "the tokenizer knows {} tokens, and the model has embeddings for {vocabulary}",
                    encoder.ids_end()
                ),
                "use the tokenizer that the model came with",
            ));
        }
        progress.phase("tokenizing");
        let tokenize = |rows: &[Conversation]| -> Result<(Encoded, Hex)> {
            let cache_dir = settings.output_dir().join(CACHE);
            let key = cache::key(encoder.fingerprint(), &[digest(rows)]);
            let kept = settings.load_from_cache_file.then(|| cache::load(&cache_dir, &key)).flatten();
            if let Some(set) = kept {
                return Ok((set, key));
            }
            let set = encoder.encode_all(rows, jobs, cancel, &|_| ())?;
            if settings.load_from_cache_file {
                // A set that can't be kept is tokenized again the next time.
                if let Err(error) = cache::store(&cache_dir, &key, &set) {
                    progress.note(&format!("the tokens are not kept: {error}"));
                }
            }
            Ok((set, key))
        };
        let (train, key) = tokenize(&train)?;
        let (held_out, _) = tokenize(&held_out)?;
        if settings.strict {
            train.check_strictly()?;
            held_out.check_strictly()?;
        }
        let packs = settings.packing.then_some(max_length).flatten();
        if settings.packing && packs.is_none() {
            return Err(Error::refused("--packing needs to know how long a row is", "add --max_length 3072"));
        }
        let mut lengths = Lengths::new(&train);
        let (train, held_out) = (Rows::new(train, packs), Rows::new(held_out, packs));
        if let Some(max_length) = packs {
            lengths = lengths.packed(train.rows.len(), max_length);
        }
        if train.rows.is_empty() {
            let reasons: Vec<String> = lengths.dropped.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            return Err(Error::refused(
                format!("no row is left to train on ({})", reasons.join(", ")),
                "raise --max_length, or look at the rows with --strict true",
            ));
        }
        let fingerprint = sha256(format!("{key} packs {packs:?}").as_bytes());
        Ok(Self { train, held_out, lengths, skipped, fingerprint })
    }

    /// For machines.
    pub fn describe(&self) -> Value {
        json!({
            "lengths": self.lengths,
            "rows": self.train.rows.len(),
            "held_out_rows": self.held_out.rows.len(),
            "skipped": self.skipped.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "fingerprint": self.fingerprint,
        })
    }
}

/// A digest of everything that an encoding takes from rows.
fn digest(rows: &[Conversation]) -> Hex {
    let of_row = |row: &Conversation| {
        let messages: Vec<_> = row.messages.iter().map(|m| (format!("{:?}", m.role), &m.content, m.loss)).collect();
        sha256(format!("{messages:?} {:?}", row.tools).as_bytes())
    };
    let digests: Vec<Hex> = rows.iter().map(of_row).collect();
    sha256(digests.concat().as_bytes())
}

/// A choice by the name that serde has for it.
fn named<T: serde::de::DeserializeOwned>(name: &str, flag: &str) -> Result<T> {
    serde_json::from_value(Value::String(name.to_owned()))
        .map_err(|error| Error::refused(format!("{flag}: {error}"), "choose one of those"))
}
