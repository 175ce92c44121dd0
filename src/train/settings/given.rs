//! What was given, before defaults: by name, from a TOML file or the command line, one laid over the other.

use std::path::Path;

use serde_json::{Map, Value};

use super::Settings;
use super::table::{find, flags};
use crate::error::{Error, Result, escaped};
use crate::files::read_text;
use crate::spelling::edits;
use crate::swift::{Fate, Flag, SECRETS};

/// Values that were given, in their one form, by the flag's name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    values: Map<String, Value>,
}

impl Given {
    /// Takes `value` for `flag`, instead of one that it had.
    pub fn set(&mut self, flag: &Flag, value: &Value) -> Result<()> {
        self.values.insert(flag.name.to_owned(), flag.take(value)?);
        Ok(())
    }

    /// The content of a TOML file: keys are the flags' names.
    pub fn read_toml(path: &Path) -> Result<Self> {
        Self::parse_toml(path, &read_text(path)?)
    }

    /// Takes `text` as the content of `path`.
    pub fn parse_toml(path: &Path, text: &str) -> Result<Self> {
        let bad = |problem: String| {
            Error::malformed(path, problem, "correct the file; its keys are the flags of `qft train ⟦help⟧`")
        };
        let table: toml::Table = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            bad(format!("line {line} is not TOML: {}", escaped(e.message())))
        })?;
        let mut given = Self::default();
        for (key, value) in table {
            let Some(flag) = find(&key) else {
                let nearest = nearest(&key).map_or(String::new(), |name| format!("; is it {name}?"));
                return Err(bad(format!("there is no setting {}{nearest}", escaped(&key))));
            };
            if given.values.contains_key(flag.name) {
                return Err(bad(format!("{} is given twice, under different names", flag.name)));
            }
            let value = serde_json::to_value(value).map_err(|e| bad(e.to_string()))?;
            given.set(flag, &value).map_err(|error| match error {
                Error::Failed { problem, .. } => bad(problem),
                other => other,
            })?;
        }
        Ok(given)
    }

    /// These values, and those of `below` that are not among them.
    #[must_use]
    pub fn over(self, mut below: Self) -> Self {
        below.values.extend(self.values);
        below
    }

    /// The settings: defaults where nothing was given. What qft doesn't do is refused, what changes nothing is noted.
    pub fn settings(self) -> Result<Settings> {
        let mut notes = Vec::new();
        for flag in flags() {
            if let Some(value) = self.values.get(flag.name) {
                notes.extend(flag.verdict(value)?);
            }
        }
        let mut settings = self.fields()?;
        settings.notes = notes;
        settings.checked()
    }

    /// The fields alone, unchecked.
    pub(super) fn fields(self) -> Result<Settings> {
        let used = |name: &str| find(name).is_some_and(|flag| matches!(flag.fate, Fate::Used));
        let (fields, others): (Map<_, _>, Map<_, _>) = self.values.into_iter().partition(|(name, _)| used(name));
        // What is null takes the default, which is none wherever a kind gives null.
        let fields: Map<String, Value> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let mut settings: Settings = serde_json::from_value(Value::Object(fields))
            .map_err(|e| Error::invalid(escaped(&e.to_string()), "give values as `qft train ⟦help⟧` shows them"))?;
        settings.others = others.into_iter().filter(|(name, _)| !SECRETS.contains(&name.as_str())).collect();
        Ok(settings)
    }
}

