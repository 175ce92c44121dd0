//! `adapter_config.json`: scales, layout, and the kinds of adapter that qft refuses by name.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result, escaped};
use crate::files::read_text;

/// Most bytes of a compiled pattern: names of modules take a few thousand.
const MAX_PATTERN: usize = 1 << 18;

/// The part of PEFT's `LoraConfig` that a merge depends on.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// The rank where no pattern matches.
    pub r: u64,
    /// The alpha where no pattern matches.
    pub lora_alpha: f64,
    /// Scale by `alpha / sqrt(r)` rather than `alpha / r` (<https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// The targets' weights are stored `(in, out)`.
    pub fan_in_fan_out: bool,
    /// DoRA: magnitudes must be there.
    pub use_dora: bool,
    /// `lora_bias`: pairs of linear layers have a bias.
    pub lora_bias: bool,
    /// `target_modules`, where it is a list and no other setting narrows it.
    pub target_modules: Vec<String>,
    /// `base_model_name_or_path`, where it is given.
    pub base_model: Option<String>,
    /// `revision` of the base, where it is given.
    pub revision: Option<String>,
    /// `task_type`, where it is given.
    pub task_type: Option<String>,
    /// `peft_version`, where it is given (0.18 and later).
    pub peft_version: Option<String>,
    /// `modules_to_save`.
    pub modules_to_save: Vec<String>,
    /// `target_parameters`.
    pub target_parameters: Vec<String>,
    /// `trainable_token_indices` by module; an empty name stands for the input embedding.
    pub token_indices: Vec<(String, Vec<u64>)>,
    /// Settings that qft does not know, with a value.
    pub unknown: Vec<String>,
    ranks: Vec<(Regex, u64)>,
    alphas: Vec<(Regex, f64)>,
}

#[derive(Deserialize)]
struct Raw {
    r: u64,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    fan_in_fan_out: Option<bool>,
    #[serde(default)]
    use_dora: Option<bool>,
    #[serde(default)]
    lora_bias: Option<bool>,
    base_model_name_or_path: Option<String>,
    revision: Option<String>,
    peft_version: Option<String>,
    task_type: Option<String>,
    modules_to_save: Option<Vec<String>>,
    target_parameters: Option<Vec<String>>,
    trainable_token_indices: Option<TokenIndices>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIndices {
    Embedding(Vec<u64>),
    Modules(Map<String, Value>),
}

const MERGE: &str =
    "merge it with PEFT's merge_and_unload, then run qft export on the merged model to shard and check it";
const BESIDE: &str = "serve the adapter beside the base with PEFT";

/// Kinds of adapter (`peft_type`) other than LoRA, and what their user can do.
const OTHER_KINDS: [(&[&str], &str); 3] = [
    (
        &[
            "LOHA",
            "LOKR",
            "IA3",
            "VERA",
            "OFT",
            "BOFT",
            "ADALORA",
            "HRA",
            "FOURIERFT",
            "MISS",
            "RANDLORA",
            "ROAD",
            "SHIRA",
            "HIRA",
            "C3A",
            "WAVEFT",
            "DELORA",
            "GRALORA",
            "VBLORA",
            "LN_TUNING",
            "TRAINABLE_TOKENS",
            "TINYLORA",
            "FROD",
            "PVERA",
            "GLORA",
        ],
        MERGE,
    ),
    (
        &[
            "PROMPT_TUNING",
            "MULTITASK_PROMPT_TUNING",
            "P_TUNING",
            "PREFIX_TUNING",
            "ADAPTION_PROMPT",
            "CPT",
            "CARTRIDGE",
        ],
        "its prompts are not weights of the base and can't be merged: serve the adapter beside the base with PEFT",
    ),
    (
        &["LILY", "XLORA", "POLY", "SHADOW"],
        "its effect depends on the input and can't be merged: serve the adapter beside the base with PEFT",
    ),
];

/// Initializations that change the base, so that the adapter's tensors alone don't define the result, and what their user
/// can do. `LoftQ`'s is known to no conversion of PEFT's.
const BASE_MUTATING_INITS: [(&str, &str); 5] = [
    ("pissa", CONVERT),
    ("olora", CONVERT),
    ("corda", CONVERT),
    ("lora_ga", CONVERT),
    (
        "loftq",
        "load it with PEFT on the base that LoftQ made for it, merge it with merge_and_unload, then run qft export on the \
         merged model",
    ),
];
/// Initializations that leave the base alone.
const PLAIN_INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];
const CONVERT: &str = "convert it to an ordinary LoRA with PEFT: save_pretrained(DIR, \
                       path_initial_model_for_weight_conversion=INITIAL_ADAPTER), then export that";

