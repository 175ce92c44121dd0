//! Data made ready: files to conversations, to samples, to the rows that batches are made of. Tokenized sets are kept
//! beside the runs and found again by their content.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::data;
use super::data::{
    Conversation, DatasetSpec, EncodeOptions, Encoded, Encoder, Lengths, LossScale, Reason, Sample, Skipped, cache,
    pack,
};
use super::log::TrainProgress;
use super::settings::Settings;
use crate::arch::Spec;
use crate::digest::{Hex, sha256};
use crate::engine::{Batch, Sequence};
use crate::error::{Error, Result};

/// Rows of a kind that are named to users.
const NAMED: usize = 3;
/// The kind of rows that can't be read, beside those of [`Reason::kind`].
const UNREADABLE: &str = "unreadable";

/// Directory of the tokenized sets below that of the runs.
const CACHE: &str = "tokens";

/// Samples, and the rows that they share.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// The samples, each once.
    pub set: Encoded,
    /// Of each row, its samples by their place in the set: one, or a pack.
    pub rows: Vec<Vec<usize>>,
    /// How many samples all rows have: one that is repeated counts as often.
    pub samples: usize,
}

impl<'s> From<&'s Sample> for Sequence<'s> {
    fn from(sample: &'s Sample) -> Self {
        Self { tokens: &sample.ids, weights: &sample.weights }
    }
}

impl Rows {
    /// Rows of the samples that `order` names, packed up to `max_length` tokens if there is one.
    fn new(set: Encoded, order: &[usize], max_length: Option<usize>) -> Self {
        let rows = match max_length {
            Some(max_length) => {
                let lengths: Vec<usize> = order.iter().map(|at| set.samples[*at].ids.len()).collect();
                let mut packs = pack(&lengths, max_length);
                packs.iter_mut().flatten().for_each(|at| *at = order[*at]);
                packs
            }
            None => order.iter().map(|at| vec![*at]).collect(),
        };
        Self { set, rows, samples: order.len() }
    }

