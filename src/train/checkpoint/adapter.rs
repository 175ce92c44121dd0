//! The adapter in a checkpoint, as PEFT 0.21 saves one: `adapter_model.safetensors`, `adapter_config.json`, a model
//! card; and reading factors back.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::member;
use super::tensors::{Entry, Source};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig};
use crate::error::{Error, Result, shown};
use crate::train::log::quoted;
use crate::train::lora::Layout;
use crate::train::settings::{Settings, Targets, plain};

/// The PEFT whose form this is.
const PEFT: &str = "0.21.2";
/// The last part of the names of tensors that are trained.
const FACTORS: [&str; 3] = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"];
const OTHER_MODULES: &str = "give the base (⟦model⟧) and the ⟦target_modules⟧ or ⟦target_regex⟧ of its \
                             adapter_config.json, or train from the start";
const NO_FACTORS: &str = "give an adapter that is saved as safetensors, as PEFT does by default, or another checkpoint";

/// The tensors of the adapter by PEFT's names, and where they lie in the parameters.
pub(super) fn entries(layout: &Layout) -> Vec<Entry> {
    let rank = layout.spec.rank;
    let mut entries = Vec::with_capacity(layout.modules.len() * 3);
    for module in &layout.modules {
        let mut push = |ending: &str, shape: Vec<usize>, at: &std::ops::Range<usize>| {
            let name = format!("base_model.model.{}.{ending}", module.name);
            entries.push(Entry { name, shape, at: at.clone() });
        };
        push("lora_A.weight", vec![rank, module.inputs], &module.a);
        push("lora_B.weight", vec![module.outputs, rank], &module.b);
        if let Some(at) = &module.magnitude {
            push("lora_magnitude_vector", vec![module.outputs], at);
        }
    }
    entries
}

/// `adapter_config.json`: every key that `LoraConfig.save_pretrained` writes, sorted.
pub(super) fn config(settings: &Settings, layout: &Layout) -> Result<String> {
    let targets: Value = match settings.targets()? {
        Targets::Pattern(text, _) => text.into(),
        Targets::Names(mut names) => {
            names.sort_unstable();
            names.dedup();
            names.into()
        }
        Targets::All => {
            let mut names: Vec<&str> = layout.modules.iter().filter_map(|m| m.name.rsplit('.').next()).collect();
            names.sort_unstable();
            names.dedup();
            names.into()
        }
    };
    let mut alpha = Value::from(settings.lora_alpha);
    plain(&mut alpha);
    let config = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": {},
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": findable(&settings.model),
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "kasa_config": null,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": false,
        "lora_dropout": settings.lora_dropout,
        "lora_ga_config": null,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": null,
        "monteclora_config": null,
        "peft_type": "LORA",
        "peft_version": PEFT,
        "qalora_group_size": 16,
        "r": layout.spec.rank,
        "rank_pattern": {},
        "revision": settings.model_revision,
        "target_modules": targets,
        "target_parameters": null,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": null,
        "use_bdlora": null,
        "use_dora": layout.spec.magnitudes,
        "use_qalora": false,
        "use_rslora": settings.use_rslora,
        "velora_config": null,
    });
    Ok(format!("{config:#}"))
}

