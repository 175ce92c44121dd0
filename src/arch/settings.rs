//! The settings of a model as the converter sees them: config.json with the defaults that transformers adds on the way
//! (`to_dict` of the configuration classes), and with one place for the settings of the rotary embedding.

use serde_json::{Map, Value as Json, json};

use super::family::{ConfigClass, Default};
use super::registry::FAMILIES;
use crate::error::{Error, Result, escaped};

/// Members that a scaled rotary embedding must have, by its type. Where one is missing, transformers refuses the
/// configuration, and the converter falls back to the plain file.
const ROPE_MEMBERS: [(&str, &[&str]); 5] = [
    ("linear", &["factor"]),
    ("dynamic", &["factor"]),
    ("yarn", &["factor"]),
    ("longrope", &["short_factor", "long_factor"]),
    ("llama3", &["factor", "low_freq_factor", "high_freq_factor"]),
];

/// Types of rotary embedding for which transformers notes the length of training.
const ROPE_WITH_LENGTH: [&str; 3] = ["llama3", "yarn", "longrope"];

/// The base of the rotary embedding where config.json has none.
const ROPE_THETA: f64 = 10_000.0;

const ORIGINAL_LENGTH: &str = "original_max_position_embeddings";

const REMEDY: &str = "take config.json from the model's source";

/// The settings of a model, defaults included.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    members: Map<String, Json>,
    rope: Map<String, Json>,
    class: &'static ConfigClass,
}

/// The configuration classes of all families.
fn classes() -> impl Iterator<Item = &'static ConfigClass> {
    FAMILIES.iter().flat_map(|family| family.classes)
}

/// The class that reads a config.json of this `model_type`, which lists the layers' types or does not.
fn class(model_type: &str, lists_layers: bool) -> Option<&'static ConfigClass> {
    let named = |name: &str| classes().find(|class| class.model_type == name);
    let class = named(model_type)?;
    class.with_layer_types.filter(|_| lists_layers).map_or(Some(class), named)
}

impl Settings {
    /// Completes `config`, the content of config.json.
    pub(crate) fn complete(config: &Json) -> Result<Self> {
        let Json::Object(members) = config else {
            return Err(Error::inconsistent("config.json is not a JSON object", REMEDY));
        };
        let model_type = members.get("model_type").and_then(Json::as_str).unwrap_or_default();
        let Some(class) = class(model_type, members.contains_key("layer_types")) else {
            let known = classes().map(|class| class.model_type).collect::<Vec<_>>().join(", ");
            let problem =
                format!("config.json has the model_type \"{}\"; qft converts {known} to GGUF", escaped(model_type));
            return Err(Error::unsupported(problem, super::registry::BY_LLAMA_CPP));
        };
        let plain = Self { members: members.clone(), rope: Map::new(), class };
        let mut settings = plain.clone();
        for (key, default) in class.defaults.iter().copied().flatten() {
            settings.default(key, default)?;
        }
        if settings.unify_rope()? { Ok(settings) } else { Ok(plain.plain_rope()) }
    }

    /// Gives the setting `key` its default.
    fn default(&mut self, key: &str, default: &Default) -> Result<()> {
        let heads = || self.require("num_attention_heads");
        let null = self.members.get(key).is_some_and(Json::is_null);
        let value = match (self.members.get(key).filter(|value| !value.is_null()), default) {
            (Some(_), _) => return Ok(()),
            (None, Default::Heads) => json!(heads()?),
            (None, Default::IntOrHeads(_)) if null => json!(heads()?),
            (None, Default::HeadDim) => json!(self.require("hidden_size")? / heads()?.max(1)),
            (None, _) if null => return Ok(()),
            (None, Default::Int(value) | Default::IntOrHeads(value)) => json!(value),
            (None, Default::Float(value)) => json!(value),
            (None, Default::Off) => json!(false),
        };
        self.members.insert(key.to_owned(), value);
        Ok(())
    }

