//! Release rules: what the loaders of a model look at, one row each. An export is held against them before its first byte
//! is written, and `verify` holds any directory against them. Reads headers and small files only; changes nothing.

mod companions;
mod config;
mod generation;
mod tokenizer;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use crate::checkpoint::TEXT_SECTIONS;
use crate::files::read_text;
use crate::text::TurnEnd;

pub use config::{Head, head_of, labels_of};
pub use generation::turn_end_among;

/// A release as it is planned, or as it lies on disk.
#[derive(Debug, Default)]
pub struct Release<'a> {
    /// Type and shape of every tensor of its safetensors files.
    pub tensors: BTreeMap<&'a str, (Dtype, &'a [usize])>,
    /// Its small files by name.
    pub files: BTreeMap<&'a str, Content<'a>>,
    /// A head that config.json ties to the embedding, but whose values are others.
    pub untied_head: Option<String>,
    /// Whether its tokenizer is an adapter's, in place of the base's.
    pub adapters_tokenizer: bool,
    /// The token that ends the assistant's turn, where the chat template tells.
    pub turn_end: Option<TurnEnd>,
}

/// Where the text of a file is.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// On disk.
    At(&'a Path),
    /// Still to be written.
    Text(&'a str),
}

impl Release<'_> {
    /// The text of a file, if it is there and can be read.
    fn text(&self, name: &str) -> Option<String> {
        match self.files.get(name)? {
            Content::At(path) => read_text(path).ok(),
            Content::Text(text) => Some((*text).to_owned()),
        }
    }

    /// A file of JSON; `None` if there is none that can be read.
    fn json(&self, name: &str) -> Option<Value> {
        serde_json::from_str(&self.text(name)?).ok()
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }
}

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// No loader takes the release, or what it computes is another model.
    Refuse,
    /// Some loaders do not take it, or some texts come out wrong.
    Warn,
}

/// Something that a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name of its rule.
    pub rule: &'static str,
    /// The file that is to be changed.
    pub file: &'static str,
    /// What is wrong, and what comes of it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
    /// How much it weighs.
    pub weight: Weight,
}

impl Finding {
    /// Whether it is about a file that a GGUF file takes nothing from, or about the loaders of the directory alone.
    pub fn is_of_directories(&self) -> bool {
        const RULES: [&str; 6] =
            ["special-tokens", "tokenizer-class", "extra-special-tokens", "sampling", "modules", "code"];
        RULES.contains(&self.rule)
    }
}

/// What a rule says before its name and weight are added: problem and remedy.
type Said = (String, String);

/// A rule.
struct Rule {
    name: &'static str,
    /// The file that it is about.
    file: &'static str,
    weight: Weight,
    check: fn(&Facts<'_>) -> Vec<Said>,
}

/// What several rules read, parsed once.
struct Facts<'r> {
    release: &'r Release<'r>,
    config: Option<Value>,
    tokenizer_config: Option<Value>,
    vocabulary: Option<vocabulary::Vocabulary>,
    /// Rows of the input embedding.
    rows: Option<usize>,
    /// The embedding's name.
    embedding: Option<&'static str>,
}

