//! What lies beside the weights of a release: the files that are written again, and those that are copied. A plan makes
//! them, and an audit holds a release against them.

use std::path::Path;

use super::stop::{GENERATION_CONFIG, Stop, stop_at, turn_end_of};
use crate::adapter::Adapter;
use crate::checkpoint::{Checkpoint, Companion, Companions, LeftOut, TokenizerChoice, companions};
use crate::error::Result;
use crate::text::TurnEnd;

/// The files beside the weights, but for the index of shards.
pub(crate) struct Beside {
    /// Name and text of what is written again.
    pub(crate) texts: Vec<(String, String)>,
    /// What base and adapters have, that of which a text takes the place included.
    pub(crate) companions: Vec<Companion>,
    /// What does not travel.
    pub(crate) left_out: Vec<LeftOut>,
    /// How the chat template ends a turn.
    pub(crate) turn_end: Option<TurnEnd>,
    /// What is changed, a line each.
    pub(crate) changes: Vec<String>,
}

impl Beside {
    /// Of `base` with `adapters`, whose merged config.json is `config`.
    pub(crate) fn new(
        base: &Checkpoint,
        adapters: &[Adapter],
        config: Option<&str>,
        tokenizer: TokenizerChoice,
    ) -> Result<Self> {
        let dirs: Vec<&Path> = adapters.iter().map(|adapter| adapter.dir.as_path()).collect();
        let Companions { files: companions, left_out } = companions(&base.dir, &dirs, tokenizer)?;
        let turn_end = turn_end_of(&companions);
        let generation = match &turn_end {
            Some(turn) if !adapters.is_empty() => stop_at(turn, &companions, config)?,
            _ => None,
        };
        let mut texts: Vec<(String, String)> =
            config.iter().map(|text| ("config.json".to_owned(), (*text).to_owned())).collect();
        let mut changes = Vec::new();
        if let Some(Stop { text, change }) = generation {
            texts.push((GENERATION_CONFIG.to_owned(), text));
            changes.push(change);
        }
        Ok(Self { texts, companions, left_out, turn_end, changes })
    }
}
