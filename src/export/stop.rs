//! Where an answer ends: servers must know the token that the chat template writes after the assistant's words, or a
//! release never stops. It is added to the list of `generation_config.json`, as a change that plan and manifest show.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::{Companion, ConfigText};
use crate::error::{Result, escaped};
use crate::rules::turn_end_among;
use crate::text::{TurnEnd, stops};

/// The file that tells servers where to stop.
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// A changed `generation_config.json`.
pub(super) struct Stop {
    pub(super) text: String,
    /// What was changed, for users.
    pub(super) change: String,
}

/// The token that ends the assistant's turn in the release that `companions` belong to; `None` if it has no chat template,
/// or one whose end can't be told.
pub(super) fn turn_end_of(companions: &[Companion]) -> Option<TurnEnd> {
    let by_name: BTreeMap<&str, &Path> = companions.iter().map(|c| (c.name.as_str(), c.path.as_path())).collect();
    turn_end_among(&by_name)
}

/// `generation_config.json` with `turn` among the tokens that end an answer; `None` where it is one already.
pub(super) fn stop_at(turn: &TurnEnd, companions: &[Companion], config: Option<&str>) -> Result<Option<Stop>> {
    let config: Value = config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let file = companions.iter().find(|companion| companion.name == GENERATION_CONFIG);
    let there = file.map(|file| ConfigText::read(&file.path)).transpose()?.flatten();
    let mut text = if let Some(text) = there {
        text
    } else {
        // What loaders would take from config.json, were there no such file.
        let kept = ["bos_token_id", "eos_token_id", "pad_token_id"]
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), config.get(key).filter(|value| !value.is_null())?.clone())));
        let made: serde_json::Map<String, Value> = kept.collect();
        ConfigText::parse(Path::new(GENERATION_CONFIG), format!("{:#}\n", Value::from(made)))?
    };
    let before = stops(text.get(&[]).as_ref(), Some(&config)).map(|(_, ids)| ids).unwrap_or_default();
    if before.contains(&u64::from(turn.id)) {
        return Ok(None);
    }
    let after: Vec<u64> = before.iter().copied().chain([u64::from(turn.id)]).collect();
    text.set(&["eos_token_id"], &json!(after));
    let token = escaped(&turn.token);
    let change =
        format!("{GENERATION_CONFIG} eos_token_id: {before:?} -> {after:?} ({token} ends a turn of the chat template)");
    Ok(Some(Stop { text: text.text().to_owned(), change }))
}
