//! What llama.cpp computes for a family, where config.json has another setting: settings that GGUF has no key for, or
//! that llama.cpp does not read for the family. One row each. The factor of `YaRN`, which has a key, is in `yarn`.

use serde_json::Value as Json;

use super::family::{Family, Window};
use crate::arch::settings::Settings;
use crate::error::{Error, Result, escaped};

/// A setting: what llama.cpp computes otherwise, if it does, and which texts suffer. `None`: all do, which is refused.
struct Rule {
    differs: fn(&Settings) -> Option<String>,
    suffer: Option<&'static str>,
}

const RULES: [Rule; 4] = [
    Rule { differs: activation, suffer: None },
    Rule { differs: window, suffer: Some("texts of more tokens") },
    Rule { differs: dynamic, suffer: Some("texts longer than the context of training") },
    Rule { differs: yarn, suffer: Some("every text") },
];

/// Names of the one activation that llama.cpp computes for these families.
const SILU: [&str; 2] = ["silu", "swish"];
/// `sliding_window` where config.json has none, in transformers' configuration classes.
const WINDOW: u64 = 4096;
/// `max_window_layers` where config.json has none.
const FULL_LAYERS: u64 = 28;
/// Boundaries of `YaRN`'s bands that llama.cpp takes, whatever the file says, and that transformers takes by default.
const BANDS: [(&str, f64); 2] = [("beta_fast", 32.0), ("beta_slow", 1.0)];

/// Refuses settings with which llama.cpp computes another model; warns where it does so on some texts only.
pub(crate) fn check(family: &Family, settings: &Settings, warnings: &mut Vec<String>) -> Result<()> {
    for rule in &RULES {
        let Some(differs) = (rule.differs)(settings) else { continue };
        let problem = format!("config.json: {differs}, and llama.cpp does not support this for {}", family.name);
        let Some(suffer) = rule.suffer else {
            return Err(Error::unsupported(
                problem,
                "serve the safetensors (which an export without ⟦gguf⟧ writes): a GGUF would be another model",
            ));
        };
        warnings.push(format!("{problem}: it gives other logits for {suffer}"));
    }
    Ok(())
}

fn activation(settings: &Settings) -> Option<String> {
    let name = settings.text("hidden_act").filter(|name| !SILU.contains(name))?;
    Some(format!("the activation (hidden_act) is {}", escaped(name)))
}

/// Layers that attend to the last tokens only, where texts can be longer.
fn window(settings: &Settings) -> Option<String> {
    let number = |key: &str, default| settings.get(key).and_then(Json::as_u64).unwrap_or(default);
    let is_sliding = |kind: &Json| kind.as_str() == Some("sliding_attention");
    let listed = settings.get("layer_types").and_then(Json::as_array).map(|kinds| kinds.iter().any(is_sliding));
    let slides = match settings.class().window {
        Window::Always => listed.unwrap_or(true),
        Window::Switched => {
            let some = number("max_window_layers", FULL_LAYERS) < number("num_hidden_layers", 0);
            settings.is_on("use_sliding_window") && listed.unwrap_or(some)
        }
        Window::Never => false,
    };
    // Null is no window; where nothing is said, there is one.
    let given = settings.get("sliding_window").and_then(Json::as_u64);
    let window = if settings.has("sliding_window") { given } else { Some(WINDOW) };
    let window = window.filter(|window| slides && *window < number("max_position_embeddings", u64::MAX))?;
    Some(format!("a token attends to the last {window} only (sliding_window)"))
}

fn dynamic(settings: &Settings) -> Option<String> {
    let dynamic = settings.rope_type() == Some("dynamic");
    dynamic.then(|| "the rotary embedding has dynamic scaling, which GGUF can't express, so it is left out".to_owned())
}

