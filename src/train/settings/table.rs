//! The flags that do what ms-swift 4.6's do: one row each, under the heading of the help. What is only accepted or
//! refused is in [`crate::swift`]. Defaults are those of [`super::Settings`].

use crate::swift::{Flag, Kind, TRAIN, also, used};

/// Every flag that does something, by the headings of the help.
pub const GROUPS: [(&str, &[Flag]); 7] = [
    ("Model", &MODEL),
    ("Data", &DATA),
    ("Adapter", &ADAPTER),
    ("Batches and steps", &STEPS),
    ("Optimizer", &OPTIMIZER),
    ("Checkpoints", &CHECKPOINTS),
    ("Monitoring", &WATCHING),
];

/// The flag of this name, or of which it is another name. Dashes are underscores.
pub fn find(name: &str) -> Option<&'static Flag> {
    let name = name.replace('-', "_");
    flags().find(|flag| flag.goes_by(&name))
}

/// Every flag.
pub fn flags() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().map(|(_, flags)| *flags).chain(TRAIN).flatten()
}

const AT_LEAST_ZERO: Kind = Kind::Number("of at least 0", |x| x >= 0.0);
const ABOVE_ZERO: Kind = Kind::Number("above 0", |x| x > 0.0);
const SHARE: Kind = Kind::Number("from 0 to 1", |x| (0.0..=1.0).contains(&x));
const BELOW_ONE: Kind = Kind::Number("from 0 to below 1", |x| (0.0..1.0).contains(&x));
/// Counts may be 0 here, and a share is below 1.
const STEPS_OR_SHARE: Kind = Kind::Number("of steps (or, below 1, a share of all)", |x| {
    (0.0..1.0).contains(&x) || (x >= 1.0 && x.fract() == 0.0)
});
/// Largest sizes that a device counts in u32.
const ANY_COUNT: Kind = Kind::Count(1);

const MODEL: [Flag; 5] = [
    also(
        &["base", "model_id_or_path"],
        used(
            "model",
            Kind::Text,
            "The base: a directory, or a Hub id, which is looked up in the caches and downloaded",
        ),
    ),
    used("model_revision", Kind::Text, "Branch, tag or commit of a Hub id"),
    used("model_type", Kind::Text, "Checked against config.json, which decides"),
    also(
        &["template_type"],
        used("template", Kind::Text, "Checked against config.json; the chat template is the model's own"),
    ),
    also(
        &["dtype"],
        used(
            "torch_dtype",
            Kind::Choice(&["bfloat16", "bf16", "float32", "fp32", "auto"]),
            "Type to compute in: bfloat16 on GPUs, float32 on the processor",
        ),
    ),
];

const DATA: [Flag; 11] = [
    used(
        "dataset",
        Kind::Texts,
        "Files or directories of conversations: JSON, JSONL, Parquet; `data.jsonl#500` takes 500 rows of one",
    ),
    used("val_dataset", Kind::Texts, "Held-out data"),
    also(
        &["dataset_test_ratio"],
        used("split_dataset_ratio", BELOW_ONE, "Share of --dataset that is held out where no --val_dataset is given"),
    ),
    used("max_length", ANY_COUNT, "Maximum number of tokens of a row, and of a pack [default: the model's maximum]"),
    used(
        "truncation_strategy",
        Kind::Choice(&["delete", "left", "right"]),
        "How a longer row is handled: it is dropped, or cut at that end",
    ),
    used(
        "packing",
        Kind::Bool,
        "Fill up to --max_length with several rows; each keeps its own attention and positions",
    ),
    used("system", Kind::Text, "System prompt of rows that have none, or a .txt file of it [default: the template's]"),
    used(
        "loss_scale",
        Kind::Choice(&["default", "last_round", "all"]),
        "Tokens that count in the loss: those of the assistant's turns, of its turns after the last user message, or \
         all",
    ),
    also(
        &["dataset_seed"],
        used("data_seed", Kind::Count(0), "Seed of sampling, of the held-out split and of each epoch's order"),
    ),
    used("strict", Kind::Bool, "Stop at a row that can't be used, instead of leaving it out"),
    used("load_from_cache_file", Kind::Bool, "Cache the tokenized rows; the key is their content"),
];

const ADAPTER: [Flag; 8] = [
    used("lora_rank", ANY_COUNT, "Rank of the factors"),
    used("lora_alpha", ABOVE_ZERO, "The deltas are scaled by alpha / rank"),
    also(&["lora_dropout_p"], used("lora_dropout", BELOW_ONE, "Dropout probability of the adapters' inputs")),
    also(
        &["lora_target_modules"],
        used("target_modules", Kind::Names, "Modules that get factors: names, all-linear, or one regular expression"),
    ),
    also(
        &["lora_target_regex"],
        used("target_regex", Kind::Text, "Modules that get factors, as a regular expression of their whole paths"),
    ),
    used("use_rslora", Kind::Bool, "Scale by alpha / sqrt(rank)"),
    used("use_dora", Kind::Bool, "Train the rows' magnitudes too (DoRA)"),
    also(&["adapter"], used("adapters", Kind::Texts, "Begin with the factors of this adapter")),
];

