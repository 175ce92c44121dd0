//! config.json with what a merge demands, a line for each change; no other byte is touched.

use serde_json::{Value, json};

use super::classifier::Classifier;
use crate::checkpoint::{Checkpoint, ConfigText, TEXT_SECTIONS};
use crate::merge::Float;

/// What a merge changes in a config.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// The type that the weights are cast to.
    pub(super) dtype: Option<Float>,
    /// Embedding and head are apart.
    pub(super) untied: bool,
    /// The new number of tokens.
    pub(super) vocabulary: Option<usize>,
    /// The head that an adapter brought.
    pub(super) classifier: Option<Classifier>,
    /// No weight is quantized any more.
    pub(super) plain: bool,
}

/// config.json with what the merge demands, and a line for each change. `None` if the base has no config.
pub(super) fn edit_config(base: &Checkpoint, edits: &Edits) -> (Option<String>, Vec<String>) {
    let Edits { dtype, untied, vocabulary, ref classifier, plain } = *edits;
    let Some(mut config) = base.config.clone() else { return (None, Vec::new()) };
    let mut changes = Vec::new();
    if untied {
        // Loaders differ in whether they look at the top or at the text model's section.
        set(&mut config, "tie_word_embeddings", &Value::Bool(false), Where::Everywhere, &mut changes);
    }
    if let Some(rows) = vocabulary {
        set(&mut config, "vocab_size", &json!(rows), Where::TextModel, &mut changes);
    }
    if let Some(dtype) = dtype {
        // transformers 5 writes `dtype`, older ones `torch_dtype`; both read the older name.
        let name = json!(dtype.config_name());
        let before = changes.len();
        for key in ["dtype", "torch_dtype"] {
            set(&mut config, key, &name, Where::Present, &mut changes);
        }
        if changes.len() == before && config.get(&["dtype"]).or(config.get(&["torch_dtype"])).is_none() {
            set(&mut config, "torch_dtype", &name, Where::Everywhere, &mut changes);
        }
    }
    if let Some(Classifier { class, labels, .. }) = classifier {
        let label = |n: usize| format!("LABEL_{n}");
        let names: serde_json::Map<String, Value> = (0..*labels).map(|n| (n.to_string(), json!(label(n)))).collect();
        let ids: serde_json::Map<String, Value> = (0..*labels).map(|n| (label(n), json!(n))).collect();
        for (key, value) in [("architectures", json!([class])), ("id2label", names.into()), ("label2id", ids.into())] {
            set(&mut config, key, &value, Where::Top, &mut changes);
        }
        // Written by hand; transformers reads it over the list.
        if config.get(&["num_labels"]).is_some() {
            set(&mut config, "num_labels", &json!(labels), Where::Top, &mut changes);
        }
    }
    if plain
        && config.get(&["quantization_config"]).is_some_and(|v| !v.is_null())
        && config.remove("quantization_config")
    {
        changes.push("quantization_config: removed, since no weight is quantized".to_owned());
    }
    (Some(config.text().to_owned()), changes)
}

/// In which parts of a config a setting is written.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    /// At the top, and in the text model's section if there is one.
    Everywhere,
    /// In the text model's section if there is one, else at the top; at the top too if it is there.
    TextModel,
    /// Where it is.
    Present,
    /// At the top.
    Top,
}

fn set(config: &mut ConfigText, key: &str, value: &Value, place: Where, changes: &mut Vec<String>) {
    let section = TEXT_SECTIONS.into_iter().find(|section| config.get(&[section]).is_some_and(|v| v.is_object()));
    let nested = section.map(|section| vec![section, key]);
    for keys in [Some(vec![key]), nested.clone()].into_iter().flatten() {
        let before = config.get(&keys);
        let wanted = match place {
            Where::Everywhere => true,
            Where::TextModel => before.is_some() || keys.len() == 2 || nested.is_none(),
            Where::Present => before.is_some(),
            Where::Top => keys.len() == 1,
        };
        if wanted && config.set(&keys, value) {
            let before = before.map_or_else(|| "absent".to_owned(), |v| v.to_string());
            changes.push(format!("{}: {before} -> {value}", keys.join(".")));
        }
    }
}
