//! What training and the making of GGUF files refuse, and what they print at the end, taken at its word: the remedy is
//! in the message, and a command that follows it ends well.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::train::{printed, rows, run_of};
use crate::train_resume::{signal, start, wait_for_lines};
use crate::workbench::{Bench, Said, said};

/// Two steps of a tiny model. A flag that is given again wins.
const TRAIN: &str = "train --model base --dataset data.jsonl --device cpu --max_steps 2 \
                     --gradient_accumulation_steps 1 --lora_rank 4 --learning_rate 1e-2";

fn bench(family: &str) -> Bench {
    let bench = Bench::new();
    bench.trainee("base", family);
    bench.write("data.jsonl", rows(24));
    bench
}

/// Runs `begin` with `bad`, which is refused with `remedy`, and with `good`, as the remedy says.
fn mended(bench: &Bench, begin: &str, bad: &str, remedy: &str, good: &str) -> Said {
    let refused = bench.refuses(&format!("{begin} {bad}"), &[]);
    let (_, told) = refused.err.split_once("remedy: ").unwrap_or_else(|| panic!("no remedy: {}", refused.err));
    assert!(told.contains(remedy), "{begin} {bad}: {remedy} is not in {}", refused.err);
    bench.ok(&format!("{begin} {good}"))
}

/// Changes members of a JSON file; null takes one away.
fn edit(bench: &Bench, file: &str, changes: Value) {
    let mut content = bench.json(file);
    for (key, value) in changes.as_object().unwrap() {
        content[key] = value.clone();
    }
    content.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    bench.write(file, content.to_string());
}

/// What to do next, by a run's report.
fn next(said: &Said) -> String {
    let line = said.out.lines().find_map(|line| line.strip_prefix("next ")).unwrap_or_else(|| panic!("{}", said.out));
    line.trim().to_owned()
}

#[test]
fn a_setting_that_does_not_go_alone_names_what_goes_with_it() {
    let bench = bench("qwen2");
    let split = "--split_dataset_ratio 0.1";
    let begin = format!("{TRAIN} --output_dir out");
    for (bad, remedy, good) in [
        ("--packing", "--max_length 3072", "--packing --max_length 3072"),
        (
            "--load_best_model_at_end",
            "--split_dataset_ratio 0.01",
            "--load_best_model_at_end --split_dataset_ratio 0.01",
        ),
        (
            &format!("--load_best_model_at_end --eval_strategy no {split}"),
            "--eval_strategy steps",
            &format!("--load_best_model_at_end --eval_strategy steps {split}"),
        ),
        (
            &format!("--eval_on_start --eval_strategy no {split}"),
            "--eval_strategy steps",
            &format!("--eval_on_start --eval_strategy steps {split}"),
        ),
        ("--max_length 8", "--truncation_strategy left", "--max_length 8 --truncation_strategy left"),
        (
            "--max_length 20 --truncation_strategy right",
            "--truncation_strategy left",
            "--max_length 20 --truncation_strategy left",
        ),
        ("--target_regex nothing", "with --target_modules", "--target_modules q_proj"),
        ("--target_modules lm_head", "all-linear", "--target_modules all-linear"),
        ("--report_to wandb", "--report_to tensorboard", "--report_to tensorboard"),
        ("--max_epochs 1", "--num_train_epochs", "--num_train_epochs 1"),
        ("--fp16 true", "--bf16 true", "--bf16 true"),
        ("--max_model_len 128", "--max_length", "--max_length 128"),
    ] {
        mended(&bench, &begin, bad, remedy, good);
    }
    edit(&bench, "base/config.json", json!({"use_sliding_window": true, "sliding_window": 16}));
    mended(&bench, &begin, "", "--max_length 16", "--max_length 16 --truncation_strategy left");
}

#[test]
fn the_last_line_merges_the_run_that_it_ends() {
    let bench = bench("qwen2");
    let first = next(&bench.ok(TRAIN));
    assert_eq!(first, "qft export --merge-lora --max-shard 2GB", "it is the newest below ./output");
    // Not below ./output, where the first run is what a bare command would merge.
    let second = next(&bench.ok(&format!("{TRAIN} --output_dir other/x")));
    for (command, output) in [(second, "other/x"), (first, "output/base")] {
        let merged = bench.path(run_of(&bench, output).join("checkpoint-2-merged"));
        assert!(!merged.exists(), "{}", merged.display());
        bench.ok(command.strip_prefix("qft ").unwrap());
        assert!(merged.join("model.safetensors").is_file(), "{command} merged another run");
    }
}