    /// The micro-batch of these rows.
    pub fn batch(&self, rows: &[usize]) -> Batch {
        Batch::new(rows.iter().flat_map(|row| &self.rows[*row]).map(|sample| &self.set.samples[*sample]))
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> u64 {
        self.rows.iter().flatten().map(|sample| self.set.samples[*sample].ids.len() as u64).sum()
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

/// What a run trains on, and what it is tested on.
#[derive(Debug, Clone, Default)]
pub struct Prepared {
    /// What is trained on.
    pub train: Rows,
    /// What is held out.
    pub held_out: Rows,
    /// Lengths of the rows.
    pub lengths: Lengths,
    /// Rows of files that could not be read.
    pub skipped: Vec<Skipped>,
    /// Rows that were read, and dropped: with the kind of the reason.
    pub dropped: Vec<(&'static str, Skipped)>,
    /// What the user should know.
    pub notes: Vec<String>,
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
        let mut rows = loaded.conversations;
        let (train, held_out) = if held_out_specs.is_empty() {
            data::split(&rows, loaded.order, settings.split_dataset_ratio, settings.data_seed)
        } else {
            let held_out = data::load(&held_out_specs, settings.strict, settings.data_seed)?;
            skipped.extend(held_out.skipped);
            let first = rows.len();
            rows.extend(held_out.conversations);
            (loaded.order, held_out.order.into_iter().map(|at| first + at).collect())
        };
        let max_length = settings.max_length.map(|length| length as usize);
        let loss_scale = settings.loss_scale;
        let options = EncodeOptions {
            system: settings.system_prompt()?,
            loss_scale,
            max_length: max_length.or(spec.positions),
            truncation: settings.truncation_strategy,
        };
        let encoder = Encoder::new(dir, options)?;
        let vocabulary = spec.vocabulary;
        if encoder.ids_end() as usize > vocabulary {
            return Err(Error::inconsistent(
                format!(
                    "the tokenizer has {} tokens, and the model has embeddings for {vocabulary}",
                    encoder.ids_end()
                ),
                "use the tokenizer that the model came with",
            ));
        }
        progress.phase("tokenizing");
        let tokenize = |rows: &[&Conversation]| -> Result<(Encoded, Hex)> {
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
                    progress.note(&format!("the tokens are not cached: {}", error.split().0));
                }
            }
            Ok((set, key))
        };
        let [(train_rows, train_order), (held_out_rows, held_out_order)] =
            [train, held_out].map(|order| distinct(&rows, order));
        let (train, key) = tokenize(&train_rows)?;
        let (held_out, _) = tokenize(&held_out_rows)?;
        let fingerprint = key + &order_digest(&train_order, train_rows.len());
        let (train_order, held_out_order) = (samples(&train, &train_order), samples(&held_out, &held_out_order));
        let sets = [(&train, &train_rows[..]), (&held_out, &held_out_rows[..])];
        if settings.strict {
            sets.iter().try_for_each(|(set, rows)| check_strictly(set, rows))?;
        }
        if train.samples.is_empty() {
            return Err(nothing_left(&train, &train_rows));
        }
        let dropped: Vec<_> = sets.iter().flat_map(|(set, rows)| dropped(set, rows)).collect();
        let mut notes = left_out(&skipped, &dropped);
        notes.extend(as_given(train.as_given + held_out.as_given, loss_scale));
        drop(rows);
        let packs = settings.packing.then_some(max_length).flatten();
        if settings.packing && packs.is_none() {
            return Err(Error::invalid("⟦packing⟧ requires the maximum length of a row", "add ⟦max_length 3072⟧"));
        }
        let mut lengths = Lengths::new(&train, &train_order);
        let train = Rows::new(train, &train_order, packs);
        let held_out = Rows::new(held_out, &held_out_order, packs);
        if let Some(max_length) = packs {
            lengths = lengths.packed(train.rows.len(), max_length);
        }
        let fingerprint = sha256(format!("{fingerprint} packs {packs:?}").as_bytes());
        Ok(Self { train, held_out, lengths, skipped, dropped, notes, fingerprint })
    }

    /// What there is, in figures.
    pub fn summary(&self) -> DataSummary<'_> {
        DataSummary {
            lengths: &self.lengths,
            rows: self.train.rows.len(),
            held_out_rows: self.held_out.rows.len(),
            skipped: self.skipped.iter().map(ToString::to_string).collect(),
            dropped: self.dropped.iter().map(|(_, row)| row.to_string()).collect(),
            fingerprint: &self.fingerprint,
        }
    }
}

/// Data in figures.
#[derive(Debug, Clone, Serialize)]
pub struct DataSummary<'p> {
    /// Tokens of the rows.
    pub lengths: &'p Lengths,
    /// Rows (packs, with packing) that are trained on.
    pub rows: usize,
    /// Rows that are held out.
    pub held_out_rows: usize,
    /// Rows of files that could not be read, a line each.
    pub skipped: Vec<String>,
    /// Rows that were read and dropped, a line each.
    pub dropped: Vec<String>,
    /// Digest of all samples in their order.
    pub fingerprint: &'p str,
}

/// The conversations that `order` names, each once, in the order in which they first come; and the order by their places
/// there.
fn distinct(rows: &[Conversation], order: Vec<usize>) -> (Vec<&Conversation>, Vec<usize>) {
    let mut places = vec![None; rows.len()];
    let mut once = Vec::new();
    let place = |at: usize| {
        *places[at].get_or_insert_with(|| {
            once.push(&rows[at]);
            once.len() - 1
        })
    };
    let order = order.into_iter().map(place).collect();
    (once, order)
}

/// The samples that rows in this order became, by their places in the set.
fn samples(set: &Encoded, order: &[usize]) -> Vec<usize> {
    order.iter().filter_map(|row| set.rows.binary_search(row).ok()).collect()
}

/// What tells this order of `rows` rows from others; nothing for each once, as the rows' own digest says it.
fn order_digest(order: &[usize], rows: usize) -> String {
    if order.iter().copied().eq(0..rows) {
        return String::new();
    }
    let bytes: Vec<u8> = order.iter().flat_map(|at| (*at as u64).to_le_bytes()).collect();
    format!(" {}", sha256(&bytes))
}

