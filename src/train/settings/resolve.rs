//! What follows from settings: directories, counts of steps, the modules that are adapted, and whether the model is
//! what it was said to be.

use std::path::{Path, PathBuf};

use regex::{Regex, RegexBuilder};

use super::{Settings, Strategy, TorchDtype};
use crate::error::{Error, Result, escaped};
use crate::files::read_text;
use crate::gpu::Device;
use crate::swift::kind::is_pattern;
use crate::train::lora::LoraSpec;

/// Rows of an optimizer step that ms-swift aims at.
const ROWS_OF_A_STEP: u64 = 16;
/// Most bytes of a compiled pattern.
const MAX_PATTERN: usize = 1 << 18;

/// The `model_type` of config.json by the names that ms-swift has for models of it, and for their templates.
const FAMILIES: [(&str, &[&str]); 2] = [
    ("qwen2", &["qwen", "qwen2", "qwen2_5", "qwen2_5_math", "qwen2_5_coder", "chatml"]),
    ("llama", &["llama", "llama2", "llama3", "llama3_1", "llama3_2", "llama3_3", "smollm2", "chatml"]),
];

/// A type to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// bf16 with sums in f32.
    Bf16,
    /// f32.
    F32,
}

/// When something is done that is not done at every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// Not at all.
    Never,
    /// At the end of each epoch.
    Epoch,
    /// Every so many steps, or, below 1, at every such share of all steps.
    Steps(f64),
}

impl When {
    fn new(strategy: Strategy, steps: f64) -> Self {
        match strategy {
            Strategy::No => Self::Never,
            Strategy::Epoch => Self::Epoch,
            Strategy::Steps => Self::Steps(steps),
        }
    }

    /// Whether it is done after step `step` (from 1) of `total`. The end of the run is the caller's to add.
    pub fn falls_on(self, step: u64, total: u64, ends_epoch: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Epoch => ends_epoch,
            Self::Steps(steps) => step.is_multiple_of(every(steps, total)),
        }
    }
}

/// Whole steps between two events: `steps`, or, below 1, that share of `total`, rounded up, as the HF Trainer does.
#[expect(clippy::cast_sign_loss, reason = "settings hold numbers above zero here")]
pub fn every(steps: f64, total: u64) -> u64 {
    let steps = if steps < 1.0 { (steps * total as f64).ceil() } else { steps };
    (steps as u64).max(1)
}

/// Which linear modules of the layers get factors.
#[derive(Debug, Clone)]
pub enum Targets {
    /// All of them.
    All,
    /// Those with one of these names.
    Names(Vec<String>),
    /// Those whose whole path this matches.
    Pattern(String, Regex),
}

impl Targets {
    /// Whether the module at `path` gets factors: `model.layers.0.self_attn.q_proj`. PEFT's rule.
    pub fn adapt(&self, path: &str) -> bool {
        let named =
            |name: &String| path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(named),
            Self::Pattern(_, regex) => regex.is_match(path),
        }
    }

    /// Refuses if a name, or the pattern, adapts none of the modules at `paths`.
    pub fn check<'p>(&self, paths: impl Iterator<Item = &'p str> + Clone) -> Result<()> {
        let idle = match self {
            Self::All => None,
            Self::Names(names) => {
                let finds = |name: &String| paths.clone().any(|path| Self::Names(vec![name.clone()]).adapt(path));
                names.iter().find(|name| !finds(name))
            }
            Self::Pattern(text, _) => Some(text).filter(|_| !paths.clone().any(|path| self.adapt(path))),
        };
        let Some(idle) = idle else { return Ok(()) };
        let path = paths.clone().next().unwrap_or_default();
        let mut known: Vec<&str> = paths.filter_map(|path| path.rsplit('.').next()).collect();
        known.sort_unstable();
        known.dedup();
        let (idle, known) = (escaped(idle), escaped(&known.join(",")));
        Err(match self {
            Self::Pattern(..) => Error::invalid(
                format!("the expression {idle} matches no linear layer that qft trains"),
                format!(
                    "correct it: it must match a whole path, such as {path}; or drop it, and choose among {known} with \
                     ⟦target_modules⟧"
                ),
            ),
            _ => Error::invalid(
                format!("⟦target_modules {idle}⟧: no linear layer that qft trains has that name"),
                format!("choose among {known}, or all-linear"),
            ),
        })
    }
}

