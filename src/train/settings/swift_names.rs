//! The tables against the names that ms-swift has, which `fixtures/make_swift_flags.py` lists.

use std::collections::BTreeSet;

use super::flags;
use crate::swift::{EXPORT, Fate, Flag};

/// A line a flag: its name, the commands that have it, its type, its default.
const LIST: &str = include_str!("../../../fixtures/swift/flags-4.6.0.tsv");

/// Names that ms-swift 2.6 and 3.12 had, and transformers 4, whose Trainer lent ms-swift's its flags.
const OLDER: &[&str] = &[
    "train_type",
    "sft_type",
    "model_id_or_path",
    "template_type",
    "dtype",
    "dataset_seed",
    "dataset_test_ratio",
    "batch_size",
    "eval_batch_size",
    "only_save_model",
    "evaluation_strategy",
    "lora_target_modules",
    "lora_target_regex",
    "lora_dropout_p",
    "lora_modules_to_save",
    "lora_lr_ratio",
    "init_lora_weights",
    "additional_trainable_parameters",
    "min_lr",
    "loss_name",
    "tools_prompt",
    "preprocess_num_proc",
    "quantization_bit",
    "bnb_4bit_comp_dtype",
    "use_flash_attn",
    "use_liger",
    "check_model_is_latest",
    "device_map_config",
    "device_max_memory",
    "merge_device_map",
    "neftune_alpha",
    "push_hub_strategy",
    "do_sample",
    "vllm_enable_lora",
    "mcore_adapters",
    "save_safetensors",
    "group_by_length",
    "neftune_noise_alpha",
    "load_in_4bit",
    "load_in_8bit",
    "context_parallel_size",
    "expert_parallel_size",
    "local_rank",
];

/// Names that are qft's own.
const OWN: &[&str] = &["base", "adapter", "out", "device"];

fn listed() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = LIST.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let mut cells = line.split('\t');
        (cells.next().unwrap(), cells.next().unwrap())
    })
}

fn exports() -> impl Iterator<Item = &'static Flag> {
    EXPORT.into_iter().flatten()
}

#[test]
fn every_flag_of_ms_swift_is_known_to_the_training() {
    let unknown: Vec<&str> = listed().map(|(name, _)| name).filter(|name| !flags().any(|f| f.goes_by(name))).collect();
    assert_eq!(unknown, [] as [&str; 0]);
    assert!(listed().filter(|(_, commands)| commands.split(',').any(|command| command == "sft")).count() > 330);
}

#[test]
fn every_row_has_a_name_of_ms_swift_or_is_qft_s_own() {
    let known: BTreeSet<&str> = listed().map(|(name, _)| name).chain(OLDER.iter().chain(OWN).copied()).collect();
    let names = flags().chain(exports()).flat_map(|flag| flag.aliases.iter().chain([&flag.name]));
    let invented: Vec<&&str> = names.filter(|name| !known.contains(*name)).collect();
    assert_eq!(invented, [] as [&&str; 0]);
    let taken: BTreeSet<&str> =
        flags().chain(exports()).flat_map(|f| f.aliases.iter().chain([&f.name])).copied().collect();
    let idle: Vec<&&str> = OLDER.iter().chain(OWN).filter(|name| !taken.contains(*name)).collect();
    assert_eq!(idle, [] as [&&str; 0], "a name here that no row has");
}

#[test]
fn every_row_says_what_to_do_or_why_there_is_nothing_to_do() {
    for flag in flags().chain(exports()) {
        match flag.fate {
            Fate::Used => {}
            Fate::Noted { why, .. } => assert!(why.len() > 15 && !why.ends_with('.'), "{}: {why}", flag.name),
            Fate::Only { remedy, .. } => {
                assert!(remedy.len() > 15 && !remedy.ends_with('.'), "{}: {remedy}", flag.name);
            }
        }
    }
}