/// A base by a name that holds in every directory: its Hub id, or the whole path of one on disk.
fn findable(model: &str) -> String {
    let path = std::path::absolute(model).ok().filter(|path| path.is_dir());
    path.map_or_else(|| model.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// The model card: PEFT's front matter, and how the adapter was trained.
pub(super) fn card(settings: &Settings, step: u64, best: Option<f64>) -> String {
    let name = &settings.model;
    let plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
    let quoted = |text: &str| if text.chars().all(plain) { text.to_owned() } else { Value::from(text).to_string() };
    let (base, tag) = (quoted(name), quoted(&format!("base_model:adapter:{name}")));
    let mut card = format!(
        "---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- {tag}\n- lora\n\
         - transformers\n---\n\n# Adapter of {}\n\n",
        name.rsplit('/').find(|part| !part.is_empty()).unwrap_or(name).replace(char::is_control, " ")
    );
    let _ = writeln!(
        card,
        "LoRA of rank {}, alpha {}, after {step} optimizer steps of `qft train`; every setting is in args.json.",
        settings.lora_rank, settings.lora_alpha
    );
    if let Some(best) = best {
        let _ = writeln!(card, "Lowest held-out loss so far: {best:.4}.");
    }
    let _ = write!(
        card,
        "\n### Framework versions\n\n- qft {}\n- PEFT {PEFT} (the files' form)\n",
        env!("CARGO_PKG_VERSION")
    );
    card
}

/// The factors (and magnitudes) of the adapter in `dir`, laid out as `layout` says: what `--adapters` and
/// `--resume_only_model` begin with. Their scale must be that of the run, since it is not in the tensors.
pub fn load_factors(dir: &Path, layout: &Layout) -> Result<Vec<f32>> {
    let config_path = member(dir, ADAPTER_CONFIG, NO_FACTORS)?;
    let config = AdapterConfig::read(&config_path)?;
    for module in &layout.modules {
        let (rank, scale) = config.scale(&module.name, 1.0);
        if rank != layout.spec.rank as u64 || scale.to_bits() != layout.spec.scale.to_bits() {
            let problem = format!(
                "the adapter in {} has rank {rank} and scale {scale} for {}, this run rank {} and scale {}",
                shown(dir),
                module.name,
                layout.spec.rank,
                layout.spec.scale
            );
            return Err(Error::invalid(problem, fitting(dir, &config, layout, (rank, scale))));
        }
    }
    if config.use_dora != layout.spec.magnitudes {
        let (its, ours) = (config.use_dora, layout.spec.magnitudes);
        let problem = format!("the adapter in {} has use_dora {its}, this run {ours}", shown(dir));
        return Err(Error::invalid(problem, format!("give ⟦use_dora {}⟧", config.use_dora)));
    }
    let path = member(dir, ADAPTER_WEIGHTS, NO_FACTORS)?;
    let entries = entries(layout);
    let mut values = vec![0.0; layout.len];
    let remedy = |tensor: &str| {
        let is_factor = FACTORS.iter().any(|ending| tensor.ends_with(ending));
        if is_factor { OTHER_MODULES.to_owned() } else { format!("qft trains factors only: {}", merging(dir)) }
    };
    Source::open(&path, &entries, &remedy)?.read(&path, &entries, &mut values)?;
    Ok(values)
}

/// What makes a run fit an adapter that has this rank and scale in a module: flags, if they do so for all modules.
fn fitting(dir: &Path, config: &AdapterConfig, layout: &Layout, (rank, scale): (u64, f32)) -> String {
    let AdapterConfig { lora_alpha, use_rslora, .. } = *config;
    let flags = Settings { lora_rank: rank, lora_alpha, use_rslora, ..Settings::default() }.lora_spec();
    let fits = |(its_rank, its_scale): (u64, f32)| its_rank == rank && its_scale.to_bits() == flags.scale.to_bits();
    if fits((rank, scale)) && layout.modules.iter().all(|module| fits(config.scale(&module.name, 1.0))) {
        return format!("give ⟦lora_rank {rank}⟧ ⟦lora_alpha {lora_alpha}⟧ ⟦use_rslora {use_rslora}⟧");
    }
    format!("give an adapter without rank_pattern and alpha_pattern, or {}", merging(dir))
}

/// How to train on top of an adapter that can't be trained itself.
fn merging(dir: &Path) -> String {
    let dir = quoted(&dir.to_string_lossy());
    format!("merge it into the base with `qft export ⟦merge_lora⟧ ⟦adapter {dir}⟧`, and train on that with ⟦model⟧")
}
