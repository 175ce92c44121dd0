//! What an export knows of a model's descent and no converter records: the base and the adapters that were merged.

use super::sources::Source;
use crate::gguf::disk::is_path_for_id;
use crate::gguf::{Metadata, Value};

/// An adapter that was merged into the model, and the base that it names. Plain data, given by the caller.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lineage {
    /// The base that the adapter was trained on: a Hub id or an address. Anything else, such as a path, is ignored.
    pub base: Option<String>,
    /// The base's revision: a commit, tag or branch.
    pub base_revision: Option<String>,
    /// The adapter's Hub id or address. Anything else is ignored.
    pub adapter: Option<String>,
    /// SHA-256 of the adapter's weights, in hexadecimal digits.
    pub sha256: Option<String>,
    /// The adapter's rank, where it has one for all its tensors.
    pub rank: Option<u32>,
    /// The adapter's alpha, where it has one for all its tensors.
    pub alpha: Option<f32>,
    /// The weight with which it was merged.
    pub weight: Option<f32>,
}

/// Whether `id` is an address, or can be the id of a model on the Hub: not a local path.
fn is_public(id: &str) -> bool {
    let word = |text: &str| {
        !text.is_empty()
            && !text.starts_with('.')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if id.starts_with("https://") {
        return !is_path_for_id(id);
    }
    id.split_once('/').is_some_and(|(owner, name)| word(owner) && word(name))
}

/// Tags that cards of adapters have, by PEFT's and trainers' names of their kinds.
const ADAPTER_TAGS: [&str; 24] = [
    "adapter",
    "peft",
    "lora",
    "qlora",
    "dora",
    "rslora",
    "adalora",
    "loha",
    "lokr",
    "vera",
    "xlora",
    "randlora",
    "lora-plus",
    "ia3",
    "oft",
    "boft",
    "hra",
    "bone",
    "miss",
    "fourierft",
    "shira",
    "c3a",
    "road",
    "delora",
];

/// Whether a tag says that its model is an adapter: by its kind, or `base_model:adapter:...`.
pub(super) fn is_of_adapter(tag: &str) -> bool {
    let tag = tag.trim().to_ascii_lowercase();
    ADAPTER_TAGS.contains(&tag.as_str()) || tag.starts_with("base_model:adapter:")
}

/// The bases of `lineage`, each once.
pub(super) fn bases(lineage: &[Lineage], params: u64) -> Vec<Source> {
    let mut bases: Vec<Source> = Vec::new();
    for id in lineage.iter().filter_map(|l| l.base.as_deref()).filter(|id| is_public(id)) {
        let base = Source::of(id, params);
        if !bases.iter().any(|other| other.is_at(&base)) {
            bases.push(base);
        }
    }
    bases
}

/// The keys `qft.*`: `qft.base.repo`, `qft.base.revision`, `qft.adapter.count`, and of each adapter in the order of
/// merging `qft.adapter.<i>.repo`, `.sha256`, `.rank`, `.alpha`, `.weight`. None for an empty lineage.
pub(crate) fn lineage_keys(lineage: &[Lineage]) -> Metadata {
    let mut keys = Metadata::default();
    if lineage.is_empty() {
        return keys;
    }
    let public = |id: &Option<String>| id.clone().filter(|id| is_public(id)).map(Value::String);
    let finite = |number: Option<f32>| number.filter(|number| number.is_finite()).map(Value::F32);
    let base = lineage.iter().find(|l| l.base.is_some());
    let mut set = |key: String, value: Option<Value>| {
        if let Some(value) = value {
            keys.set(&key, value);
        }
    };
    set("qft.base.repo".to_owned(), base.and_then(|l| public(&l.base)));
    set("qft.base.revision".to_owned(), base.and_then(|l| l.base_revision.clone()).map(Value::String));
    set("qft.adapter.count".to_owned(), u32::try_from(lineage.len()).ok().map(Value::U32));
    for (i, adapter) in lineage.iter().enumerate() {
        let members = [
            ("repo", public(&adapter.adapter)),
            ("sha256", adapter.sha256.clone().map(Value::String)),
            ("rank", adapter.rank.map(Value::U32)),
            ("alpha", finite(adapter.alpha)),
            ("weight", finite(adapter.weight)),
        ];
        members.into_iter().for_each(|(member, value)| set(format!("qft.adapter.{i}.{member}"), value));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_adapters_are_known() {
        for tag in ["lora", "LoRA", "peft", "base_model:adapter:Qwen/Qwen2.5-7B", "base_model:adapter:/home/me"] {
            assert!(is_of_adapter(tag), "{tag}");
        }
        for tag in ["explora", "base_model:finetune:a/b", "chat", "transformers"] {
            assert!(!is_of_adapter(tag), "{tag}");
        }
    }

    #[test]
    fn paths_stay_private() {
        let lineage = |base: &str| Lineage { base: Some(base.to_owned()), rank: Some(8), ..Lineage::default() };
        for path in [
            "/home/me/model",
            "./out",
            "../a/b",
            "C:\\models\\x",
            "a/b/c",
            "model",
            "a/../b",
            "https://huggingface.co//home/me",
        ] {
            assert!(bases(&[lineage(path)], 0).is_empty(), "{path}");
            assert_eq!(lineage_keys(&[lineage(path)]).get("qft.base.repo"), None, "{path}");
        }
        assert_eq!(bases(&[lineage("a/b"), lineage("a/b")], 0).len(), 1);
        let keys = lineage_keys(&[lineage("a/b")]);
        let names: Vec<_> = keys.iter().map(|(key, _)| key).collect();
        assert_eq!(names, ["qft.base.repo", "qft.adapter.count", "qft.adapter.0.rank"]);
        assert!(lineage_keys(&[]).is_empty());
    }
}