/// Variants by the setting that turns them on, and what their user can do.
const VARIANTS: [(&str, &str, &str); 6] = [
    ("kasa_config", "KaSA, which changes the base", MERGE),
    ("use_qalora", "QALoRA, whose base stays quantized", BESIDE),
    ("use_bdlora", "BD-LoRA (block-diagonal factors)", MERGE),
    ("alora_invocation_tokens", "aLoRA, which acts on some tokens only", BESIDE),
    ("arrow_config", "an Arrow router, which depends on the input", BESIDE),
    ("layer_replication", "layer replication, whose copies share one base layer", "train without layer_replication"),
];

/// Settings that don't matter to a merge, or that are read above.
const KNOWN: [&str; 37] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "monteclora_config",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "alpha_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    "velora_config",
    "lora_variant",
];

impl AdapterConfig {
    /// The base's 16-bit original, if `base_model` names a copy with weights of few bits, as Unsloth's adapters do.
    pub fn unquantized_base(&self) -> Option<&str> {
        const COPIES: [&str; 4] = ["-unsloth-bnb-4bit", "-bnb-4bit", "-bnb-8bit", "-4bit"];
        let named = self.base_model.as_deref()?;
        COPIES.iter().find_map(|ending| named.strip_suffix(ending)).filter(|original| !original.is_empty())
    }

    /// The rank, where all modules have the same.
    pub fn uniform_rank(&self) -> Option<u32> {
        u32::try_from(self.r).ok().filter(|_| self.ranks.is_empty())
    }

    /// The alpha, where all modules have the same.
    pub fn uniform_alpha(&self) -> Option<f32> {
        self.alphas.is_empty().then_some(self.lora_alpha as f32)
    }

