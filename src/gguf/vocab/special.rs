//! Special tokens, merges and templates: the keys after the vocabulary, in the order of `SpecialVocab` in
//! `gguf-py/gguf/vocab.py`. What a post-processor says is in `roles`, chat templates are in `template`.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use super::roles::Roles;
use super::{Vocab, template};
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};
use crate::gguf::value::Value;
use crate::text::sources::{Sources, token_text};
use crate::text::tables::TokenizerJson;

/// The roles that every conversion looks for.
pub(super) const ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// Role and key of its id. Other roles have no key.
const ID_KEYS: [(&str, &str); 8] = [
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    ("sep", "tokenizer.ggml.seperator_token_id"),
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", "tokenizer.ggml.eot_token_id"),
    ("eom", "tokenizer.ggml.eom_token_id"),
];
/// Role and key of whether its token is added to a text.
const ADD_KEYS: [(&str, &str); 3] = [
    ("bos", "tokenizer.ggml.add_bos_token"),
    ("eos", "tokenizer.ggml.add_eos_token"),
    ("sep", "tokenizer.ggml.add_sep_token"),
];

/// What is known of a model's special tokens.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    merges: Vec<String>,
    ids: Vec<(&'static str, u32)>,
    adds: Vec<(&'static str, bool)>,
    template: Option<Json>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
    warnings: Vec<String>,
}

impl SpecialTokens {
    /// Reads them. Ids must be below `limit`, where there is one.
    pub(super) fn read(
        sources: &Sources<'_>,
        names: &[&'static str],
        limit: Option<usize>,
        with_merges: bool,
    ) -> Result<Self> {
        let mut special = Self::default();
        let files = sources.files;
        let mut roles = Roles::new(sources.config.clone(), names);
        if let Some(tokenizer) = &sources.tokenizer {
            roles.complete(&tokenizer.rest);
            if with_merges {
                special.merges = merges(tokenizer).ok_or_else(|| unknown_merges(files))?;
            }
            special.normalizer(tokenizer.rest.get("normalizer").unwrap_or(&Json::Null));
        }
        if with_merges && special.merges.is_empty() {
            special.merges = files.text("merges.txt")?.map(|text| merges_of_text(&text)).unwrap_or_default();
            if special.merges.is_empty() {
                special.warnings.push("the tokenizer has no merges: the file may be unusable".to_owned());
            }
        }
        if !roles.config.is_empty() {
            special.template = template::read(files, &roles.config)?;
            if special.template.as_ref().is_some_and(|t| !t.is_string() && !t.is_array()) {
                special.template = None;
                special
                    .warnings
                    .push("the chat template of tokenizer_config.json is not text: it is left out".to_owned());
            }
            special.look_in_config(&mut roles, sources.added_tokens(), limit);
        }
        special.look_in_model(files, &roles.names, limit);
        special.adds = roles.adds;
        special.warnings.append(&mut roles.warnings);
        Ok(special)
    }

    /// Ids by the names that `tokenizer_config.json` gives, looked up among the tokens added to `tokenizer.json`.
    fn look_in_config(&mut self, roles: &mut Roles, added: &[Json], limit: Option<usize>) {
        for role in roles.names.clone() {
            let add = roles.config.get(&format!("add_{role}_token")).and_then(Json::as_bool);
            if let Some(add) = add.filter(|add| roles.add_unless_known(role, *add)) {
                roles.warn(format!(
                    "tokenizer_config.json has add_{role}_token {add}, but tokenizer.json's post-processor says \
                     otherwise, and is used"
                ));
            }
            let Some(text) = roles.config.get(&format!("{role}_token")).and_then(token_text) else { continue };
            let token = added.iter().find(|token| token.get("content").and_then(Json::as_str) == Some(text));
            self.set_json(role, token.and_then(|token| token.get("id")), limit);
        }
    }

    /// Ids that `config.json` gives, for roles that have none yet.
    fn look_in_model(&mut self, files: &ModelFiles, names: &[&'static str], limit: Option<usize>) {
        let nothing = Map::new();
        let text_config = files.config.get("text_config").and_then(Json::as_object).unwrap_or(&nothing);
        for role in names {
            let name = format!("{role}_token_id");
            let id = files.config.get(&name).filter(|id| !id.is_null()).or_else(|| text_config.get(&name));
            self.set_json(role, id, limit);
        }
    }

    fn set_json(&mut self, role: &'static str, id: Option<&Json>, limit: Option<usize>) {
        match id {
            Some(Json::Bool(id)) => self.set(role, u64::from(*id), limit),
            Some(Json::Number(number)) if number.is_i64() || number.is_u64() => {
                self.set(role, number.as_u64().unwrap_or(u64::MAX), limit);
            }
            _ => {}
        }
    }

    /// Sets the id of a role, unless it has one.
    pub(super) fn set(&mut self, role: &'static str, id: u64, limit: Option<usize>) {
        match u32::try_from(id) {
            Ok(id) if limit.is_none_or(|limit| (id as usize) < limit) => {
                if !self.ids.iter().any(|(name, _)| *name == role) {
                    self.ids.push((role, id));
                }
            }
            _ => {
                self.warnings
                    .push(format!("the id of the {role} token is not an id of the vocabulary: it is left out"));
            }
        }
    }

    /// What a normalizer does to case and accents. The reader of JSON bounds how deep sequences nest.
    fn normalizer(&mut self, normalizer: &Json) {
        let flag = |name: &str| normalizer.get(name).and_then(Json::as_bool);
        match normalizer.get("type").and_then(Json::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                self.lowercase = flag("lowercase").or(self.lowercase);
                self.strip_accents = flag("strip_accents").or(self.strip_accents);
            }
            Some("Sequence") => {
                let parts = normalizer.get("normalizers").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
                parts.iter().for_each(|part| self.normalizer(part));
            }
            _ => {}
        }
    }

    /// Writes the keys.
    pub(super) fn write(mut self, vocab: &mut Vocab) {
        let keys = &mut vocab.keys;
        if !self.merges.is_empty() {
            keys.set("tokenizer.ggml.merges", Value::strings(self.merges));
        }
        for (role, id) in self.ids {
            if let Some((_, key)) = ID_KEYS.iter().find(|(name, _)| *name == role) {
                keys.set(key, Value::U32(id));
            }
        }
        for (role, add) in self.adds {
            if let Some((_, key)) = ADD_KEYS.iter().find(|(name, _)| *name == role) {
                keys.set(key, Value::Bool(add));
            }
        }
        if let Some(text) = self.template {
            template::write(&text, keys);
        }
        let flags = [("lowercase", self.lowercase), ("strip_accents", self.strip_accents)];
        for (name, flag) in flags {
            if let Some(flag) = flag {
                keys.set(&format!("tokenizer.ggml.normalizer.{name}"), Value::Bool(flag));
            }
        }
        vocab.warnings.append(&mut self.warnings);
    }
}

/// The merges of `tokenizer.json` as lines of two parts; `None` for a form that is not known. Parts in a list may hold
/// spaces, which become byte-level BPE's mark for a space.
fn merges(tokenizer: &TokenizerJson<'_>) -> Option<Vec<String>> {
    let Some(tables) = &tokenizer.tables else { return merges_of_json(&tokenizer.rest) };
    let marked = |part: &'_ Cow<'_, str>| part.replace(' ', "\u{120}");
    let line = |pair: &[Cow<'_, str>; 2]| {
        let has_space = pair.iter().any(|part| part.contains(' '));
        if has_space { pair.each_ref().map(marked).join(" ") } else { pair.join(" ") }
    };
    Some(tables.merges.iter().map(line).collect())
}

/// The same, where they are no table.
fn merges_of_json(tokenizer: &Json) -> Option<Vec<String>> {
    let Some(merges) = tokenizer.get("model").and_then(|model| model.get("merges")?.as_array()) else {
        return Some(Vec::new());
    };
    let part = |part: &Json| part.as_str().map(|text| text.replace(' ', "\u{120}"));
    let line = |merge: &Json| match merge {
        Json::String(line) => Some(line.clone()),
        Json::Array(parts) => parts.iter().map(part).collect::<Option<Vec<_>>>().map(|parts| parts.join(" ")),
        _ => None,
    };
    let known = merges.first().is_none_or(|first| first.as_array().is_none_or(|parts| parts.len() == 2));
    let uniform = merges.windows(2).all(|two| two[0].is_string() == two[1].is_string());
    (known && uniform).then(|| merges.iter().map(line).collect())?
}

fn unknown_merges(files: &ModelFiles) -> Error {
    let path = files.paths.get("tokenizer.json").cloned().unwrap_or_default();
    Error::malformed(&path, "has merges that are neither lines nor pairs", "restore the file from its source")
}

/// The merges of a `merges.txt`.
fn merges_of_text(text: &str) -> Vec<String> {
    let body =
        if text.trim_start().starts_with('#') { text.split_once('\n').map_or("", |(_, rest)| rest) } else { text };
    let line = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [left, right] => Some(format!("{left} {right}")),
        _ => None,
    };
    body.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_are_lines_or_pairs() {
        let of = |value: Json| {
            let table = json!({"model": {"vocab": {}, "merges": &value}}).to_string();
            let of_table = merges(&TokenizerJson::parse(&table).unwrap());
            assert_eq!(merges_of_json(&json!({"model": {"merges": value}})), of_table);
            of_table
        };
        assert_eq!(of(json!(["a b"])).unwrap(), ["a b"]);
        assert_eq!(of(json!([["a ", "b"], ["c", "d"]])).unwrap(), ["a\u{120} b", "c d"]);
        for bad in [json!([1]), json!([["a"]]), json!(["a b", ["c", "d"]]), json!([["a", 1]])] {
            assert_eq!(of(bad.clone()), None, "{bad}");
        }
        assert_eq!(merges_of_text("#version: 0.2\na b\n\nc d e\nf  g\n"), ["a b", "f g"]);
    }

    #[test]
    fn an_id_is_set_once_and_below_its_limit() {
        let mut special = SpecialTokens::default();
        special.set_json("bos", Some(&json!(7)), Some(7));
        special.set_json("bos", Some(&json!(-1)), None);
        special.set_json("bos", Some(&json!([1, 2])), None);
        assert!(special.ids.is_empty());
        special.set_json("bos", Some(&json!(6)), Some(7));
        special.set_json("bos", Some(&json!(5)), Some(7));
        assert_eq!(special.ids, [("bos", 6)]);
        assert_eq!(special.warnings.len(), 2);
    }
}
