//! The keys `general.*` that describe a model: from its card, config.json, `generation_config.json` and the name of its
//! directory, by the rules of gguf-py's metadata.py. What the model computes is the subject of `arch`.

mod front;
mod id;
mod lineage;
mod sources;

use serde_json::Value as Json;

pub use lineage::Lineage;
pub(super) use lineage::lineage_keys;

use self::front::{Map, Node};
use self::id::{name_parts, size_label, title};
use super::disk::{is_path_for_id, tells_of_disk};
use super::{Metadata, Value};
use crate::checkpoint::ModelFiles;
use crate::error::{Result, escaped};

/// Kind of a sampling setting.
enum Setting {
    Text,
    Int,
    Float,
}

/// Sampling settings: the key after `general.sampling.`, members of `generation_config.json` (the first that is there
/// counts), kind.
const SAMPLING: [(&str, &[&str], Setting); 12] = [
    ("sequence", &["sequence"], Setting::Text),
    ("top_k", &["top_k"], Setting::Int),
    ("top_p", &["top_p"], Setting::Float),
    ("min_p", &["min_p"], Setting::Float),
    ("xtc_probability", &["xtc_probability"], Setting::Float),
    ("xtc_threshold", &["xtc_threshold"], Setting::Float),
    ("temp", &["temperature"], Setting::Float),
    ("penalty_last_n", &["penalty_last_n"], Setting::Int),
    ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], Setting::Float),
    ("mirostat", &["mirostat"], Setting::Int),
    ("mirostat_tau", &["mirostat_tau"], Setting::Float),
    ("mirostat_eta", &["mirostat_eta"], Setting::Float),
];

/// Descriptions: the key after `general.`, members of the card (the first with a value counts). In the file's order.
const TEXTS: [(&str, &[&str]); 15] = [
    ("name", &["name", "model_name"]),
    ("author", &["author", "model_author", "model_creator"]),
    ("version", &["version", "model_version"]),
    ("organization", &["organization", "model_organization"]),
    ("finetune", &["finetune", "model_finetune"]),
    ("basename", &["basename", "model_basename", "model_type"]),
    ("description", &["description", "model_description"]),
    ("size_label", &["size_label", "model_size_label"]),
    ("license", &["license"]),
    ("license.name", &["license_name"]),
    ("license.link", &["license_link"]),
    ("source.url", &["url", "model_url"]),
    ("source.doi", &["doi", "model_doi"]),
    ("source.uuid", &["uuid", "model_uuid"]),
    ("source.repo_url", &["repo_url", "model_repo_url"]),
];

/// Lists of words: the key after `general.`, members of the card, all of which count.
const LISTS: [(&str, [&str; 2]); 2] = [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])];

/// The keys from `general.sampling.*` to `general.languages`. `params` is the number of parameters of the GGUF's
/// tensors; `name` overrides every other name. What can't be used is left out, and `warnings` say so.
pub(super) fn describe(
    files: &ModelFiles,
    params: u64,
    name: Option<&str>,
    lineage: &[Lineage],
    warnings: &mut Vec<String>,
) -> Result<Metadata> {
    let mut keys = Metadata::default();
    sampling(files, &mut keys, warnings)?;
    let card = card(files, warnings)?;
    let mut private = Private::default();
    let mut texts: Vec<(&str, Option<String>)> = TEXTS
        .iter()
        .map(|(key, members)| {
            let mut found = members.iter().filter_map(|m| Some((m, text(&card, m, warnings)?)));
            (*key, found.find(|(m, text)| !private.has(m, &format!("general.{key}"), text)).map(|(_, text)| text))
        })
        .collect();
    let id = files
        .config
        .get("_name_or_path")
        .and_then(Json::as_str)
        .filter(|id| id.matches('/').count() <= 1 && !is_path_for_id(id));
    for id in id.into_iter().chain([files.directory.as_str()]) {
        let parts = name_parts(id, params);
        let guesses = [
            ("name", Some(title(&parts.full))),
            ("organization", parts.organization.map(|organization| title(&organization))),
            ("basename", parts.basename),
            ("finetune", parts.finetune),
            ("version", parts.version),
            ("size_label", parts.size_label),
        ];
        for (key, guess) in guesses {
            texts
                .iter_mut()
                .filter(|(k, text)| *k == key && text.is_none())
                .for_each(|(_, text)| text.clone_from(&guess));
        }
    }
    for (key, text) in texts {
        let text = match key {
            "name" => name.map(str::to_owned).or(text),
            "size_label" if params > 0 => text.or_else(|| Some(size_label(params))),
            _ => text,
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            keys.set(&format!("general.{key}"), Value::String(text));
        }
    }
    let mut source = |keys: &[&'static str]| {
        let key = keys.iter().find(|key| card.get(key).is_some())?;
        let (sources, left_out) = sources::sources(card.get(key)?, params);
        private.left_out.extend(left_out.then_some(*key));
        // A list of nothing else is none.
        Some(sources).filter(|sources| !(left_out && sources.is_empty()))
    };
    let mut bases = source(&["base_model", "base_models", "base_model_sources"]);
    let datasets = source(&["datasets", "dataset", "dataset_sources"]);
    let merged = lineage::bases(lineage, params);
    // A card that knows the base that was merged into is the adapter's, and may say more of it.
    let known = |merged: &sources::Source| bases.iter().flatten().any(|base| base.is_at(merged));
    if !merged.iter().all(known) {
        bases = Some(merged);
    }
    for (kind, sources) in [("base_model", bases), ("dataset", datasets)] {
        if let Some(sources) = sources {
            sources::write(kind, &sources, &mut keys);
        }
    }
    for (key, members) in LISTS {
        let mut words = members.iter().flat_map(|member| words(&card, member, warnings)).collect::<Vec<_>>();
        // A merged model is no adapter, whatever the adapter's card says.
        words.retain(|word| lineage.is_empty() || !(key == "tags" && lineage::is_of_adapter(word)));
        words.retain(|word| !private.has(key, &format!("general.{key}"), word));
        if !words.is_empty() {
            keys.set(&format!("general.{key}"), Value::strings(words));
        }
    }
    private.tell(warnings);
    Ok(keys)
}

