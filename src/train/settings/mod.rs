//! What a run was asked to do: ms-swift 4.6's flags with their names, meanings and defaults, from the command line, a
//! TOML file or args.json. `table` has a row for each flag that does something; what follows from the values is in
//! `resolve`.

mod choice;
mod given;
mod resolve;
#[cfg(test)]
mod swift_names;
mod table;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use choice::{Metric, Strategy, TorchDtype};
pub use given::Given;
pub use resolve::{Compute, Targets, When, every};
pub use table::{GROUPS, find, flags};

use crate::error::{Error, Result};
use crate::gpu::Device;
pub use crate::swift::{Fate, Flag, Kind};
use crate::train::data::{LossScale, Truncation};
use crate::train::schedule::ScheduleKind;

/// A field for each flag that does something; the help of a flag is in [`GROUPS`]. The defaults are ms-swift 4.6's
/// (`swift/arguments` and `swift/trainers/arguments.py`) and, beneath them, transformers' `TrainingArguments`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "a field means what its row in the table says")]
pub struct Settings {
    pub model: String,
    pub model_revision: Option<String>,
    pub model_type: Option<String>,
    pub template: Option<String>,
    pub torch_dtype: Option<TorchDtype>,

    pub dataset: Vec<String>,
    pub val_dataset: Vec<String>,
    pub split_dataset_ratio: f64,
    pub max_length: Option<u64>,
    pub truncation_strategy: Truncation,
    pub packing: bool,
    pub system: Option<String>,
    pub loss_scale: LossScale,
    pub data_seed: u64,
    pub strict: bool,
    pub load_from_cache_file: bool,

    pub lora_rank: u64,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub target_modules: Vec<String>,
    pub target_regex: Option<String>,
    pub use_rslora: bool,
    pub use_dora: bool,
    pub adapters: Vec<String>,

    pub per_device_train_batch_size: u64,
    pub per_device_eval_batch_size: u64,
    pub gradient_accumulation_steps: Option<u64>,
    pub num_train_epochs: f64,
    pub max_steps: Option<u64>,
    pub bf16: Option<bool>,
    pub seed: u64,

    pub learning_rate: f64,
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub max_grad_norm: f64,
    pub lr_scheduler_type: ScheduleKind,
    pub warmup_ratio: f64,
    pub warmup_steps: f64,

    pub output_dir: Option<PathBuf>,
    pub add_version: bool,
    pub save_strategy: Strategy,
    pub save_steps: f64,
    pub save_total_limit: Option<u64>,
    pub save_only_model: bool,
    pub resume_from_checkpoint: Option<String>,
    pub resume_only_model: bool,
    pub ignore_data_skip: bool,
    pub load_best_model_at_end: bool,

    pub eval_strategy: Option<Strategy>,
    pub eval_steps: Option<f64>,
    pub eval_on_start: bool,
    pub metric_for_best_model: Metric,
    pub logging_steps: f64,
    pub logging_first_step: bool,
    pub report_to: Vec<String>,
    pub logging_dir: Option<PathBuf>,
    pub run_name: Option<String>,
    pub device: String,
    pub use_cpu: bool,

    /// Flags that were given and change nothing, for args.json.
    #[serde(skip)]
    pub others: Map<String, Value>,
    /// What the plan found out about the base, for args.json, where it stands instead of what was given.
    #[serde(skip)]
    pub found: Map<String, Value>,
    /// What the user should know about what was given.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: String::new(),
            model_revision: None,
            model_type: None,
            template: None,
            torch_dtype: None,
            dataset: Vec::new(),
            val_dataset: Vec::new(),
            split_dataset_ratio: 0.0,
            max_length: None,
            truncation_strategy: Truncation::Delete,
            packing: false,
            system: None,
            loss_scale: LossScale::Default,
            data_seed: 42,
            strict: false,
            // ms-swift: false, since its cache can be stale. qft's is found by its content.
            load_from_cache_file: true,
            lora_rank: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.05,
            target_modules: vec!["all-linear".to_owned()],
            target_regex: None,
            use_rslora: false,
            use_dora: false,
            adapters: Vec::new(),
            per_device_train_batch_size: 1,
            per_device_eval_batch_size: 1,
            gradient_accumulation_steps: None,
            num_train_epochs: 3.0,
            max_steps: None,
            bf16: None,
            seed: 42,
            learning_rate: 1e-4,
            weight_decay: 0.1,
            adam_beta1: 0.9,
            adam_beta2: 0.95,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: ScheduleKind::Cosine,
            warmup_ratio: 0.0,
            warmup_steps: 0.0,
            output_dir: None,
            add_version: true,
            save_strategy: Strategy::Steps,
            save_steps: 500.0,
            save_total_limit: None,
            save_only_model: false,
            resume_from_checkpoint: None,
            resume_only_model: false,
            ignore_data_skip: false,
            load_best_model_at_end: false,
            eval_strategy: None,
            eval_steps: None,
            eval_on_start: false,
            metric_for_best_model: Metric::Loss,
            logging_steps: 5.0,
            logging_first_step: true,
            report_to: vec!["tensorboard".to_owned()],
            logging_dir: None,
            run_name: None,
            device: "auto".to_owned(),
            use_cpu: false,
            others: Map::new(),
            found: Map::new(),
            notes: Vec::new(),
        }
    }
}

