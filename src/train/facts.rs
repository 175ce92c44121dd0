//! Facts about a base for users of its checkpoints: the token at which a turn ends, and what ms-swift
//! calls its type and its template. It goes into args.json.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::data::{SwiftTemplate, swift_template};
use super::settings::Settings;
use crate::checkpoint::ConfigText;
use crate::error::{Result, escaped};
use crate::text::{TurnEnd, stops, turn_end};

/// Facts of a base.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// For args.json.
    pub(super) args: Map<String, Value>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

impl Facts {
    /// Those of the base in `dir`, whose config.json says `model_type`.
    pub(super) fn new(dir: &Path, model_type: &str, settings: &Settings) -> Result<Self> {
        let mut facts = Self::default();
        // ms-swift calls these families by the same names, and has no other names for them.
        facts.args.insert("model_type".to_owned(), model_type.into());
        if let Some(SwiftTemplate { name, system }) = swift_template(dir)? {
            facts.args.insert("template".to_owned(), name.into());
            if let Some(system) = system.filter(|_| settings.system.is_none()) {
                facts.args.insert("system".to_owned(), system.into());
            }
        }
        if let Some(end) = turn_end(dir)? {
            facts.args.insert("turn_end_token_ids".to_owned(), json!([end.id]));
            facts.notes.extend(unstopped(dir, &end)?);
        }
        Ok(facts)
    }
}

/// A note if a server would go on after the end of a turn.
fn unstopped(dir: &Path, end: &TurnEnd) -> Result<Option<String>> {
    let read = |name: &str| Ok(ConfigText::read(&dir.join(name))?.and_then(|config| config.get(&[])));
    let (generation, config): (Option<Value>, _) = (read("generation_config.json")?, read("config.json")?);
    let found = stops(generation.as_ref(), config.as_ref()).filter(|(_, ids)| !ids.contains(&u64::from(end.id)));
    Ok(found.map(|(name, ids)| {
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        format!(
            "the chat template ends a turn with {} ({}), but {name} stops at {}: a server must stop there, too; an \
             export adds the token, and args.json of each checkpoint has it (turn_end_token_ids)",
            escaped(&end.token),
            end.id,
            ids.join(", ")
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_at_which_nothing_stops_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        put("tokenizer_config.json", json!({"chat_template": template}));
        let tokens = json!([{"id": 5, "content": "<|endoftext|>"}, {"id": 7, "content": "<|im_end|>"}]);
        put("tokenizer.json", json!({"added_tokens": tokens}));
        let facts = |settings: &Settings| Facts::new(dir.path(), "qwen2", settings).unwrap();
        let plain = facts(&Settings::default());
        let expected = json!({"model_type": "qwen2", "template": "chatml", "turn_end_token_ids": [7]});
        assert_eq!((Value::Object(plain.args), plain.notes), (expected, Vec::new()), "nothing says where to stop");
        put("config.json", json!({"eos_token_id": 7}));
        assert_eq!(facts(&Settings::default()).notes.len(), 0);
        put("generation_config.json", json!({"eos_token_id": 5}));
        let notes = facts(&Settings::default()).notes;
        assert!(notes[0].contains("<|im_end|> (7), but generation_config.json stops at 5"), "{notes:?}");
        put("generation_config.json", json!({"eos_token_id": [5, 7]}));
        assert_eq!(facts(&Settings::default()).notes.len(), 0);
    }
}
