//! The models and data sets that a model card names, and the base that an export merged into: as the keys
//! `general.base_model.*` and `general.dataset.*` have them.

use super::front::{Map, Node};
use super::id::{name_parts, title};
use crate::gguf::disk::{is_path_for_id, tells_of_disk};
use crate::gguf::{Metadata, Value};

/// Members of a source, in the order of their keys.
const MEMBERS: [&str; 9] =
    ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];

/// A model or data set that a model comes from: its members, in no order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Source(Vec<(&'static str, String)>);

impl Source {
    /// A source by its Hub id or address. `params` is the number of the model's own parameters.
    pub(super) fn of(id: &str, params: u64) -> Self {
        const HUB: &str = "://huggingface.co/";
        if !["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme)) {
            let parts = name_parts(id, params);
            let address = parts.organization.as_ref().map(|o| format!("https://huggingface.co/{o}/{}", parts.full));
            let mut source = Self::named(&parts.full, parts.organization.as_deref(), parts.version);
            source.0.extend(address.map(|address| ("repo_url", address)));
            return source;
        }
        let hub_id = id.strip_prefix("https").or_else(|| id.strip_prefix("http")).and_then(|id| id.strip_prefix(HUB));
        let pair = hub_id
            .and_then(|id| id.split_once('/'))
            .filter(|(o, n)| !o.is_empty() && !n.is_empty() && !n.contains('/'));
        let mut source = match (pair, hub_id) {
            (Some(_), Some(id)) => {
                let parts = name_parts(id, params);
                Self::named(&parts.full, parts.organization.as_deref(), parts.version)
            }
            _ => Self::default(),
        };
        source.0.push(("repo_url", id.to_owned()));
        source
    }

    fn named(name: &str, organization: Option<&str>, version: Option<String>) -> Self {
        let mut members = vec![("name", title(name))];
        members.extend(organization.map(|organization| ("organization", title(organization))));
        members.extend(version.map(|version| ("version", version)));
        Self(members)
    }

    /// A source that the card describes by members of its own; `None` if one is a path.
    fn described(map: &Map) -> Option<Self> {
        let text =
            |key| if let Some(Node::Text(text) | Node::Other(text)) = map.get(key) { Some(text.clone()) } else { None };
        let members: Vec<_> = MEMBERS.iter().filter_map(|key| text(key).map(|text| (*key, text))).collect();
        let is_private = |(key, text): &(&str, String)| tells_of_disk(&format!("general.base_model.0.{key}"), text);
        (!members.iter().any(is_private)).then_some(Self(members))
    }

    /// Whether both have the same address.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.get("repo_url").is_some_and(|address| Some(address) == other.get("repo_url"))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, text)| text.as_str())
    }
}

/// The sources that `node` of a card lists, and whether some were left out: local paths.
pub(super) fn sources(node: &Node, params: u64) -> (Vec<Source>, bool) {
    let nodes = match node {
        Node::Text(_) => std::slice::from_ref(node),
        Node::List(nodes) => nodes.as_slice(),
        _ => &[],
    };
    let source = |node: &Node| match node {
        Node::Text(id) if is_path_for_id(id) => None,
        Node::Text(id) => Some(Source::of(id, params)),
        Node::Map(map) => Source::described(map),
        // The converter counts what it can't read.
        _ => Some(Source::default()),
    };
    let sources: Vec<Source> = nodes.iter().filter_map(source).collect();
    let left_out = sources.len() < nodes.len();
    (sources, left_out)
}

/// Writes `sources` as `general.<kind>.*`.
pub(super) fn write(kind: &str, sources: &[Source], to: &mut Metadata) {
    to.set(&format!("general.{kind}.count"), Value::U32(u32::try_from(sources.len()).unwrap_or(u32::MAX)));
    for (i, source) in sources.iter().enumerate() {
        for (key, text) in MEMBERS.iter().filter_map(|key| source.get(key).map(|text| (key, text))) {
            if !text.is_empty() {
                to.set(&format!("general.{kind}.{i}.{key}"), Value::string(text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_addresses_name_a_source() {
        let get = |id: &str| {
            let source = Source::of(id, 0);
            ["name", "organization", "version", "repo_url"].map(|key| source.get(key).unwrap_or("-").to_owned())
        };
        assert_eq!(
            get("mistralai/Mistral-7B-v0.1"),
            ["Mistral 7B v0.1", "Mistralai", "v0.1", "https://huggingface.co/mistralai/Mistral-7B-v0.1"]
        );
        assert_eq!(get("https://huggingface.co/a/b"), ["B", "A", "-", "https://huggingface.co/a/b"]);
        assert_eq!(get("https://huggingface.co/datasets/a/b")[0], "-");
        assert_eq!(get("ssh://huggingface.co/a/b"), ["-", "-", "-", "ssh://huggingface.co/a/b"]);
        assert_eq!(get("local"), ["Local", "-", "-", "-"]);
    }
}