    /// Reads and checks the config at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        Self::parse(path, &text)
    }

    /// Takes `text` as the content of `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let bad = |problem: String| Error::malformed(path, problem, "save the adapter again with PEFT");
        let not_read = |Unread { problem, is_pattern }| {
            if !is_pattern {
                return bad(problem);
            }
            let remedy = "replace that pattern by the names of the modules, which has the same meaning in PEFT";
            Error::malformed(path, problem, remedy)
        };
        let all: Map<String, Value> = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        refuse_other_kinds(path, &all)?;
        let raw: Raw = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if raw.r == 0 || !raw.lora_alpha.is_finite() {
            return Err(bad("r must be above zero, and lora_alpha a number".to_owned()));
        }
        let rank = |value: &Value| value.as_u64().filter(|r| *r > 0);
        let alpha = |value: &Value| value.as_f64().filter(|alpha| alpha.is_finite());
        let is_set = |v: &Value| !matches!(v, Value::Null | Value::Bool(false)) && *v != Value::Object(Map::new());
        let known = |key: &str| KNOWN.contains(&key) || VARIANTS.iter().any(|(name, ..)| *name == key);
        Ok(Self {
            r: raw.r,
            lora_alpha: raw.lora_alpha,
            use_rslora: raw.use_rslora.unwrap_or(false),
            fan_in_fan_out: raw.fan_in_fan_out.unwrap_or(false),
            use_dora: raw.use_dora.unwrap_or(false),
            lora_bias: raw.lora_bias.unwrap_or(false),
            target_modules: target_modules(&all),
            base_model: raw.base_model_name_or_path.filter(|name| !name.is_empty()),
            revision: raw.revision,
            peft_version: raw.peft_version,
            task_type: raw.task_type,
            modules_to_save: raw.modules_to_save.unwrap_or_default(),
            target_parameters: raw.target_parameters.unwrap_or_default(),
            token_indices: token_indices(raw.trainable_token_indices).map_err(bad)?,
            unknown: all.iter().filter(|(k, v)| !known(k) && is_set(v)).map(|(k, _)| escaped(k)).collect(),
            ranks: patterns(raw.rank_pattern, rank, "whole number above zero").map_err(not_read)?,
            alphas: patterns(raw.alpha_pattern, alpha, "number").map_err(not_read)?,
        })
    }

    /// Rank and scale of a module: PEFT's `alpha / r`, or `alpha / sqrt(r)`, times the adapter's weight.
    pub fn scale(&self, module: &str, weight: f64) -> (u64, f32) {
        fn of<T: Copy>(patterns: &[(Regex, T)], module: &str, default: T) -> T {
            patterns.iter().find(|(regex, _)| regex.is_match(module)).map_or(default, |(_, value)| *value)
        }
        let r = of(&self.ranks, module, self.r);
        let alpha = of(&self.alphas, module, self.lora_alpha);
        let divisor = if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
        (r, (weight * (alpha / divisor)) as f32)
    }

    /// The rows of `module` that `trainable_token_indices` names.
    pub fn token_rows(&self, module: &str) -> Option<&[u64]> {
        let names = |name: &str| name.is_empty() || module == name || module.ends_with(&format!(".{name}"));
        self.token_indices.iter().find(|(name, _)| names(name)).map(|(_, rows)| rows.as_slice())
    }

    /// Whether `modules_to_save` names `module` or a module that it lies in.
    pub fn saves(&self, module: &str) -> bool {
        // PEFT adds the modules of a task's head without a word in the config.
        const HEADS: [&str; 5] = ["classifier", "score", "pre_classifier", "qa_outputs", "classification_head"];
        let within = |name: &str| format!(".{module}.").contains(&format!(".{name}."));
        let is_task =
            self.task_type.as_deref().is_some_and(|task| ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"].contains(&task));
        self.modules_to_save.iter().any(|name| within(name)) || (is_task && HEADS.iter().any(|name| within(name)))
    }

    /// Whether PEFT of this version takes 3-D parameters as `(experts, in, out)` whatever the module says: before 0.19.
    /// A config without a version is older than 0.18.
    pub fn experts_in_out(&self) -> bool {
        let Some(version) = &self.peft_version else { return true };
        let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
        let mut numbers = version.split('.').map(|part| digits(part).parse::<u64>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (0, 19)
    }
}

fn target_modules(config: &Map<String, Value>) -> Vec<String> {
    let is_set = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
    if is_set("layers_to_transform") || is_set("exclude_modules") {
        return Vec::new();
    }
    let list = config.get("target_modules").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Why a map of patterns can't be used.
struct Unread {
    problem: String,
    /// Whether a pattern of it is beyond qft, though PEFT takes it.
    is_pattern: bool,
}

/// The patterns of a map, in its order, with their values.
fn patterns<T>(
    map: Option<Map<String, Value>>,
    read: impl Fn(&Value) -> Option<T>,
    expected: &str,
) -> Result<Vec<(Regex, T)>, Unread> {
    let one = |(pattern, value): (String, Value)| {
        let problem = || format!("pattern {}: {value} is not a {expected}", escaped(&pattern));
        let value = read(&value).ok_or_else(|| Unread { problem: problem(), is_pattern: false })?;
        Ok((compile(&pattern)?, value))
    };
    map.unwrap_or_default().into_iter().map(one).collect()
}

/// PEFT's `get_pattern_key`: `re.match(rf"(.*\.)?({pattern})$", path)`.
fn compile(pattern: &str) -> Result<Regex, Unread> {
    let whole = format!(r"^(.*\.)?({pattern})$");
    RegexBuilder::new(&whole).size_limit(MAX_PATTERN).build().map_err(|e| {
        let why = match e {
            regex::Error::CompiledTooBig(_) => "too large",
            _ => "not understood (look-around is not supported)",
        };
        Unread { problem: format!("pattern {}: {why}", escaped(pattern)), is_pattern: true }
    })
}

fn token_indices(raw: Option<TokenIndices>) -> Result<Vec<(String, Vec<u64>)>, String> {
    match raw {
        None => Ok(Vec::new()),
        Some(TokenIndices::Embedding(rows)) => Ok(vec![(String::new(), rows)]),
        Some(TokenIndices::Modules(map)) => map
            .into_iter()
            .map(|(module, rows)| {
                serde_json::from_value(rows)
                    .map(|rows| (module, rows))
                    .map_err(|e| format!("trainable_token_indices: {e}"))
            })
            .collect(),
    }
}

fn refuse_other_kinds(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let refuse = |what: String, remedy: &str| {
        Err(Error::unsupported(format!("{}: {what} can't be merged by qft", crate::error::shown(path)), remedy))
    };
    let kind = match config.get("peft_type") {
        None | Some(Value::Null) => "LORA",
        Some(kind) => kind.as_str().unwrap_or("(no text)"),
    };
    if kind != "LORA" {
        let row = OTHER_KINDS.iter().find(|(kinds, _)| kinds.contains(&kind));
        return refuse(format!("an adapter of kind {}", escaped(kind)), row.map_or(OTHER_KINDS[0].1, |(_, r)| r));
    }
    if let Some(init) = config.get("init_lora_weights").and_then(Value::as_str) {
        let lower = init.to_ascii_lowercase();
        if let Some((_, remedy)) = BASE_MUTATING_INITS.iter().find(|(name, _)| lower.starts_with(name)) {
            return refuse(format!("init_lora_weights {}, which changes the base,", escaped(init)), remedy);
        }
        if !PLAIN_INITS.contains(&lower.as_str()) {
            return refuse(
                format!("the unknown init_lora_weights {}", escaped(init)),
                &format!("update qft; or {MERGE}"),
            );
        }
    }
    for (key, what, remedy) in VARIANTS {
        if config.get(key).is_some_and(|v| !matches!(v, Value::Null | Value::Bool(false))) {
            return refuse(format!("{what} ({key}),"), remedy);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<AdapterConfig> {
        let comma = if extra.is_empty() { "" } else { "," };
        let text = format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":32{comma}{extra}}}"#);
        AdapterConfig::parse(Path::new("adapter_config.json"), &text)
    }

    #[test]
    fn scale_by_rank_pattern_and_rslora() {
        assert_eq!(parse("").unwrap().scale("a.q_proj", 1.0), (8, 4.0));
        assert_eq!(parse("").unwrap().scale("a.q_proj", 0.5), (8, 2.0));
        assert_eq!(
            parse(r#""use_rslora":true"#).unwrap().scale("q", 1.0).1.to_bits(),
            ((32.0 / 8f64.sqrt()) as f32).to_bits()
        );
        let config =
            parse(r#""rank_pattern":{"^model.a.q_proj":2,"q_proj":4},"alpha_pattern":{"layers\\.[01]\\.k":8,"k":1}"#)
                .unwrap();
        assert_eq!(config.scale("model.a.q_proj", 1.0), (2, 16.0), "^ is the start of the whole path");
        assert_eq!(config.scale("x.model.a.q_proj", 1.0), (4, 8.0));
        assert_eq!(config.scale("m.layers.1.k", 1.0), (8, 1.0), "the first pattern that matches wins");
        assert_eq!(config.scale("m.layers.2.k", 1.0), (8, 0.125));
        assert_eq!(config.scale("m.xq_proj", 1.0), (8, 4.0), "a pattern matches whole names only");
    }

    #[test]
    fn refuses_by_name_with_a_remedy() {
        for (extra, name) in [
            (r#""init_lora_weights":"pissa_niter_4""#, "pissa_niter_4"),
            (r#""init_lora_weights":"olora""#, "olora"),
            (r#""init_lora_weights":"loftq""#, "loftq"),
            (r#""init_lora_weights":"brandnew""#, "brandnew"),
            (r#""kasa_config":{"a":1}"#, "KaSA"),
            (r#""alora_invocation_tokens":[1]"#, "aLoRA"),
            (r#""layer_replication":[[0,1]]"#, "layer replication"),
            (r#""rank_pattern":{"(?=x)":1}"#, "look-around"),
            (r#""rank_pattern":{"x":0.5}"#, "whole number"),
        ] {
            let said = parse(extra).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains("remedy:"), "{said}");
        }
        for (extra, way) in [
            (r#""init_lora_weights":"pissa""#, "path_initial_model_for_weight_conversion"),
            (r#""init_lora_weights":"loftq""#, "merge_and_unload"),
            (r#""init_lora_weights":"brandnew""#, "update qft"),
            (r#""use_qalora":true"#, "serve the adapter beside"),
            (r#""rank_pattern":{"(?=x)":1}"#, "the names of the modules"),
            (r#""rank_pattern":{"x":0.5}"#, "save the adapter again"),
        ] {
            let said = parse(extra).unwrap_err().to_string();
            assert!(said.contains(way), "{said}");
        }
        for kind in ["LOHA", "LOKR", "IA3", "VERA", "OFT", "PROMPT_TUNING", "XLORA", "NEWKIND"] {
            let said = AdapterConfig::parse(Path::new("c"), &format!(r#"{{"peft_type":"{kind}"}}"#)).unwrap_err();
            assert!(said.to_string().contains(kind), "{said}");
        }
        assert!(parse(r#""init_lora_weights":"gaussian""#).is_ok());
    }

    #[test]
    fn knows_the_original_of_a_quantized_copy() {
        let original = |name: &str| {
            let config = parse(&format!(r#""base_model_name_or_path":"{name}""#)).unwrap();
            config.unquantized_base().map(str::to_owned)
        };
        assert_eq!(
            original("unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit").as_deref(),
            Some("unsloth/Qwen2.5-7B-Instruct")
        );
        assert_eq!(original("unsloth/llama-3-8b-bnb-4bit").as_deref(), Some("unsloth/llama-3-8b"));
        assert_eq!(original("Qwen/Qwen2.5-7B-Instruct"), None);
    }

    #[test]
    fn token_rows_by_list_and_by_module() {
        let list = parse(r#""trainable_token_indices":[3,1]"#).unwrap();
        assert_eq!(list.token_rows("model.embed_tokens"), Some(&[3, 1][..]));
        let dict = parse(r#""trainable_token_indices":{"lm_head":[5]}"#).unwrap();
        assert_eq!((dict.token_rows("lm_head"), dict.token_rows("model.embed_tokens")), (Some(&[5][..]), None));
    }

    #[test]
    fn knows_the_expert_layout_of_each_version() {
        for (version, in_out) in
            [("0.18.1", true), ("0.19.0", false), ("0.19rc1", false), ("0.21.2", false), ("1.0.0", false)]
        {
            assert_eq!(parse(&format!(r#""peft_version":"{version}""#)).unwrap().experts_in_out(), in_out, "{version}");
        }
        assert!(parse("").unwrap().experts_in_out());
        assert_eq!(parse(r#""use_telepathy":true,"use_magic":false"#).unwrap().unknown, ["use_telepathy"]);
    }
}