    /// Gathers the settings of the rotary embedding as transformers 5 does (`modeling_rope_utils.py`). False if
    /// transformers refuses them.
    fn unify_rope(&mut self) -> Result<bool> {
        let scaling = self.members.shift_remove("rope_scaling");
        let given = scaling
            .filter(|v| v.as_object().is_some_and(|v| !v.is_empty()))
            .or_else(|| self.members.get("rope_parameters").cloned());
        let mut rope = match given {
            Some(Json::Object(rope)) => rope,
            None | Some(Json::Null) => Map::new(),
            Some(_) => return Err(Error::inconsistent("config.json: rope_scaling is no object", REMEDY)),
        };
        let theta = self.members.shift_remove("rope_theta").unwrap_or_else(|| json!(ROPE_THETA));
        let length = self.members.get("max_position_embeddings").cloned().unwrap_or(Json::Null);
        let mut sound = self.is_sound()?;
        let nested: Vec<String> = self.layer_kinds().into_iter().filter(|kind| rope.contains_key(kind)).collect();
        if nested.is_empty() {
            sound &= complete_rope(&mut rope, &theta, &length);
        }
        for kind in nested {
            if let Some(Json::Object(rope)) = rope.get_mut(&kind) {
                sound &= complete_rope(rope, &theta, &length);
            }
        }
        self.rope = rope;
        Ok(sound)
    }

    /// Kinds of layer, under which settings of the rotary embedding may be nested.
    fn layer_kinds(&self) -> Vec<String> {
        match self.members.get("layer_types") {
            Some(Json::Array(kinds)) => {
                let mut kinds: Vec<_> = kinds.iter().filter_map(Json::as_str).map(str::to_owned).collect();
                kinds.sort_unstable();
                kinds.dedup();
                kinds
            }
            _ if self.class.nests_rope => vec!["full_attention".to_owned(), "sliding_attention".to_owned()],
            _ => Vec::new(),
        }
    }

    /// Whether transformers accepts the dimensions.
    fn is_sound(&self) -> Result<bool> {
        if !self.class.divides_heads {
            return Ok(true);
        }
        let heads = self.require("num_attention_heads")?;
        Ok(heads > 0 && self.require("hidden_size")?.is_multiple_of(heads))
    }

    /// The plain file's settings of the rotary embedding (`TextModel.__init__` in conversion/base.py).
    fn plain_rope(mut self) -> Self {
        let given = self.members.get("rope_parameters").or_else(|| self.members.get("rope_scaling"));
        let mut rope = given.and_then(Json::as_object).cloned().unwrap_or_default();
        if !rope.contains_key("full_attention") && !rope.contains_key("sliding_attention") {
            for key in ["rope_theta", ORIGINAL_LENGTH] {
                if let (Some(value), false) = (self.members.get(key).filter(|v| !v.is_null()), rope.contains_key(key)) {
                    rope.insert(key.to_owned(), value.clone());
                }
            }
            if let (Some(kind), false) = (rope.get("type").cloned(), rope.contains_key("rope_type")) {
                rope.insert("rope_type".to_owned(), kind);
            }
        }
        self.rope = rope;
        self
    }

    /// Setting `key`; null counts as missing.
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        self.members.get(key).filter(|value| !value.is_null())
    }

    /// Whether there is a setting `key`, null or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.members.contains_key(key)
    }

    /// The first of the settings `keys` that is there; null hides those after it.
    pub(crate) fn first(&self, keys: &[&'static str]) -> Option<(&'static str, &Json)> {
        let key = keys.iter().find(|key| self.members.contains_key(**key))?;
        self.get(key).map(|value| (*key, value))
    }

    /// A setting that is text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// Whether the switch `key` is on.
    pub(crate) fn is_on(&self, key: &str) -> bool {
        self.get(key).and_then(Json::as_bool) == Some(true)
    }

    /// A setting that must be a whole number.
    pub(crate) fn require(&self, key: &str) -> Result<u64> {
        self.get(key)
            .map(|value| whole(key, value))
            .transpose()?
            .map(u64::from)
            .ok_or_else(|| Error::inconsistent(format!("config.json has no {key}"), REMEDY))
    }

    /// The configuration class that reads it.
    pub(crate) fn class(&self) -> &'static ConfigClass {
        self.class
    }

    /// Values of an attention head.
    pub(crate) fn head_dim(&self) -> Result<u64> {
        if let Some(value) = self.get("head_dim") {
            return whole("head_dim", value).map(u64::from);
        }
        let (hidden, heads) = (self.require("hidden_size")?, self.require("num_attention_heads")?);
        hidden.checked_div(heads).ok_or_else(|| Error::inconsistent("config.json: num_attention_heads is 0", REMEDY))
    }

    /// All settings of the rotary embedding.
    pub(crate) fn all_rope(&self) -> &Map<String, Json> {
        &self.rope
    }

    /// The settings of the rotary embedding of layers with full attention.
    pub(crate) fn rope(&self) -> &Map<String, Json> {
        self.rope.get("full_attention").and_then(Json::as_object).unwrap_or(&self.rope)
    }

    /// Their type.
    pub(crate) fn rope_type(&self) -> Option<&str> {
        self.rope().get("rope_type").and_then(Json::as_str)
    }
}