/// What args.json says beside the settings, for readers that know ms-swift's.
const CONSTANTS: [(&str, &str); 5] = [
    ("train_type", "lora"),
    ("tuner_type", "lora"),
    ("tuner_backend", "peft"),
    ("task_type", "causal_lm"),
    // The version whose form it has: ms-swift takes model_type from no older one.
    ("swift_version", "4.6.0"),
];

impl Settings {
    /// Every setting by its name: what args.json holds, as ms-swift writes it.
    pub fn args_json(&self) -> Map<String, Value> {
        let mut args = match serde_json::to_value(self) {
            Ok(Value::Object(args)) => args,
            // A struct of texts and finite numbers is an object.
            _ => Map::new(),
        };
        args.values_mut().for_each(plain);
        args.extend(self.others.clone());
        args.extend(self.found.clone());
        args.extend(CONSTANTS.map(|(key, value)| (key.to_owned(), value.into())));
        args.insert("qft_version".to_owned(), env!("CARGO_PKG_VERSION").into());
        args
    }

    /// The settings in args.json, whoever wrote it: keys that are no fields are left out.
    pub fn from_args_json(args: &Map<String, Value>) -> Result<Self> {
        let mut given = Given::default();
        for (key, value) in args.iter().filter(|(_, value)| !value.is_null()) {
            if let Some(flag) = find(key).filter(|flag| matches!(flag.fate, Fate::Used) && flag.name == *key) {
                // ms-swift writes lists that are empty, and -1 for none.
                if value.as_array().is_none_or(|list| !list.is_empty()) {
                    given.set(flag, value)?;
                }
            }
        }
        given.fields()
    }

    /// Refuses what its flag would not take. A number that is not finite has no form in JSON, and is null there.
    fn check_values(&self) -> Result<()> {
        let [fields, defaults] = [self, &Self::default()].map(serde_json::to_value);
        let (Ok(fields), Ok(defaults)) = (fields, defaults) else { return Ok(()) };
        for flag in flags().filter(|flag| matches!(flag.fate, Fate::Used)) {
            let value = &fields[flag.name];
            if value.is_null() && !defaults[flag.name].is_null() {
                let problem = format!("⟦{}⟧ is no finite number", flag.name);
                return Err(Error::invalid(problem, format!("give {}", flag.kind.expected())));
            }
            let is_none = value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty);
            if !is_none {
                flag.take(value)?;
            }
        }
        Ok(())
    }

    /// Adds a note, if it is not there yet.
    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Checks each setting by its row in the table, and all of them against each other; notes what is changed by others.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) for a value out of its range, settings that contradict each
    /// other, or no base or no data.
    pub fn checked(mut self) -> Result<Self> {
        self.check_values()?;
        let refuse = |problem: &str, remedy: &str| Err(Error::invalid(problem, remedy));
        if self.model.is_empty() {
            return refuse("no base is named", "name a directory or a Hub id with ⟦model⟧");
        }
        if self.dataset.is_empty() {
            return refuse("no data is named", "name a file of conversations with ⟦dataset⟧");
        }
        if self.use_cpu && self.device()? != Device::Cpu {
            if self.device()? != Device::Auto {
                return refuse("⟦use_cpu⟧, but ⟦device⟧ names a GPU", "leave one of them out");
            }
            "cpu".clone_into(&mut self.device);
        }
        self.device()?;
        let resumes = self.resume_from_checkpoint.is_some();
        if self.resume_only_model && !resumes {
            return refuse("⟦resume_only_model⟧ without a checkpoint", "name one with ⟦resume_from_checkpoint⟧");
        }
        if resumes && !self.adapters.is_empty() {
            return refuse(
                "⟦adapters⟧ and ⟦resume_from_checkpoint⟧ both name the source of the factors",
                "leave one of them out",
            );
        }
        if self.adapters.len() > 1 {
            return refuse("training can begin with one adapter only", "name one with ⟦adapters⟧");
        }
        if !self.val_dataset.is_empty() && self.split_dataset_ratio > 0.0 {
            self.split_dataset_ratio = 0.0;
            self.note("split_dataset_ratio: ⟦val_dataset⟧ is the held-out data, so nothing is split off".to_owned());
        }
        if self.eval_strategy == Some(Strategy::No) && self.split_dataset_ratio > 0.0 {
            self.split_dataset_ratio = 0.0;
            self.note(
                "split_dataset_ratio: ⟦eval_strategy no⟧ makes no evaluation, so no held-out data is split off"
                    .to_owned(),
            );
        }
        if self.load_best_model_at_end && self.eval_strategy.unwrap_or(self.save_strategy) == Strategy::No {
            return refuse(
                "⟦load_best_model_at_end⟧ requires an evaluation on held-out data to find the best checkpoint",
                "give ⟦eval_strategy steps⟧, or epoch, and the held-out data",
            );
        }
        if self.load_best_model_at_end && !self.has_held_out() {
            return refuse(
                "⟦load_best_model_at_end⟧ requires held-out data to find the best checkpoint",
                "add ⟦split_dataset_ratio 0.01⟧, or ⟦val_dataset⟧",
            );
        }
        if self.eval_on_start && !self.has_held_out() && self.eval_strategy == Some(Strategy::No) {
            return refuse(
                "⟦eval_on_start⟧ requires held-out data, and ⟦eval_strategy no⟧ splits none off",
                "drop ⟦eval_on_start⟧, or give ⟦eval_strategy steps⟧, or epoch, and the held-out data",
            );
        }
        if self.eval_on_start && !self.has_held_out() {
            return refuse(
                "⟦eval_on_start⟧ requires held-out data",
                "add ⟦split_dataset_ratio 0.01⟧, or ⟦val_dataset⟧",
            );
        }
        if self.target_modules.iter().any(|name| name == "all-linear") && self.target_modules.len() > 1 {
            return refuse("⟦target_modules⟧ names all-linear together with other names", "leave one of them out");
        }
        if self.save_only_model {
            self.note("save_only_model: checkpoints will lack the optimizer, and can't be resumed".to_owned());
        }
        Ok(self)
    }
}

