//! ms-swift's commands as they are typed, given to `qft`: what is used, what is noted, and that a remedy is one.

use crate::train::{bench, log, run_of, series};

#[test]
fn the_quickstart_of_ms_swift_trains_and_its_export_merges() {
    let bench = bench("qwen2");
    let done = bench.ok(
        "train --model base --dataset data.jsonl#40 --tuner_type lora --torch_dtype float32 --num_train_epochs 1 \
         --max_steps 2 --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --learning_rate 1e-3 \
         --lora_rank 4 --lora_alpha 32 --target_modules all-linear --gradient_accumulation_steps 4 --eval_steps 50 \
         --save_steps 50 --save_total_limit 2 --logging_steps 1 --max_length 128 --output_dir out \
         --dataloader_num_workers 4 --dataset_num_proc 4 --model_author swift --model_name 小黄 swift-robot \
         --split_dataset_ratio 0.1 --eval_on_start true --use_cpu true --report_to none --adalora_deltaT 1",
    );
    for note in ["model_author swift has no effect", "{{NAME}}", "dataset_num_proc 4 has no effect"] {
        assert!(done.err.contains(note), "{note}: {}", done.err);
    }
    assert!(!done.err.contains("adalora"), "a default needs no word: {}", done.err);
    let run = run_of(&bench, "out");
    let held_out = series(&log(&bench, &run), "eval_loss");
    assert_eq!(held_out.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 2], "before the first step, and last");
    assert!(held_out[0].1 > held_out[1].1, "{held_out:?}");
    let args = bench.json(run.join("checkpoint-2/args.json"));
    assert_eq!((&args["device"], &args["dataset_num_proc"]), (&"cpu".into(), &4.into()));

    let adapter = run.join("checkpoint-2").display().to_string();
    let export = format!("export --adapters {adapter} --model base --merge_lora true --safe_serialization true");
    let merged = bench.ok(&format!(
        "{export} --max_shard_size 5GB --load_args true --device_map cpu --exist_ok true --system be-kind \
         --infer_backend vllm --output_dir theirs"
    ));
    for note in ["exist_ok true has no effect", "--overwrite", "system be-kind has no effect", "vllm serve"] {
        assert!(merged.err.contains(note), "{note}: {}", merged.err);
    }
    assert!(!merged.err.contains("load_args"), "a default needs no word: {}", merged.err);
    bench.ok(&format!("export --adapter {adapter} --merge-lora --max-shard 5GB --out ours"));
    assert!(bench.model("ours") == bench.model("theirs"));
}

#[test]
fn what_only_ms_swift_does_is_refused_with_a_remedy() {
    let bench = bench("qwen2");
    let train = "train --model base --dataset data.jsonl --device cpu --dry-run";
    for (flags, remedy) in [
        ("--new_special_tokens <a> <b>", "write the new tokens as text"),
        ("--label_smoothing_factor 0.1", "drop the flag"),
        ("--router_aux_loss_coef 0.001", "no router"),
        ("--use_chat_template false", "drop the flag"),
        ("--dataset_shuffle false", "--data_seed"),
        ("--merge_lora true", "qft export --merge-lora"),
        ("--eval_on_start true", "--split_dataset_ratio"),
        ("--use_cpu true --device cuda", "leave one of them out"),
    ] {
        bench.refuses(&format!("{train} {flags}"), &[remedy]);
    }
    bench.ok(&format!("{train} --label_smoothing_factor 0.0 --router_aux_loss_coef 0 --use_chat_template true"));
    bench.ok(&format!("{train} --eval_on_start true --split_dataset_ratio 0.01"));

    let refused = bench.refuses("export --model base --quant_method bnb --quant_bits 4", &["--gguf q4_k_m"]);
    assert!(refused.err.contains("qft does not support quant_method bnb"), "{}", refused.err);
    bench.refuses("export --model base --model_revision v1", &["--base ID@REVISION"]);
    bench.refuses("export --model base --push_to_hub true", &["hf upload"]);
    assert!(!bench.path("base-export").exists(), "nothing was written");
}