#[test]
fn the_last_line_of_an_interrupted_run_goes_on() {
    let bench = bench("qwen2");
    bench.ok(&format!("{TRAIN} --output_dir first --add_version false"));
    let (adapters, factors) =
        ("--adapters first/checkpoint-2", "--resume_from_checkpoint first --resume_only_model true");
    for (nth, (beginning, kept, dropped)) in [
        (adapters, "", " without --adapters,"),
        (factors, "", " without --resume_only_model,"),
        ("--save_only_model true", "--save_only_model true", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let line = format!("{TRAIN} --logging_steps 1 --output_dir out{nth}");
        let mut child = start(&bench, &format!("{line} {beginning} --max_steps 5000"));
        assert!(wait_for_lines(&bench, &mut child, &format!("out{nth}"), 2), "the run ended before it was interrupted");
        signal(&child, "-INT");
        let ended = said(child.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(130), "{}{}", ended.out, ended.err);
        let told = next(&ended);
        let flags = told.strip_prefix(&format!("the same command{dropped} with ")).unwrap_or_else(|| panic!("{told}"));
        let flags = flags.split(", ").next().unwrap();
        let step: u64 = flags.split("checkpoint-").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        // No more than a step of it.
        let resumed = bench.ok(&format!("{line} {kept} {flags} --max_steps {}", step + 1));
        let goes_on = resumed.err.contains(&format!("from step {step}"));
        assert_eq!(goes_on, kept.is_empty(), "{flags}: {}", resumed.err);
    }
}

#[test]
fn a_checkpoint_that_does_not_fit_names_the_flag() {
    let bench = bench("qwen2");
    bench.ok(&format!("{TRAIN} --max_length 128 --output_dir out"));
    let checkpoint = run_of(&bench, "out").join("checkpoint-2");
    let resume = format!("--max_steps 3 --resume_from_checkpoint {}", checkpoint.display());
    let begin = format!("{TRAIN} --max_length 128 --output_dir out {resume}");
    for (bad, remedy) in [("--lora_alpha 16", "--lora_alpha 32"), ("--use_dora true", "--use_dora false")] {
        mended(&bench, &begin, bad, remedy, remedy);
    }
    for (bad, remedy) in [
        ("--packing true", "--ignore_data_skip true"),
        ("--truncation_strategy left", "--ignore_data_skip true"),
        ("--max_length 100", "--ignore_data_skip true"),
        // It begins a newer run.
        ("--seed 7", "--resume_only_model true"),
    ] {
        mended(&bench, &begin, bad, remedy, &format!("{bad} {remedy}"));
    }

    let regex = "--target_regex .*q_proj";
    bench.ok(&format!("{TRAIN} --output_dir one --add_version false {regex}"));
    let again = format!("{TRAIN} --output_dir one --add_version false --max_steps 3");
    mended(&bench, &again, regex, "--resume_from_checkpoint true", &format!("{regex} --resume_from_checkpoint true"));
    let resume = format!("{again} --resume_from_checkpoint true");
    mended(&bench, &resume, "--target_modules all-linear", "--target_regex", regex);
    for file in ["qft_state.json", "optimizer.safetensors"] {
        fs::remove_file(bench.path(Path::new("one/checkpoint-3").join(file))).unwrap();
        let begin = format!("{TRAIN} --resume_from_checkpoint one {regex}");
        mended(&bench, &begin, "", "--resume_only_model true", "--resume_only_model true");
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_made_to_or_merged() {
    let bench = bench("qwen2");
    bench.ok(&format!("{TRAIN} --lora_alpha 12 --use_rslora true --output_dir ad --add_version false"));
    let begin = format!("{TRAIN} --output_dir out --adapters ad/checkpoint-2");
    let flags = "--lora_rank 4 --lora_alpha 12 --use_rslora true";
    mended(&bench, &begin, "--lora_rank 8", flags, flags);

    // No flags fit it: each module has a scale of its own.
    edit(&bench, "ad/checkpoint-2/adapter_config.json", json!({"alpha_pattern": {"q_proj": 16}}));
    let refused = bench.refuses(&format!("{begin} {flags}"), &["alpha_pattern", "`qft export --merge-lora", "--model"]);
    assert!(!refused.err.contains("--lora_alpha"), "{}", refused.err);
    bench.ok(refused.err.split('`').nth(1).unwrap().strip_prefix("qft ").unwrap());
    bench.ok(&format!("{TRAIN} --output_dir out --model ad/checkpoint-2-merged"));

    let modules = "--target_modules q_proj,v_proj";
    bench.ok(&format!("{TRAIN} --output_dir qv --add_version false {modules}"));
    let begin = format!("{TRAIN} --output_dir out --adapters qv/checkpoint-2");
    mended(&bench, &begin, "", "--target_modules", modules);
}

#[test]
fn a_base_of_another_form_is_brought_into_one_that_trains() {
    let bench = bench("qwen2");
    let loss = |line: &str| printed(&bench.ok(&format!("{line} --json")))["train_loss"].clone();
    let train = format!("{TRAIN} --output_dir out");
    edit(&bench, "base/config.json", json!({"rope_theta": 1e6}));
    let plain = loss(&train);
    // As transformers 5 writes it.
    let rope = |kind: &str| {
        let parameters = json!({"rope_type": kind, "factor": 2.0, "rope_theta": 1e6});
        json!({"rope_theta": null, "rope_parameters": parameters})
    };
    edit(&bench, "base/config.json", rope("yarn"));
    bench.refuses(&train, &["yarn", "set rope_type in rope_parameters to \"default\""]);
    edit(&bench, "base/config.json", rope("default"));
    assert_eq!(loss(&train), plain, "the base of the rotary embedding stays");

    let mut tensors = bench.model("base");
    let norm = tensors["model.norm.weight"].clone();
    let wide = norm.2.chunks(2).map(|b| f64::from(half::bf16::from_le_bytes([b[0], b[1]]))).flat_map(f64::to_le_bytes);
    tensors.insert("model.norm.weight".to_owned(), (Dtype::F64, norm.1.clone(), wide.collect()));
    bench.tensors("base/model.safetensors", &tensors);
    let refused = bench.refuses(&train, &["model.norm.weight", "F64", "save_pretrained"]);
    assert!(!refused.err.contains("qft export"), "which does not cast it: {}", refused.err);
    let cast = bench.ok("export --base base --dtype bf16 --out cast");
    let all = cast.out + &cast.err;
    assert!(all.contains("not cast to bf16: 1") && all.contains("save_pretrained"), "{all}");
    tensors.insert("model.norm.weight".to_owned(), norm);
    bench.tensors("base/model.safetensors", &tensors);
    assert_eq!(loss(&train), plain);
}

#[test]
fn a_gguf_that_is_refused_is_written_as_the_remedy_says() {
    let bench = bench("qwen2");
    let gguf = "gguf base --type q8_0";
    mended(&bench, gguf, "--out m.gguf", "--pre", "--out m.gguf --pre qwen2");
    let gguf = format!("{gguf} --pre qwen2");
    mended(&bench, &gguf, "--out m.gguf", "--overwrite", "--out m.gguf --overwrite");
    let quantize = "quantize m.gguf --type q4_0 --out n.gguf";
    mended(&bench, quantize, "", "--allow-requantize", "--allow-requantize");
    let embedding = "--out e.gguf --token-embedding-type";
    mended(&bench, &gguf, &format!("{embedding} q4_k"), "--token-embedding-type", &format!("{embedding} f16"));

    // An activation that llama.cpp does not compute.
    edit(&bench, "base/config.json", json!({"hidden_act": "gelu"}));
    bench.refuses(&format!("{gguf} --out g.gguf"), &["serve the safetensors"]);
    mended(&bench, "export --base base --out hf", "--gguf q8_0 --pre qwen2", "an export without --gguf", "");
}

#[test]
fn a_value_beyond_the_type_is_clamped_or_kept() {
    let bench = bench("llama");
    let mut tensors = bench.model("base");
    let huge = &mut tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().2;
    huge[..4].copy_from_slice(&1e30_f32.to_le_bytes());
    bench.tensors("base/model.safetensors", &tensors);
    let gguf = "gguf base --pre qwen2 --out n.gguf --type";
    mended(&bench, gguf, "f16", "--allow-overflow", "f16 --allow-overflow");
    let kept = "q8_0 --tensor-type blk.0.ffn_up.weight=bf16 --overwrite";
    mended(&bench, gguf, "q8_0 --overwrite", "--tensor-type", kept);
}