/// Whole numbers as such: 32 rather than 32.0.
pub(crate) fn plain(value: &mut Value) {
    if let Some(number) = value.as_f64().filter(|n| value.is_f64() && n.fract() == 0.0 && n.abs() < 1e15) {
        *value = Value::from(number as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_used_flag_is_a_field_and_every_field_a_flag() {
        let fields = serde_json::to_value(Settings::default()).unwrap();
        let mut fields: Vec<String> = fields.as_object().unwrap().keys().cloned().collect();
        let mut used: Vec<String> =
            flags().filter(|flag| matches!(flag.fate, Fate::Used)).map(|flag| flag.name.to_owned()).collect();
        fields.sort();
        used.sort();
        assert_eq!(fields, used);
    }

    #[test]
    fn every_default_is_what_its_flag_takes() {
        let fields = serde_json::to_value(Settings::default()).unwrap();
        for flag in flags().filter(|flag| matches!(flag.fate, Fate::Used)) {
            let default = &fields[flag.name];
            let none = default.is_null() || default.as_array().is_some_and(Vec::is_empty) || default == "";
            let mut default = default.clone();
            let mut taken = flag.kind.take(&default).unwrap_or_default();
            [&mut default, &mut taken].into_iter().for_each(plain);
            assert!(none || taken == default, "{} {default}", flag.name);
        }
    }

    #[test]
    fn args_json_holds_every_setting_and_reads_back() {
        let settings = Settings {
            model: "org/a".to_owned(),
            dataset: vec!["a,b.jsonl#5".to_owned(), "c".to_owned()],
            lora_alpha: 16.5,
            max_steps: Some(30),
            save_steps: 0.1,
            target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            ..Settings::default()
        };
        let args = settings.args_json();
        assert_eq!((&args["lora_rank"], &args["num_train_epochs"]), (&8.into(), &3.into()));
        assert_eq!((&args["tuner_type"], &args["lora_alpha"]), (&"lora".into(), &16.5.into()));
        let text = serde_json::to_string(&args).unwrap();
        assert_eq!(Settings::from_args_json(&serde_json::from_str(&text).unwrap()).unwrap(), settings);
        let theirs = serde_json::json!({"model": "m", "max_steps": -1, "val_dataset": [], "unheard_of": {"a": 1},
            "warmup_steps": 0, "system": null, "lora_alpha": 16, "fp16": true});
        let settings = Settings::from_args_json(theirs.as_object().unwrap()).unwrap();
        assert_eq!((settings.model.as_str(), settings.lora_alpha, settings.max_steps), ("m", 16.0, None));
    }
}
