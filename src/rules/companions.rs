//! Files that must be what their names say, and files that other files name.

use serde::de::IgnoredAny;

use super::{Facts, Said};
use crate::error::escaped;

/// Whether each file of JSON is one, without building its value: a tokenizer.json may have 10 MB.
pub(super) fn json(facts: &Facts<'_>) -> Vec<Said> {
    let release = facts.release;
    // What was parsed for another rule is JSON.
    let parsed = |name: &str| name == "tokenizer.json" && facts.vocabulary.is_some();
    let names = release.files.keys().filter(|name| name.ends_with(".json") && !parsed(name));
    let bad =
        names.filter(|name| release.text(name).is_none_or(|text| serde_json::from_str::<IgnoredAny>(&text).is_err()));
    let said = |name: &&str| {
        (
            format!("{} is not valid JSON; loading it will fail", escaped(name)),
            "restore the file from its source".to_owned(),
        )
    };
    bad.map(said).collect()
}

/// The files of the model's own code that config.json names. What has a `--` lies in another repository.
pub(super) fn code(facts: &Facts<'_>) -> Vec<Said> {
    let map = facts.config.as_ref().and_then(|config| config.get("auto_map")?.as_object());
    let classes = map.into_iter().flatten().flat_map(|(_, class)| match class.as_array() {
        Some(list) => list.iter().filter_map(|class| class.as_str()).collect(),
        None => class.as_str().into_iter().collect::<Vec<_>>(),
    });
    let files = classes.filter(|class| !class.contains("--")).filter_map(|class| class.split('.').next());
    let mut missing: Vec<String> =
        files.map(|module| format!("{module}.py")).filter(|file| !facts.release.has(file)).collect();
    missing.dedup();
    let said = |file: String| {
        (format!("auto_map names {}, which is missing", escaped(&file)), "copy it from the original model".to_owned())
    };
    missing.into_iter().map(said).collect()
}

/// The directories of sentence-transformers' modules.
pub(super) fn modules(facts: &Facts<'_>) -> Vec<Said> {
    let list = facts.release.json("modules.json");
    let paths = list.as_ref().and_then(|list| list.as_array()).into_iter().flatten();
    let paths = paths.filter_map(|module| module.get("path")?.as_str()).filter(|path| !path.is_empty());
    let there = |path: &&str| facts.release.files.keys().any(|name| name.starts_with(&format!("{path}/")));
    let missing = paths.filter(|path| !there(path) && !is_empty_module(path));
    let said = |path: &str| {
        (format!("names {}, which is missing", escaped(path)), "copy that directory from the original model".to_owned())
    };
    missing.map(said).collect()
}

/// Normalizing has no settings: its directory is often empty, and git keeps none that is.
fn is_empty_module(path: &str) -> bool {
    path.ends_with("_Normalize")
}
