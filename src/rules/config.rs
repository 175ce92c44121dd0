//! config.json against the weights: layers, vocabulary, ties, quantization, and the head of the class that it names.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Facts, Said};
use crate::checkpoint::is_quantized;
use crate::error::escaped;

/// Weights of the heads that classifiers have. Their rows are the labels.
const HEADS: [&str; 5] = [
    "score.weight",
    "classifier.weight",
    "classifier.out_proj.weight",
    "classification_head.out_proj.weight",
    "qa_outputs.weight",
];
/// Endings of classes that have an output head for every token of the vocabulary, and nothing for labels.
const GENERATORS: [&str; 4] = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM"];
/// Labels of a class whose config.json does not say how many.
const DEFAULT_LABELS: usize = 2;

/// A classifier's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The name of its weight.
    pub name: &'static str,
    /// How many labels it has.
    pub labels: usize,
}

/// The head of a classifier among tensors, given each one's shape.
pub fn head_of<'a>(shape: impl Fn(&str) -> Option<&'a [usize]>) -> Option<Head> {
    HEADS.iter().find_map(|name| match shape(name)? {
        [labels, _] => Some(Head { name, labels: *labels }),
        _ => None,
    })
}

/// How many labels a config gives a classifier.
pub fn labels_of(config: &Value) -> usize {
    let listed = config.get("id2label").and_then(Value::as_object).map(serde_json::Map::len);
    let counted = config.get("num_labels").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    listed.or(counted).unwrap_or(DEFAULT_LABELS)
}

pub(super) fn layers(facts: &Facts<'_>) -> Vec<Said> {
    let prefix = facts.embedding.and_then(|name| name.strip_suffix("embed_tokens.weight"));
    let (Some(prefix), Some(expected)) = (prefix, facts.number("num_hidden_layers")) else { return Vec::new() };
    let number = |name: &&str| name.strip_prefix(prefix)?.strip_prefix("layers.")?.split('.').next()?.parse().ok();
    let found: BTreeSet<usize> = facts.release.tensors.keys().filter_map(number).collect();
    match (0..expected.min(1 << 20)).find(|layer| !found.contains(layer)) {
        Some(missing) if !found.is_empty() => vec![(
            format!(
                "num_hidden_layers is {expected}, but layer {missing} has no tensor: loaders initialize it with random \
                 values"
            ),
            "download the model again, or correct num_hidden_layers".to_owned(),
        )],
        _ => Vec::new(),
    }
}

/// Model types whose embedding has more rows than `vocab_size`, for tokens of their own.
const EXTRA_ROWS: [(&str, usize); 3] = [("mllama", 8), ("mllama_text_model", 8), ("moshi", 1)];

pub(super) fn vocabulary(facts: &Facts<'_>) -> Vec<Said> {
    let (Some(rows), Some(expected)) = (facts.rows, facts.number("vocab_size")) else { return Vec::new() };
    let kind = facts.config.as_ref().and_then(|config| config.get("model_type")?.as_str());
    let extra = EXTRA_ROWS.iter().find(|(name, _)| Some(*name) == kind).map_or(0, |(_, rows)| *rows);
    if rows == expected.saturating_add(extra) || facts.has_code() {
        return Vec::new();
    }
    vec![(
        format!(
            "vocab_size is {expected}, but {} has {rows} rows: no loader accepts that",
            facts.embedding.unwrap_or("")
        ),
        format!("set vocab_size to {rows}"),
    )]
}

pub(super) fn tied(facts: &Facts<'_>) -> Vec<Said> {
    let head = facts.release.untied_head.iter();
    let said = |head: &String| {
        (
            format!(
                "tie_word_embeddings is true, but {} has separate values: loaders disagree on which of them to use",
                escaped(head)
            ),
            "set tie_word_embeddings to false, if these values are intended".to_owned(),
        )
    };
    head.map(said).collect()
}

pub(super) fn quantization(facts: &Facts<'_>) -> Vec<Said> {
    let Some(method) =
        facts.config.as_ref().and_then(|config| config.get("quantization_config")).filter(|v| !v.is_null())
    else {
        return Vec::new();
    };
    if facts.release.tensors.is_empty() || facts.release.tensors.values().any(|(dtype, _)| is_quantized(*dtype)) {
        return Vec::new();
    }
    let name = method.get("quant_method").and_then(Value::as_str).unwrap_or("unknown method");
    vec![(
        format!(
            "quantization_config names {}, but every weight has 16 bits or more: loaders look for tensors that don't \
             exist",
            escaped(name)
        ),
        "remove quantization_config from config.json".to_owned(),
    )]
}

pub(super) fn head(facts: &Facts<'_>) -> Vec<Said> {
    let Some(class) = facts.class().filter(|class| GENERATORS.iter().any(|ending| class.ends_with(ending))) else {
        return Vec::new();
    };
    let Some(head) = head_of(|name| facts.release.tensors.get(name).map(|(_, shape)| *shape)) else {
        return Vec::new();
    };
    vec![(
        format!("architectures names {}, which has no {}", escaped(class), head.name),
        "name the class that was trained, such as ...ForSequenceClassification, and its labels in id2label".to_owned(),
    )]
}

pub(super) fn labels(facts: &Facts<'_>) -> Vec<Said> {
    let classifies = facts.class().is_some_and(|class| class.ends_with("Classification"));
    let (true, Some(config)) = (classifies, facts.config.as_ref()) else { return Vec::new() };
    let Some(head) = head_of(|name| facts.release.tensors.get(name).map(|(_, shape)| *shape)) else {
        return Vec::new();
    };
    let expected = labels_of(config);
    if head.labels == expected {
        return Vec::new();
    }
    vec![(
        format!("has {expected} labels, but {} has {} rows: no loader accepts that", head.name, head.labels),
        format!("list {} labels in id2label and label2id", head.labels),
    )]
}