/// Refuses a set if a row couldn't be rendered, with the first. Rows that are only too long, or that teach nothing, are
/// dropped all the same.
fn check_strictly(set: &Encoded, rows: &[&Conversation]) -> Result<()> {
    let refused = set.dropped.iter().find_map(|dropped| match &dropped.reason {
        Reason::Refused { problem, remedy } => Some((&rows.get(dropped.row)?.origin, problem, remedy)),
        _ => None,
    });
    refused.map_or(Ok(()), |(origin, problem, remedy)| {
        let remedy = format!("{remedy}; or run without ⟦strict⟧, which leaves such rows out");
        Err(Error::inconsistent(format!("{origin}: {problem}"), remedy))
    })
}

/// The rows that were dropped, by the kind of the reason.
fn dropped(set: &Encoded, rows: &[&Conversation]) -> Vec<(&'static str, Skipped)> {
    let named = set.dropped.iter().filter_map(|dropped| {
        let origin = rows.get(dropped.row)?.origin.clone();
        Some((dropped.reason.kind(), Skipped { origin, reason: dropped.reason.to_string() }))
    });
    named.collect()
}

/// Why no row is left to train on: the reason that most have, and what to do about that.
fn nothing_left(set: &Encoded, rows: &[&Conversation]) -> Error {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    set.dropped.iter().for_each(|dropped| *counts.entry(dropped.reason.kind()).or_default() += 1);
    let reasons: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let most = counts.iter().max_by_key(|(_, count)| **count).map(|(kind, _)| *kind);
    let first = set.dropped.iter().find(|dropped| Some(dropped.reason.kind()) == most);
    let Some((first, row)) = first.and_then(|first| Some((first, rows.get(first.row)?))) else {
        return Error::not_found("there is no row to train on", "give data in one of the forms that `qft train` reads");
    };
    let why = match &first.reason {
        Reason::Refused { problem, .. } => problem.clone(),
        reason => reason.to_string(),
    };
    let problem = format!("no row is left to train on ({}); {}: {why}", reasons.join(", "), row.origin);
    Error::not_found(problem, first.reason.remedy())
}

/// How many rows are left out, and the first of each kind by name.
fn left_out(skipped: &[Skipped], dropped: &[(&'static str, Skipped)]) -> Vec<String> {
    let mut kinds: BTreeMap<&str, Vec<&Skipped>> = BTreeMap::new();
    let all = skipped.iter().map(|row| (UNREADABLE, row)).chain(dropped.iter().map(|(kind, row)| (*kind, row)));
    all.for_each(|(kind, row)| kinds.entry(kind).or_default().push(row));
    if kinds.is_empty() {
        return Vec::new();
    }
    let count = skipped.len() + dropped.len();
    let counts: Vec<String> = kinds.iter().map(|(kind, rows)| format!("{} {kind}", rows.len())).collect();
    let more = if kinds.values().any(|rows| rows.len() > NAMED) { "; ⟦dry_run⟧ ⟦json⟧ names each" } else { "" };
    let mut notes = vec![format!("rows left out: {count} ({}){more}", counts.join(", "))];
    notes.extend(kinds.values().flat_map(|rows| rows.iter().take(NAMED)).map(|row| format!("left out: {row}")));
    notes
}

/// That turns are not as the template writes them.
fn as_given(turns: usize, loss_scale: LossScale) -> Option<String> {
    let otherwise = if loss_scale == LossScale::LastRound {
        ""
    } else {
        "; ⟦loss_scale last_round⟧ trains on the last round only, and leaves earlier turns as the template writes them"
    };
    (turns > 0).then(|| {
        format!(
            "turns with the full text of their rows: {turns}; the chat template leaves out some of their words (mostly \
             thoughts), which should count in the loss{otherwise}"
        )
    })
}

/// A digest of everything that an encoding takes from rows.
fn digest(rows: &[&Conversation]) -> Hex {
    let of_row = |row: &&Conversation| {
        let messages: Vec<_> = row.messages.iter().map(|m| (format!("{:?}", m.role), &m.content, m.loss)).collect();
        sha256(format!("{messages:?} {:?}", row.tools).as_bytes())
    };
    let digests: Vec<Hex> = rows.iter().map(of_row).collect();
    sha256(digests.concat().as_bytes())
}
