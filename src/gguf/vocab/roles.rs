//! What a tokenizer's post-processor says of its special tokens: which are put before and after a text, and which token
//! plays which role where `tokenizer_config.json` leaves that open. The rules are those of `SpecialVocab` in
//! `gguf-py/gguf/vocab.py`, which reads simple templates only.

use serde_json::{Map, Value};

use crate::error::escaped;

/// Roles of special tokens, and whether the tokenizer adds them to a text by itself.
#[derive(Debug, Default)]
pub(super) struct Roles {
    /// `tokenizer_config.json`, completed; empty where there is none.
    pub(super) config: Map<String, Value>,
    /// The roles to look for.
    pub(super) names: Vec<&'static str>,
    /// Whether a token is added, by role, in the order in which that was found out.
    pub(super) adds: Vec<(&'static str, bool)>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
    bos: Value,
    eos: Value,
    cls: Value,
    sep: Value,
}

impl Roles {
    /// Without a `tokenizer.json`: what the configuration says holds.
    pub(super) fn new(config: Map<String, Value>, names: &[&'static str]) -> Self {
        Self { config, names: names.to_vec(), ..Self::default() }
    }

    /// Completes the roles by `tokenizer`, the content of `tokenizer.json`.
    pub(super) fn complete(&mut self, tokenizer: &Value) {
        let role = |name: &str| self.config.get(name).cloned().unwrap_or_default();
        (self.bos, self.eos) = (role("bos_token"), role("eos_token"));
        (self.cls, self.sep) = (role("cls_token"), role("sep_token"));
        if !truthy(&self.bos) && truthy(&self.cls) {
            self.bos = self.cls.clone();
            self.put("bos_token", self.cls.clone());
        }
        if !truthy(&self.eos) && truthy(&self.sep) {
            self.eos = self.sep.clone();
            self.put("eos_token", self.sep.clone());
        }
        let Some(post) = tokenizer.get("post_processor").filter(|p| truthy(p)) else { return };
        match post.get("processors").and_then(Value::as_array) {
            Some(processors) => processors.iter().for_each(|processor| self.process(processor)),
            None => self.process(post),
        }
    }

    fn process(&mut self, processor: &Value) {
        match processor.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => {
                self.add_unless_known("bos", false);
                self.add_unless_known("eos", false);
            }
            Some("RobertaProcessing") => self.roberta(processor),
            Some("TemplateProcessing") => self.template(processor),
            _ => {}
        }
    }

    fn roberta(&mut self, processor: &Value) {
        ["bos", "eos", "sep"].into_iter().for_each(|role| self.add(role, true));
        let first = |name: &str, other: &Value| match processor.get(name) {
            Some(pair) => pair.get(0).cloned().unwrap_or_default(),
            None => other.clone(),
        };
        if !truthy(&self.cls) && !self.config.is_empty() {
            self.cls = first("cls", &self.bos);
            self.put("cls_token", self.cls.clone());
        }
        if !truthy(&self.sep) && !self.config.is_empty() {
            self.sep = first("sep", &self.eos);
            self.put("sep_token", self.sep.clone());
        }
    }

    fn template(&mut self, processor: &Value) {
        let items = |name: &str| processor.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let single = items("single");
        let (mut first, mut last) = (None, None);
        if let [head, .., tail] = single {
            first = special(head);
            last = special(tail);
            first.into_iter().for_each(|token| self.leading(token));
            last.into_iter().for_each(|token| self.trailing(token));
        }
        self.pair(items("pair"), first, last);
    }

    /// A special token before a text.
    fn leading(&mut self, token: &str) {
        let value = Value::from(token);
        if self.config.is_empty() {
            self.bos = value.clone();
        } else if value != self.bos && value != self.cls {
            if !truthy(&self.bos) {
                self.bos = value.clone();
                self.put("bos_token", value.clone());
            }
            if !truthy(&self.cls) {
                self.cls = value.clone();
                self.put("cls_token", value.clone());
            }
        }
        let known = value == self.bos || value == self.cls;
        if !known {
            self.warn(format!("the tokenizer begins a text with {}, which has no role", escaped(token)));
        }
        self.add("bos", known);
    }

    /// A special token after a text: the end-of-sequence token, whatever the configuration says. That which it names
    /// becomes the end of a turn, or of a message.
    fn trailing(&mut self, token: &str) {
        let value = Value::from(token);
        if self.config.is_empty() {
            self.eos = value;
        } else if value != self.eos {
            match ["eot", "eom"].into_iter().find(|role| !self.names.contains(role)) {
                Some(role) => {
                    self.names.push(role);
                    self.put(&format!("{role}_token"), self.eos.clone());
                }
                None => self.warn(format!("{} takes the place of the end-of-sequence token", escaped(token))),
            }
            self.eos = value.clone();
            self.put("eos_token", value);
        }
        self.add("eos", true);
    }