const STEPS: [Flag; 7] = [
    also(
        &["batch_size"],
        used("per_device_train_batch_size", ANY_COUNT, "Rows (packs, with --packing) of a micro-batch on each device"),
    ),
    also(&["eval_batch_size"], used("per_device_eval_batch_size", ANY_COUNT, "The same for held-out data")),
    used(
        "gradient_accumulation_steps",
        ANY_COUNT,
        "Micro-batches of an optimizer step [default: as many as make 16 rows]",
    ),
    used("num_train_epochs", ABOVE_ZERO, "Passes over the data"),
    used(
        "max_steps",
        Kind::CountOrNone,
        "Number of optimizer steps, which overrides --num_train_epochs; 0 has no effect",
    ),
    used("bf16", Kind::Bool, "Compute in bfloat16 with f32 sums, on GPUs"),
    used("seed", Kind::Count(0), "Seed of the factors and of dropout"),
];

const OPTIMIZER: [Flag; 9] = [
    used("learning_rate", AT_LEAST_ZERO, "Highest learning rate"),
    used("weight_decay", AT_LEAST_ZERO, "Decoupled decay of AdamW"),
    used("adam_beta1", BELOW_ONE, "Decay of the first moments"),
    used("adam_beta2", BELOW_ONE, "Decay of the second moments"),
    used("adam_epsilon", ABOVE_ZERO, "Added to the root of the second moments"),
    used("max_grad_norm", AT_LEAST_ZERO, "Maximum norm of a step's gradient; 0 turns clipping off"),
    used(
        "lr_scheduler_type",
        Kind::Choice(&["cosine", "linear", "constant", "constant_with_warmup"]),
        "Shape of the learning rate after its warm-up",
    ),
    used("warmup_ratio", SHARE, "Share of all steps in which the learning rate rises"),
    used(
        "warmup_steps",
        STEPS_OR_SHARE,
        "Steps in which the learning rate rises, or, below 1, a share of all; overrides --warmup_ratio",
    ),
];

const CHECKPOINTS: [Flag; 10] = [
    also(&["out"], used("output_dir", Kind::Text, "Where runs are kept [default: output/<model>]")),
    used("add_version", Kind::Bool, "Give each run its own directory there, v0-20250820-093000 (UTC)"),
    used("save_strategy", Kind::Choice(&["steps", "epoch", "no"]), "When checkpoints are written"),
    used("save_steps", Kind::Steps, "Steps between checkpoints"),
    used(
        "save_total_limit",
        Kind::CountOrNone,
        "Number of checkpoints to keep: the newest, and the best; 0 keeps all [default: all]",
    ),
    also(
        &["only_save_model"],
        used("save_only_model", Kind::Bool, "Write checkpoints without the optimizer: they can't be resumed"),
    ),
    used(
        "resume_from_checkpoint",
        Kind::PathOrTrue,
        "Resume from this checkpoint; true: from the newest below --output_dir",
    ),
    used("resume_only_model", Kind::Bool, "Take only the factors of that checkpoint"),
    used("ignore_data_skip", Kind::Bool, "Start at the beginning of the data when a run is resumed"),
    used("load_best_model_at_end", Kind::Bool, "Name the best checkpoint as the run's result, and never delete it"),
];

const WATCHING: [Flag; 11] = [
    also(
        &["evaluation_strategy"],
        used(
            "eval_strategy",
            Kind::Choice(&["steps", "epoch", "no"]),
            "When to evaluate on held-out data [default: when checkpoints are written]",
        ),
    ),
    used("eval_steps", Kind::Steps, "Steps between evaluations on held-out data [default: --save_steps]"),
    used("eval_on_start", Kind::Bool, "Evaluate on held-out data before the first step, too"),
    used("metric_for_best_model", Kind::Choice(&["loss", "eval_loss"]), "Metric that chooses the best checkpoint"),
    used("logging_steps", Kind::Steps, "Steps between records of the loss"),
    used("logging_first_step", Kind::Bool, "Record the first step too"),
    used("report_to", Kind::Names, "Beside logging.jsonl: tensorboard, swanlab or none"),
    used("logging_dir", Kind::Text, "Where TensorBoard's event files go [default: <run>/runs]"),
    used("run_name", Kind::Text, "Name of the run [default: its directory]"),
    used("device", Kind::Text, "Where to compute: auto, cpu, cuda, cuda:N or cuda:all"),
    used("use_cpu", Kind::Bool, "The same as --device cpu"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_given_twice() {
        let names: Vec<&str> = flags().flat_map(|flag| flag.aliases.iter().chain([&flag.name])).copied().collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')));
        assert_eq!(find("lora-dropout-p").unwrap().name, "lora_dropout");
    }
}