/// The bands of `YaRN`.
fn yarn(settings: &Settings) -> Option<String> {
    let rope = settings.rope();
    let differs = |(key, default): &(&'static str, f64)| {
        // Zero counts as missing in transformers.
        let value = rope.get(*key).and_then(Json::as_f64).filter(|value| *value != 0.0)?;
        (value.to_bits() != default.to_bits()).then(|| format!("{key} {value}"))
    };
    let mut asked: Vec<String> = BANDS.iter().filter_map(differs).collect();
    if rope.get("truncate") == Some(&Json::Bool(false)) {
        asked.push("truncate false".to_owned());
    }
    let asks = settings.rope_type() == Some("yarn") && !asked.is_empty();
    asks.then(|| format!("YaRN has {}", asked.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::super::llama::LLAMA;
    use super::*;
    use serde_json::json;

    /// Warnings, or the refusal, of a config with these settings.
    #[expect(clippy::needless_pass_by_value, reason = "it is called with literals")]
    fn said(model_type: &str, settings: Json) -> std::result::Result<Vec<String>, String> {
        let mut config = json!({"model_type": model_type, "hidden_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 4, "max_position_embeddings": 512});
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let mut warnings = Vec::new();
        check(&LLAMA, &Settings::complete(&config).unwrap(), &mut warnings).map_err(|e| e.to_string())?;
        Ok(warnings)
    }

    #[test]
    fn another_activation_is_refused() {
        for same in
            [json!({}), json!({"hidden_act": "silu"}), json!({"hidden_act": "swish"}), json!({"hidden_act": null})]
        {
            assert_eq!(said("llama", same), Ok(Vec::new()));
        }
        let refusal = said("llama", json!({"hidden_act": "gelu_pytorch_tanh"})).unwrap_err();
        assert!(refusal.contains("gelu_pytorch_tanh") && refusal.contains("llama") && refusal.contains("remedy"));
    }

    #[test]
    fn windows_are_told_where_transformers_has_them() {
        let window = |model_type: &str, settings| {
            let said = said(model_type, settings).unwrap();
            said.iter().find(|line| line.contains("sliding_window")).cloned()
        };
        assert!(window("mistral", json!({"sliding_window": 64})).unwrap().contains("the last 64 only"));
        assert_eq!(window("mistral", json!({"sliding_window": null})), None);
        assert_eq!(window("mistral", json!({"sliding_window": 512})), None, "no text is longer");
        let long = json!({"max_position_embeddings": 32768});
        assert!(window("mistral", long).unwrap().contains("the last 4096 only"), "transformers' default");
        assert_eq!(window("llama", json!({"sliding_window": 64})), None, "a Llama of transformers has none");
        let mixed = json!({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64});
        assert!(window("mistral", mixed).is_some());
        for qwen in ["qwen2", "qwen3"] {
            let with = |use_it: bool, full: u64| {
                window(qwen, json!({"use_sliding_window": use_it, "sliding_window": 64, "max_window_layers": full}))
            };
            assert!(with(true, 0).is_some() && with(true, 3).is_some());
            assert_eq!((with(false, 0), with(true, 4)), (None, None), "off, and no layer left for it");
            let full = json!({"use_sliding_window": true, "sliding_window": 64, "layer_types": ["full_attention"]});
            assert_eq!(window(qwen, full), None);
        }
    }

    #[test]
    fn bands_that_llama_cpp_does_not_take_are_told() {
        let yarn = |more: Json| {
            let mut rope = json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6});
            rope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            said("llama", json!({"rope_parameters": rope})).unwrap()
        };
        assert_eq!(yarn(json!({})), [""; 0]);
        assert_eq!(yarn(json!({"beta_fast": 32, "beta_slow": 1.0, "truncate": true})), [""; 0]);
        assert!(yarn(json!({"beta_fast": 16, "truncate": false}))[0].contains("beta_fast 16 and truncate false"));
        let dynamic = json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}});
        assert!(said("llama", dynamic).unwrap()[0].contains("dynamic"));
    }
}