/// The flag whose name is like `key`, if one is.
fn nearest(key: &str) -> Option<&'static str> {
    let key: String = key.chars().take(64).collect::<String>().to_ascii_lowercase().replace('-', "_");
    let names = flags().flat_map(|flag| flag.aliases.iter().chain([&flag.name]).map(|alias| (*alias, flag.name)));
    let (distance, name) = names.map(|(alias, name)| (edits(&key, alias), name)).min()?;
    (distance <= key.len().div_ceil(3)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> Result<Given> {
        Given::parse_toml(Path::new("recipe.toml"), text)
    }

    fn settings(text: &str) -> Result<Settings> {
        toml(&format!("model = \"m\"\ndataset = \"d.jsonl\"\n{text}"))?.settings()
    }

    #[test]
    fn a_file_takes_the_forms_of_toml_and_those_of_flags() {
        let a = settings("lora_rank = 16\nlora-alpha = \"32\"\ntarget_modules = \"q_proj,v_proj\"\npacking = true")
            .unwrap();
        let b = settings(
            "lora_rank = \"16\"\nlora_alpha = 32\ntarget_modules = [\"q_proj\", \"v_proj\"]\npacking = \"true\"",
        );
        assert_eq!(a, b.unwrap());
        assert_eq!((a.lora_rank, a.target_modules.len(), a.packing), (16, 2, true));
        assert_eq!(a.dataset, ["d.jsonl"]);
    }

    #[test]
    fn the_command_line_wins() {
        let mut line = Given::default();
        line.set(find("lora_rank").unwrap(), &"4".into()).unwrap();
        line.set(find("dataset").unwrap(), &vec!["other"].into()).unwrap();
        let file = toml("model = \"m\"\ndataset = [\"a\", \"b\"]\nlora_rank = 64\nlora_alpha = 128").unwrap();
        let settings = line.over(file).settings().unwrap();
        assert_eq!((settings.lora_rank, settings.lora_alpha), (4, 128.0));
        assert_eq!(settings.dataset, ["other"]);
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_name() {
        let error = |text: &str| settings(text).unwrap_err().to_string();
        assert!(error("lora_rnk = 8").contains("is it lora_rank?"));
        assert!(error("learning-rat = 8").contains("is it learning_rate?"));
        assert!(error("lora_dropout_q = 8").contains("is it lora_dropout?"));
        let far = error("zzzzzzzzzzzz = 8");
        assert!(far.contains("no setting zzzzzzzzzzzz") && !far.contains("is it"), "{far}");
        assert!(error("lora_rank = 8\nlora-rank = 8").contains("twice"));
        assert!(error("lora_rank = \"many\"").contains("recipe.toml"));
        assert!(error("lora_rank = 1979-05-27").contains("whole number"));
        assert!(error("[lora]\nrank = 8").contains("lora"));
        assert!(error("\"a\\u001b[2J\" = 1").contains("\\u{1b}"));
        assert!(error("lora_rank = ").contains("recipe.toml"));
    }

    #[test]
    fn idle_flags_are_noted_and_unsupported_ones_refused() {
        let a = settings("attn_impl = \"flash_attn\"\ngradient_checkpointing = true\nlazy_tokenize = true").unwrap();
        assert_eq!(a.notes.len(), 2, "{:?}", a.notes);
        assert!(a.notes[0].contains("attn_impl flash_attn has no effect: attention is always tiled"));
        assert_eq!(a.args_json()["attn_impl"], "flash_attn");
        let secret = settings("hub_token = \"hf_abc\"").unwrap();
        assert!(!secret.notes.join("").contains("hf_abc") && !secret.args_json().contains_key("hub_token"));
        let error = |text: &str| settings(text).unwrap_err().to_string();
        assert!(error("train_type = \"full\"").contains("qft trains LoRA"));
        assert!(error("tuner_type = \"adalora\"").contains("train_type adalora"));
        assert!(error("deepspeed = \"zero3\"").contains("nothing to shard"));
        assert!(error("neftune_noise_alpha = 5").contains("lora_dropout"));
        assert!(error("fp16 = true").contains("bf16"));
        for harmless in [
            "train_type = \"lora\"",
            "fp16 = false",
            "deepspeed = \"none\"",
            "neftune_noise_alpha = 0",
            "lora_bias = \"none\"",
            "modules_to_save = []",
        ] {
            assert_eq!(settings(harmless).unwrap().notes, Vec::<String>::new(), "{harmless}");
        }
    }

    #[test]
    fn contradictions_are_refused_or_noted() {
        let error = |text: &str| settings(text).unwrap_err().to_string();
        assert!(error("resume_only_model = true").contains("⟦resume_from_checkpoint"));
        assert!(error("load_best_model_at_end = true").contains("held-out"));
        assert!(error("adapters = \"a\"\nresume_from_checkpoint = true").contains("leave one"));
        assert!(error("target_modules = \"all-linear,q_proj\"").contains("leave one"));
        assert!(error("device = \"tpu\"").contains("cuda:N"));
        let both = settings("val_dataset = \"v\"\nsplit_dataset_ratio = 0.1").unwrap();
        assert_eq!((both.split_dataset_ratio, both.notes.len()), (0.0, 1));
        assert!(toml("model = \"m\"").unwrap().settings().unwrap_err().to_string().contains("⟦dataset"));
        assert!(toml("dataset = \"m\"").unwrap().settings().unwrap_err().to_string().contains("⟦model"));
    }
}