/// Fills in what is missing. False if a member is missing that must be given.
fn complete_rope(rope: &mut Map<String, Json>, theta: &Json, length: &Json) -> bool {
    rope.entry("rope_theta").or_insert_with(|| theta.clone());
    let kind = rope.get("type").cloned().unwrap_or_else(|| json!("default"));
    let kind = rope.entry("rope_type").or_insert(kind).as_str().unwrap_or_default().to_owned();
    if ROPE_WITH_LENGTH.contains(&kind.as_str()) {
        rope.entry(ORIGINAL_LENGTH).or_insert_with(|| length.clone());
    }
    let needed = ROPE_MEMBERS.iter().find(|row| row.0 == kind).map_or(&[][..], |row| row.1);
    needed.iter().all(|member| rope.contains_key(*member))
}

/// `value` of setting `key` as a whole number.
pub(crate) fn whole(key: &str, value: &Json) -> Result<u32> {
    value.as_u64().and_then(|value| u32::try_from(value).ok()).ok_or_else(|| {
        let problem = format!("config.json: {key} is {}, and must be a whole number below 2^32", shown(value));
        Error::inconsistent(problem, REMEDY)
    })
}

/// `value` of setting `key` as a number.
pub(crate) fn number(key: &str, value: &Json) -> Result<f64> {
    let number = value.as_f64().filter(|value| (*value as f32).is_finite());
    number.ok_or_else(|| {
        Error::inconsistent(format!("config.json: {key} is {}, and must be a number", shown(value)), REMEDY)
    })
}

fn shown(value: &Json) -> String {
    escaped(&value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "it is called with literals")]
    fn complete(config: Json) -> Settings {
        Settings::complete(&config).unwrap()
    }

    #[test]
    fn defaults_fill_gaps() {
        let llama = complete(
            json!({"model_type": "llama", "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": null, "rms_norm_eps": 1e-5}),
        );
        assert_eq!(llama.get("num_key_value_heads"), Some(&json!(4)));
        assert_eq!(llama.get("head_dim"), Some(&json!(32)));
        assert_eq!(llama.get("rms_norm_eps"), Some(&json!(1e-5)));
        assert_eq!(complete(json!({"model_type": "qwen2"})).get("head_dim"), None);
        assert_eq!(complete(json!({"model_type": "qwen3"})).get("head_dim"), Some(&json!(128)));
        assert_eq!(complete(json!({"model_type": "mistral"})).get("num_key_value_heads"), Some(&json!(8)));
        assert_eq!(complete(json!({"model_type": "mistral", "layer_types": []})).get("head_dim"), None);
        assert!(Settings::complete(&json!({"model_type": "gpt2"})).unwrap_err().to_string().contains("gpt2"));
        assert!(Settings::complete(&json!([])).is_err());
        assert!(Settings::complete(&json!({"model_type": "llama", "num_attention_heads": "x"})).is_err());
    }

    #[test]
    fn old_and_new_settings_of_the_rotary_embedding_agree() {
        let scaled = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
        let old = complete(
            json!({"model_type": "qwen2", "rope_theta": 5.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
        );
        let mut new = scaled.clone();
        new["rope_theta"] = json!(5.0);
        let new = complete(json!({"model_type": "qwen2", "rope_parameters": new}));
        for key in ["rope_type", "factor", "original_max_position_embeddings", "rope_theta"] {
            assert_eq!(old.rope().get(key), new.rope().get(key), "{key}");
        }
        let plain = complete(json!({"model_type": "llama"}));
        assert_eq!(plain.rope().get("rope_theta"), Some(&json!(10_000.0)));
        assert_eq!(plain.rope().get("rope_type"), Some(&json!("default")));
        let nested =
            complete(json!({"model_type": "qwen2", "rope_parameters": {"full_attention": {"rope_theta": 3.0}}}));
        assert_eq!(nested.rope().get("rope_theta"), Some(&json!(3.0)));
    }

    #[test]
    fn a_refused_configuration_stays_plain() {
        let config = complete(
            json!({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 3, "head_dim": 32, "rope_theta": 7.0}),
        );
        assert_eq!(config.get("rms_norm_eps"), None);
        assert_eq!(config.rope().get("rope_theta"), Some(&json!(7.0)));
        assert_eq!(config.rope().get("rope_type"), None);
    }
}