    /// The template of two texts, which tells whether a token separates them.
    fn pair(&mut self, pair: &[Value], first: Option<&str>, last: Option<&str>) {
        let start = usize::from(first.is_some() && pair.first().and_then(special) == first);
        let stop = usize::from(last.is_some() && pair.last().and_then(special) == last);
        let Some([head, middle @ .., tail]) = pair.get(start..pair.len().saturating_sub(stop)) else { return };
        if sequence(head) != Some("A") || sequence(tail) != Some("B") || middle.is_empty() {
            return;
        }
        let separates =
            |roles: &Self, item: &Value| special(item).is_some_and(|token| roles.sep == token || roles.eos == token);
        let sep = (separates(self, &middle[0]) && last.is_none()) || (middle.len() == 2 && separates(self, &middle[1]));
        self.add("sep", sep);
        if sep && !truthy(&self.sep) && !self.config.is_empty() {
            self.put("sep_token", self.eos.clone());
        }
    }

    fn put(&mut self, name: &str, value: Value) {
        if !self.config.is_empty() {
            self.config.insert(name.to_owned(), value);
        }
    }

    fn add(&mut self, role: &'static str, add: bool) {
        match self.adds.iter_mut().find(|(name, _)| *name == role) {
            Some(old) => old.1 = add,
            None => self.adds.push((role, add)),
        }
    }

    /// Notes whether the token of `role` is added, unless that is known; says whether it was known otherwise.
    pub(super) fn add_unless_known(&mut self, role: &'static str, add: bool) -> bool {
        if let Some((_, known)) = self.adds.iter().find(|(name, _)| *name == role) {
            return *known != add;
        }
        self.adds.push((role, add));
        false
    }

    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}

/// What Python takes for true.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// The text of a special token in a template.
fn special(item: &Value) -> Option<&str> {
    item.get("SpecialToken")?.get("id")?.as_str().filter(|text| !text.is_empty())
}

/// The name of a text in a template: A or B.
fn sequence(item: &Value) -> Option<&str> {
    item.get("Sequence")?.get("id")?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "it is called with literals")]
    fn roles(config: Value, post: Value) -> Roles {
        let mut roles = Roles::new(config.as_object().unwrap().clone(), &["bos", "eos", "sep"]);
        roles.complete(&json!({"post_processor": post}));
        roles
    }

    fn token(id: &str) -> Value {
        json!({"SpecialToken": {"id": id, "type_id": 0}})
    }

    fn text(id: &str) -> Value {
        json!({"Sequence": {"id": id, "type_id": 0}})
    }

    #[test]
    fn a_template_says_what_is_added() {
        let post = json!({"type": "TemplateProcessing", "single": [token("<s>"), text("A")],
            "pair": [token("<s>"), text("A"), token("<s>"), text("B")]});
        let found = roles(json!({"bos_token": "<s>", "eos_token": "</s>"}), post.clone());
        assert_eq!(found.adds, [("bos", true), ("sep", false)]);
        let found = roles(json!({"bos_token": "<b>", "cls_token": "<c>"}), post.clone());
        assert_eq!(found.adds[0], ("bos", false), "{:?}", found.warnings);
        let found = roles(json!({"x": 1}), post);
        assert_eq!(found.config["bos_token"], "<s>");
    }

    #[test]
    fn a_byte_level_processor_alone_adds_nothing() {
        let level = json!({"type": "ByteLevel"});
        assert_eq!(roles(json!({}), level.clone()).adds, [("bos", false), ("eos", false)]);
        let single = json!({"type": "TemplateProcessing", "single": [token("<s>"), text("A")], "pair": []});
        let found = roles(json!({"bos_token": "<s>"}), json!({"type": "Sequence", "processors": [single, level]}));
        assert_eq!(found.adds, [("bos", true), ("eos", false)]);
    }

    #[test]
    fn another_trailing_token_moves_the_named_one() {
        let post = json!({"type": "TemplateProcessing", "single": [text("A"), token("</s>")],
            "pair": [text("A"), token("</s>"), text("B"), token("</s>")]});
        let found = roles(json!({"eos_token": "<|im_end|>"}), post);
        assert_eq!((&found.config["eos_token"], &found.config["eot_token"]), (&json!("</s>"), &json!("<|im_end|>")));
        assert_eq!(found.names.last(), Some(&"eot"));
        assert_eq!(found.adds, [("eos", true), ("sep", false)]);
    }
}