const fn rule(name: &'static str, file: &'static str, weight: Weight, check: fn(&Facts<'_>) -> Vec<Said>) -> Rule {
    Rule { name, file, weight, check }
}

/// Every rule. What llama.cpp looks at in a GGUF file is in `gguf`.
const RULES: [Rule; 18] = [
    rule("layers", "config.json", Weight::Refuse, config::layers),
    rule("vocabulary", "config.json", Weight::Refuse, config::vocabulary),
    rule("tied", "config.json", Weight::Refuse, config::tied),
    rule("quantization", "config.json", Weight::Refuse, config::quantization),
    rule("head", "config.json", Weight::Refuse, config::head),
    rule("labels", "config.json", Weight::Refuse, config::labels),
    rule("tokenizer", ".", Weight::Warn, tokenizer::present),
    rule("token-ids", "tokenizer.json", Weight::Warn, tokenizer::ids),
    rule("token-texts", "tokenizer.json", Weight::Warn, tokenizer::texts),
    rule("added-tokens", "tokenizer_config.json", Weight::Warn, tokenizer::added),
    rule("special-tokens", "special_tokens_map.json", Weight::Warn, tokenizer::special),
    rule("tokenizer-class", "tokenizer_config.json", Weight::Warn, tokenizer::class),
    rule("extra-special-tokens", "tokenizer_config.json", Weight::Warn, tokenizer::extra),
    rule("sampling", "generation_config.json", Weight::Warn, generation::sampling),
    rule("stop", "generation_config.json", Weight::Warn, generation::stop),
    rule("modules", "modules.json", Weight::Warn, companions::modules),
    rule("code", "config.json", Weight::Warn, companions::code),
    rule("json", ".", Weight::Warn, companions::json),
];

/// Holds `release` against every rule.
pub fn check(release: &Release<'_>) -> Vec<Finding> {
    let has = |name: &str| release.tensors.contains_key(name);
    let embedding = crate::adapter::embedding_among(has);
    let facts = Facts {
        release,
        config: release.json("config.json"),
        tokenizer_config: release.json("tokenizer_config.json"),
        vocabulary: release.text("tokenizer.json").and_then(|text| vocabulary::Vocabulary::parse(&text).ok()),
        rows: embedding.and_then(|name| release.tensors.get(name)?.1.first().copied()),
        embedding,
    };
    let found = |rule: &Rule| {
        let Rule { name, file, weight, .. } = *rule;
        let finding = move |(problem, remedy)| Finding { rule: name, file, problem, remedy, weight };
        (rule.check)(&facts).into_iter().map(finding)
    };
    RULES.iter().flat_map(found).collect()
}

impl Facts<'_> {
    /// A setting of the text model: in the section for it, else at the top.
    fn setting(&self, key: &str) -> Option<&Value> {
        let config = self.config.as_ref()?;
        let section = TEXT_SECTIONS.iter().find_map(|section| config.get(section)?.get(key));
        section.or_else(|| config.get(key)).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> Option<usize> {
        usize::try_from(self.setting(key)?.as_u64()?).ok()
    }

    /// The first model class of config.json.
    fn class(&self) -> Option<&str> {
        self.config.as_ref()?.get("architectures")?.get(0)?.as_str()
    }

    /// Whether the model brings code of its own, whose reading of config.json is unknown.
    fn has_code(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.get("auto_map").is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A whole small model that no rule has a word against.
    const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 4, "num_hidden_layers": 2,
        "tie_word_embeddings": false, "eos_token_id": 1}"#;
    const TOKENIZER: &str =
        r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "</s>"}]}"#;

    fn findings<'a>(change: impl FnOnce(&mut Release<'a>)) -> Vec<(&'static str, Weight)> {
        let mut release = Release::default();
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            release.tensors.insert(name, (Dtype::BF16, &[4, 2]));
        }
        for name in ["model.layers.0.a.weight", "model.layers.1.a.weight"] {
            release.tensors.insert(name, (Dtype::BF16, &[2, 2]));
        }
        release.files.insert("config.json", Content::Text(CONFIG));
        release.files.insert("tokenizer.json", Content::Text(TOKENIZER));
        release.files.insert("tokenizer_config.json", Content::Text(r#"{"eos_token": "</s>"}"#));
        change(&mut release);
        check(&release).into_iter().map(|finding| (finding.rule, finding.weight)).collect()
    }

    #[test]
    fn each_rule_finds_its_fault_and_nothing_else() {
        use Weight::{Refuse, Warn};
        assert_eq!(findings(|_| {}), []);
        let config = |from: &str, to: &str| CONFIG.replace(from, to);
        for (text, rule) in [
            (config("num_hidden_layers\": 2", "num_hidden_layers\": 3"), "layers"),
            (config("vocab_size\": 4", "vocab_size\": 5"), "vocabulary"),
            (
                config("\"eos_token_id\"", "\"quantization_config\": {\"quant_method\": \"fp8\"}, \"eos_token_id\""),
                "quantization",
            ),
        ] {
            let found = findings(|release| _ = release.files.insert("config.json", Content::Text(&text)));
            assert_eq!(found, [(rule, Refuse)], "{text}");
        }
        let found = findings(|release| _ = release.tensors.insert("score.weight", (Dtype::BF16, &[1, 2])));
        assert_eq!(found, [("head", Refuse)]);
        let found = findings(|release| release.untied_head = Some("lm_head.weight".to_owned()));
        assert_eq!(found, [("tied", Refuse)]);
        for (name, text, rule) in [
            ("tokenizer.json", TOKENIZER.replace("2,", "7,"), "token-ids"),
            ("tokenizer.json", TOKENIZER.replace("</s>", "a"), "token-texts"),
            ("tokenizer_config.json", json!({"tokenizer_class": "TokenizersBackend"}).to_string(), "tokenizer-class"),
            ("tokenizer_config.json", json!({"extra_special_tokens": ["x"]}).to_string(), "extra-special-tokens"),
            (
                "tokenizer_config.json",
                json!({"added_tokens_decoder": {"3": {"content": "</s>"}}}).to_string(),
                "added-tokens",
            ),
            ("special_tokens_map.json", json!({"eos_token": {"content": "b"}}).to_string(), "special-tokens"),
            ("generation_config.json", json!({"temperature": 0.5}).to_string(), "sampling"),
            ("modules.json", json!([{"path": "1_Pooling"}]).to_string(), "modules"),
            ("vocab.json", "{".to_owned(), "json"),
            (
                "config.json",
                config("\"eos_token_id\"", "\"auto_map\": {\"AutoModel\": \"modeling_x.X\"}, \"eos_token_id\""),
                "code",
            ),
        ] {
            let found = findings(|release| _ = release.files.insert(name, Content::Text(&text)));
            assert_eq!(found, [(rule, Warn)], "{text}");
        }
        assert_eq!(findings(|release| _ = release.files.remove("tokenizer.json")), [("tokenizer", Warn)]);
    }

    #[test]
    fn the_base_s_tokenizer_is_offered_for_an_adapter_s_only() {
        for (adapters_tokenizer, offered) in [(true, 2), (false, 0)] {
            let ids = TOKENIZER.replace("2,", "7,");
            let files = [
                ("tokenizer.json", Content::Text(ids.as_str())),
                ("tokenizer_config.json", Content::Text(r#"{"tokenizer_class": "TokenizersBackend"}"#)),
            ];
            let tensors = [("model.embed_tokens.weight", (Dtype::BF16, &[4, 2][..]))];
            let release =
                Release { tensors: tensors.into(), files: files.into(), adapters_tokenizer, ..Release::default() };
            let found = check(&release);
            assert_eq!(found.len(), 2);
            let offers = found.iter().filter(|finding| finding.remedy.contains("⟦tokenizer base⟧"));
            assert_eq!(offers.count(), offered);
        }
    }

    #[test]
    fn every_rule_is_in_the_documentation() {
        let page = include_str!("../../docs/formats.md");
        for Rule { name, .. } in RULES {
            assert!(page.contains(&format!("\n| `{name}` | ")), "{name}");
        }
    }

    #[test]
    fn what_the_text_model_s_section_says_counts() {
        let text = r#"{"text_config": {"vocab_size": 4, "num_hidden_layers": 2}, "vocab_size": 9}"#;
        assert_eq!(findings(|release| _ = release.files.insert("config.json", Content::Text(text))), []);
        let code = r#"{"vocab_size": 9, "auto_map": {}}"#;
        assert_eq!(findings(|release| _ = release.files.insert("config.json", Content::Text(code))), []);
    }
}