impl Settings {
    /// Where to compute.
    pub fn device(&self) -> Result<Device> {
        let refuse =
            |what: String| Error::invalid(format!("⟦device {}⟧: there is no such device", escaped(&self.device)), what);
        self.device.parse().map_err(refuse)
    }

    /// The type that was asked for; `None` leaves it to the device.
    pub fn compute(&self) -> Option<Compute> {
        match (self.bf16, self.torch_dtype) {
            (Some(true), _) | (_, Some(TorchDtype::Bfloat16)) => Some(Compute::Bf16),
            (_, Some(TorchDtype::Float32)) | (Some(false), _) => Some(Compute::F32),
            _ => None,
        }
    }

    /// Micro-batches of an optimizer step on each of `world` ranks.
    pub fn accumulation(&self, world: u64) -> u64 {
        let rows = self.per_device_train_batch_size.saturating_mul(world).max(1);
        self.gradient_accumulation_steps.unwrap_or_else(|| ROWS_OF_A_STEP.div_ceil(rows))
    }

    /// Rows of an optimizer step on all ranks.
    pub fn rows_of_a_step(&self, world: u64, accumulation: u64) -> u64 {
        self.per_device_train_batch_size.saturating_mul(world).saturating_mul(accumulation)
    }

    /// Whether there is held-out data.
    pub fn has_held_out(&self) -> bool {
        !self.val_dataset.is_empty() || self.split_dataset_ratio > 0.0
    }

    /// When checkpoints are written.
    pub fn save_strategy(&self) -> When {
        When::new(self.save_strategy, self.save_steps)
    }

    /// When held-out data is looked at; never if there is none.
    pub fn eval_strategy(&self) -> When {
        let strategy = self.eval_strategy.unwrap_or(self.save_strategy);
        let strategy = if self.has_held_out() { strategy } else { Strategy::No };
        When::new(strategy, self.eval_steps.unwrap_or(self.save_steps))
    }

    /// When the loss is recorded.
    pub fn logs_at(&self, step: u64, total: u64) -> bool {
        (self.logging_first_step && step == 1) || When::Steps(self.logging_steps).falls_on(step, total, false)
    }

    /// What the factors share.
    pub fn lora_spec(&self) -> LoraSpec {
        let rank = self.lora_rank as f64;
        let scale = (self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32;
        LoraSpec { rank: self.lora_rank as usize, scale, magnitudes: self.use_dora }
    }

    /// Which modules get factors: `--target_regex`, one regular expression, names, or all.
    pub fn targets(&self) -> Result<Targets> {
        let pattern = match (&self.target_regex, &self.target_modules[..]) {
            (Some(pattern), _) => Some(pattern),
            (None, [one]) if is_pattern(one) => Some(one),
            (None, names) => {
                if let Some(bad) = names.iter().find(|name| is_pattern(name)) {
                    let problem =
                        format!("⟦target_modules {}⟧: a regular expression can't be combined with names", escaped(bad));
                    return Err(Error::invalid(problem, "give one expression of all modules, or names"));
                }
                None
            }
        };
        let Some(pattern) = pattern else {
            let all = self.target_modules.iter().any(|name| name == "all-linear");
            return Ok(if all { Targets::All } else { Targets::Names(self.target_modules.clone()) });
        };
        let whole = format!("^(?:{pattern})$");
        let regex = RegexBuilder::new(&whole).size_limit(MAX_PATTERN).build().map_err(|_| {
            Error::invalid(
                format!("the expression {} for the modules to adapt is not valid", escaped(pattern)),
                "correct it (look-around is not supported), or drop it, and give names with ⟦target_modules⟧",
            )
        })?;
        Ok(Targets::Pattern(pattern.clone(), regex))
    }

    /// The system prompt: the text, with `\n` for a new line, or the content of the .txt file that it names.
    pub fn system_prompt(&self) -> Result<Option<String>> {
        match &self.system {
            Some(file) if Path::new(file).extension().is_some_and(|e| e == "txt") => {
                read_text(Path::new(file)).map(Some)
            }
            text => Ok(text.as_ref().map(|text| text.replace("\\n", "\n"))),
        }
    }

    /// The base as [`crate::checkpoint::Locator::model`] takes it.
    pub fn model_spec(&self) -> String {
        let at = self.model_revision.as_ref().filter(|_| !Path::new(&self.model).exists());
        at.map_or_else(|| self.model.clone(), |revision| format!("{}@{revision}", self.model))
    }

    /// The base's own name, without its owner or directory.
    pub fn model_name(&self) -> String {
        let parts: Vec<&str> = self.model.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".").collect();
        // In a Hub cache the repository's name is above its snapshots: models--Qwen--Qwen2.5-7B/snapshots/<commit>.
        let name = match &parts[..] {
            [.., repo, "snapshots", _] => repo.rsplit("--").next().unwrap_or(repo),
            [.., name] if *name != ".." => name,
            _ => "model",
        };
        name.split('@').next().filter(|name| !name.is_empty()).unwrap_or("model").to_owned()
    }