/// Members of a card that tell of a local path, and are left out.
#[derive(Default)]
struct Private {
    left_out: Vec<&'static str>,
}

impl Private {
    /// Whether `text`, which `member` has and `key` would get, is to be left out.
    fn has(&mut self, member: &'static str, key: &str, text: &str) -> bool {
        let has = tells_of_disk(key, text);
        self.left_out.extend(has.then_some(member));
        has
    }

    fn tell(mut self, warnings: &mut Vec<String>) {
        self.left_out.dedup();
        let said = |member| format!("README.md: {member} has a local path, which is left out");
        warnings.extend(self.left_out.into_iter().map(said));
    }
}

/// The card's front matter; a card that can't be read is none.
fn card(files: &ModelFiles, warnings: &mut Vec<String>) -> Result<Map> {
    let Some(bytes) = files.bytes("README.md")? else { return Ok(Map::default()) };
    let card = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned());
    Ok(card.and_then(|card| front::front_matter(&card)).unwrap_or_else(|problem| {
        warnings.push(format!("README.md is not used: {}", escaped(&problem)));
        Map::default()
    }))
}

/// A text of the card. Lists of texts are joined; only licenses are lists.
fn text(card: &Map, member: &str, warnings: &mut Vec<String>) -> Option<String> {
    match card.get(member)? {
        Node::Null => None,
        Node::Text(text) => Some(text.clone()),
        Node::Other(text) => {
            warnings.push(format!("README.md: {member} is taken as the text {}", escaped(text)));
            Some(text.clone())
        }
        Node::List(_) if member == "license" => Some(words(card, member, warnings).join(",")),
        Node::List(_) | Node::Map(_) => {
            warnings.push(format!("README.md: {member} is left out, since it is not text"));
            None
        }
    }
}

/// The words of a list of the card, or its one word.
fn words(card: &Map, member: &str, warnings: &mut Vec<String>) -> Vec<String> {
    let nodes = match card.get(member) {
        Some(Node::Text(text)) => return vec![text.clone()],
        Some(Node::List(nodes)) => nodes.as_slice(),
        _ => return Vec::new(),
    };
    let words: Vec<_> =
        nodes.iter().filter_map(|node| if let Node::Text(text) = node { Some(text.clone()) } else { None }).collect();
    if words.len() < nodes.len() {
        warnings.push(format!(
            "README.md: {} of {member} are left out, since they are not texts",
            nodes.len() - words.len()
        ));
    }
    words
}

fn sampling(files: &ModelFiles, keys: &mut Metadata, warnings: &mut Vec<String>) -> Result<()> {
    const FILE: &str = "generation_config.json";
    let Some(bytes) = files.bytes(FILE)? else { return Ok(()) };
    let Ok(Json::Object(settings)) = serde_json::from_slice(&bytes) else {
        warnings.push(format!("{FILE} is not used: it is not a JSON object"));
        return Ok(());
    };
    for (key, members, kind) in SAMPLING {
        let Some((member, json)) = members.iter().find_map(|m| Some((m, settings.get(*m)?))) else { continue };
        let value = match (kind, json) {
            (_, Json::Null) => continue,
            (Setting::Text, Json::String(text)) if text.is_empty() => continue,
            (Setting::Text, Json::String(text)) => Some(Value::string(text)),
            (Setting::Int, json) => json.as_i64().and_then(|v| i32::try_from(v).ok()).map(Value::I32),
            (Setting::Float, json) => json.as_f64().map(|v| v as f32).filter(|v| v.is_finite()).map(Value::F32),
            _ => None,
        };
        match value {
            Some(value) => keys.set(&format!("general.sampling.{key}"), value),
            None => {
                warnings.push(format!("{FILE}: {member} is left out, since it has a value of the wrong type or range"));
            }
        }
    }
    Ok(())
}
