//! `generation_config.json`: settings that loaders refuse, and whether what ends an answer is known to them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{Facts, Said};
use crate::text::{TurnEnd, stops, turn_end_of};

/// Sampling settings, each with the value at which it has no effect, NaN if there is none (transformers'
/// `GenerationConfig.validate`).
const SAMPLING: [(&str, f64); 8] = [
    ("temperature", 1.0),
    ("top_p", 1.0),
    ("top_k", 50.0),
    ("min_p", f64::NAN),
    ("typical_p", 1.0),
    ("top_h", f64::NAN),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
];

pub(super) fn sampling(facts: &Facts<'_>) -> Vec<Said> {
    let Some(config) = facts.release.json("generation_config.json") else { return Vec::new() };
    if config.get("do_sample").and_then(Value::as_bool).unwrap_or(false) {
        return Vec::new();
    }
    let set = SAMPLING.iter().filter(|(key, neutral)| {
        config.get(*key).and_then(Value::as_f64).is_some_and(|v| (v - neutral).abs() > f64::EPSILON || neutral.is_nan())
    });
    set.map(|(key, _)| {
        (
            format!("{key} is set while do_sample is off; save_pretrained on the loaded model will refuse"),
            "remove it or set do_sample".to_owned(),
        )
    })
    .collect()
}

/// The token that ends the assistant's turn in a model whose small files are these; `None` if it has no chat template, or
/// one whose end can't be told.
pub fn turn_end_among(files: &BTreeMap<&str, &Path>) -> Option<TurnEnd> {
    let dir = |names: &[&str]| names.iter().find_map(|name| files.get(name)?.parent());
    let template = dir(&["chat_template.jinja", "tokenizer_config.json", "chat_template.json"])?;
    let tokenizer = dir(&["tokenizer.json", "tokenizer_config.json"])?;
    turn_end_of(template, tokenizer).ok().flatten()
}

pub(super) fn stop(facts: &Facts<'_>) -> Vec<Said> {
    let Some(turn) = &facts.release.turn_end else { return Vec::new() };
    let stops = stops(facts.release.json("generation_config.json").as_ref(), facts.config.as_ref());
    let stops = stops.map(|(_, ids)| ids).unwrap_or_default();
    if stops.contains(&u64::from(turn.id)) {
        return Vec::new();
    }
    vec![(
        format!(
            "answers end with {} (id {}), at which no server stops: eos_token_id is {stops:?}",
            turn.token, turn.id
        ),
        format!("add {} to eos_token_id", turn.id),
    )]
}