    /// Where runs are kept.
    pub fn output_dir(&self) -> PathBuf {
        self.output_dir.clone().unwrap_or_else(|| Path::new("output").join(self.model_name()))
    }

    /// Refuses if `--model_type` names another family than config.json does; notes a `--template` that does.
    pub fn agree(&self, model_type: &str) -> Result<Vec<String>> {
        let family = FAMILIES.iter().find(|(family, _)| *family == model_type).map_or(&[][..], |(_, names)| names);
        let fits = |name: &String| name == model_type || family.contains(&name.as_str());
        if let Some(named) = self.model_type.as_ref().filter(|named| !fits(named)) {
            return Err(Error::invalid(
                format!("⟦model_type {}⟧, but config.json says {}", escaped(named), escaped(model_type)),
                "drop the flag, or name the intended model with ⟦model⟧",
            ));
        }
        let other = self.template.as_ref().filter(|template| !fits(template));
        Ok(other
            .map(|name| format!("template {} has no effect: the chat template is the model's own", escaped(name)))
            .into_iter()
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_sixteen_rows_unless_told() {
        let accumulation = |batch, world, told| {
            let settings = Settings {
                per_device_train_batch_size: batch,
                gradient_accumulation_steps: told,
                ..Settings::default()
            };
            settings.accumulation(world)
        };
        assert_eq!((accumulation(1, 1, None), accumulation(3, 2, None), accumulation(8, 4, None)), (16, 3, 1));
        assert_eq!(accumulation(8, 1, Some(4)), 4);
        let huge = Settings { per_device_train_batch_size: u64::MAX, ..Settings::default() };
        assert_eq!((huge.rows_of_a_step(2, 3), huge.accumulation(2)), (u64::MAX, 1));
    }

    #[test]
    fn shares_of_steps_are_rounded_up() {
        assert_eq!((every(200.0, 1000), every(0.1, 95), every(0.001, 10)), (200, 10, 1));
        assert!(When::Steps(0.5).falls_on(5, 10, false) && !When::Steps(0.5).falls_on(4, 10, true));
        assert!(When::Epoch.falls_on(3, 10, true) && !When::Never.falls_on(3, 10, true));
        let settings = Settings::default();
        assert!(settings.logs_at(1, 100) && !settings.logs_at(2, 100) && settings.logs_at(5, 100));
    }

    #[test]
    fn held_out_data_is_looked_at_when_checkpoints_are_written() {
        let mut settings = Settings { save_steps: 200.0, ..Settings::default() };
        assert_eq!(settings.eval_strategy(), When::Never);
        settings.split_dataset_ratio = 0.01;
        assert_eq!(settings.eval_strategy(), When::Steps(200.0));
        settings.eval_steps = Some(50.0);
        assert_eq!(settings.eval_strategy(), When::Steps(50.0));
        settings.eval_strategy = Some(Strategy::Epoch);
        assert_eq!(settings.eval_strategy(), When::Epoch);
    }

    #[test]
    fn targets_follow_peft() {
        let targets = |names: &[&str]| {
            let target_modules = names.iter().map(|name| (*name).to_owned()).collect();
            Settings { target_modules, ..Settings::default() }.targets()
        };
        let q = "model.layers.1.self_attn.q_proj";
        let paths = [q, "model.layers.1.mlp.up_proj"];
        assert!(targets(&["q_proj"]).unwrap().adapt(q) && !targets(&["proj"]).unwrap().adapt(q));
        assert!(targets(&["self_attn.q_proj"]).unwrap().adapt(q) && targets(&["all-linear"]).unwrap().adapt(q));
        assert!(targets(&[r".*layers\.[01]\..*q_proj"]).unwrap().adapt(q));
        assert!(!targets(&[r"layers\.1\..*"]).unwrap().adapt(q), "the whole path must match");
        assert!(targets(&["q_proj", ".*"]).is_err() && targets(&["(("]).is_err());
        let idle = targets(&["q_proj", "w1"]).unwrap().check(paths.into_iter()).unwrap_err().to_string();
        assert!(idle.contains("w1") && idle.contains("q_proj,up_proj"), "{idle}");
        assert!(targets(&["up_proj"]).unwrap().check(paths.into_iter()).is_ok());
        let idle = targets(&[r".*\.w1"]).unwrap().check(paths.into_iter()).unwrap_err().to_string();
        assert!(idle.contains(q) && idle.contains("drop it"), "it may be ⟦target_regex: {idle}");
    }

    #[test]
    fn runs_are_kept_by_the_base_s_name() {
        let out = |model: &str| Settings { model: model.to_owned(), ..Settings::default() }.output_dir();
        assert_eq!(out("Qwen/Qwen2.5-7B-Instruct"), Path::new("output/Qwen2.5-7B-Instruct"));
        assert_eq!(out("./models/a/"), Path::new("output/a"));
        assert_eq!(out("/c/models--Qwen--Qwen2.5-7B/snapshots/0a1b"), Path::new("output/Qwen2.5-7B"));
        assert_eq!(out("org/a@main"), Path::new("output/a"));
        assert_eq!(out(".."), Path::new("output/model"));
    }

    #[test]
    fn the_family_must_be_that_of_the_config() {
        let settings = |kind: &str, template: &str| Settings {
            model_type: Some(kind.to_owned()),
            template: Some(template.to_owned()),
            ..Settings::default()
        };
        assert_eq!(settings("qwen2_5", "qwen2_5").agree("qwen2").unwrap().len(), 0);
        assert_eq!(settings("qwen2_5", "llama3").agree("qwen2").unwrap().len(), 1);
        assert!(settings("llama3", "qwen2_5").agree("qwen2").unwrap_err().to_string().contains("qwen2"));
    }

    #[test]
    fn the_scale_is_alpha_over_rank() {
        let mut settings = Settings { lora_rank: 16, lora_alpha: 32.0, ..Settings::default() };
        assert_eq!((settings.lora_spec().scale, settings.compute()), (2.0, None));
        settings.use_rslora = true;
        settings.bf16 = Some(true);
        assert_eq!((settings.lora_spec().scale, settings.compute()), (8.0, Some(Compute::Bf16)));
    }

    #[test]
    fn a_system_prompt_may_lie_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.txt");
        std::fs::write(&file, "be kind").unwrap();
        let prompt = |text: &str| Settings { system: Some(text.to_owned()), ..Settings::default() }.system_prompt();
        assert_eq!(prompt(file.to_str().unwrap()).unwrap().unwrap(), "be kind");
        assert_eq!(prompt(r"a\nb").unwrap().unwrap(), "a\nb");
        assert!(prompt("none.txt").is_err());
    }
}
