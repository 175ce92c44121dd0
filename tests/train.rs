//! `qft train` from the command line, on the processor: whole runs, what they leave, and what they refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::workbench::{Bench, Noise, Said};

/// Everything that a checkpoint holds.
const FILES: [&str; 8] = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "args.json",
    "optimizer.safetensors",
    "qft_state.json",
    "scheduler.json",
    "trainer_state.json",
];

/// A run of 30 steps in two epochs, the last step of each of which is short, with all that chance has a part in.
pub(crate) const RUN: &str = "train --model base --dataset data.jsonl --split_dataset_ratio 0.1 --device cpu --report_to none \
    --max_length 128 --lora_rank 4 --lora_dropout 0.1 --per_device_train_batch_size 2 --gradient_accumulation_steps 3 \
    --num_train_epochs 2 --learning_rate 1e-2 --warmup_ratio 0.1 --save_steps 10 --logging_steps 1";

/// A row of ShareGPT: what is asked decides what is answered.
fn row(number: u64) -> Value {
    let mut noise = Noise(number);
    let mut word = |words: &[&str]| words[noise.next() as usize % words.len()].to_owned();
    let (color, animal) = (word(&["red", "blue", "brown", "grey"]), word(&["fox", "dog", "cat", "hen", "bear"]));
    let place = word(&["in the garden", "on the hill", "at the river", "under the old tree by the wall"]);
    json!({"conversations": [
        {"from": "human", "value": format!("Where is the {color} {animal}? Somebody saw it {place}.")},
        {"from": "gpt", "value": format!("The {color} {animal} is {place}.")},
    ]})
}

pub(crate) fn rows(count: u64) -> String {
    (0..count).map(|number| format!("{}\n", row(number))).collect()
}

/// A base of `family` and 98 rows of data.
pub(crate) fn bench(family: &str) -> Bench {
    let bench = Bench::new();
    bench.trainee("base", family);
    bench.write("data.jsonl", rows(98));
    bench
}

/// The only run below directory `output`, relative to the bench.
pub(crate) fn run_of(bench: &Bench, output: &str) -> PathBuf {
    let entries = fs::read_dir(bench.path(output)).unwrap().map(|entry| entry.unwrap().file_name());
    let runs: Vec<_> = entries.filter(|name| name.to_string_lossy().starts_with('v')).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    Path::new(output).join(&runs[0])
}

/// The steps of a run's checkpoints; whatever else is hidden beside them is a defect.
pub(crate) fn checkpoints(bench: &Bench, run: &Path) -> Vec<u64> {
    let names = fs::read_dir(bench.path(run)).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.collect();
    assert!(!names.iter().any(|name| name.starts_with('.')), "{names:?}");
    let mut steps: Vec<u64> =
        names.iter().filter_map(|name| name.strip_prefix("checkpoint-")).map(|step| step.parse().unwrap()).collect();
    steps.sort_unstable();
    steps
}

/// The lines of a run's log.
pub(crate) fn log(bench: &Bench, run: &Path) -> Vec<Value> {
    let text = bench.read(run.join("logging.jsonl"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values that the log has for `key`, by step.
pub(crate) fn series(log: &[Value], key: &str) -> Vec<(u64, f64)> {
    log.iter().filter_map(|line| Some((line["step"].as_u64().unwrap(), line.get(key)?.as_f64().unwrap()))).collect()
}

/// The files of a checkpoint that must not depend on it either: all but those that name its directory, and without
/// where the run has abandoned others.
pub(crate) fn state(bench: &Bench, checkpoint: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = bench.files(&checkpoint.to_string_lossy());
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), FILES);
    files.retain(|name, _| !["args.json", "trainer_state.json"].contains(&name.as_str()));
    let place = files.get_mut("qft_state.json").unwrap();
    let mut text: serde_json::Map<String, Value> = serde_json::from_slice(place).unwrap();
    assert!(text.remove("branch").is_some() && text.remove("branched_at").is_some());
    *place = Value::from(text).to_string().into_bytes();
    files
}

pub(crate) fn printed(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {}", said.out))
}

#[test]
fn a_run_ends_in_a_release() {
    for family in ["qwen2", "llama"] {
        let bench = bench(family);
        bench.write("data.jsonl", rows(320));
        let done = bench.ok(
            "train --model base --dataset data.jsonl --train_type lora --bf16 true --max_length 192 --packing true \
             --gradient_checkpointing true --lora_rank 8 --lora_alpha 32 --lora_dropout 0.1 \
             --target_modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --per_device_train_batch_size 2 \
             --gradient_accumulation_steps 4 --learning_rate 1e-2 --num_train_epochs 2 --warmup_ratio 0.1 \
             --save_steps 10 --save_total_limit 3 --logging_steps 2 --report_to swanlab --attn_impl flash_attn \
             --split_dataset_ratio 0.1 --device cpu",
        );
        let run = run_of(&bench, "output/base");
        let steps = checkpoints(&bench, &run);
        let last = *steps.last().unwrap();
        assert!(last >= 30, "{steps:?}");
        assert_eq!(steps, [(last - 1) / 10 * 10 - 10, (last - 1) / 10 * 10, last], "the three newest");
        for step in &steps {
            state(&bench, &run.join(format!("checkpoint-{step}")));
        }
        // What was said.
        for words in ["packed into", "trains in f32", "attn_impl flash_attn has no effect", "held-out loss"] {
            assert!(done.err.contains(words), "{words}: {}", done.err);
        }
        for words in ["swanlab convert", "loss.svg", "export --merge-lora", &format!("{last} of {last}")] {
            assert!(done.out.contains(words), "{words}: {}", done.out);
        }
        // What was learned.
        let log = log(&bench, &run);
        let (losses, held_out) = (series(&log, "loss"), series(&log, "eval_loss"));
        let ends = |losses: &[(u64, f64)]| (losses[0].1, losses[losses.len() - 1].1);
        let ((first, lowest), (early, late)) = (ends(&losses), ends(&held_out));
        assert!(lowest < 0.7 * first, "{family}: {losses:?}");
        assert!(late < early && late < 0.8 * first, "{family}: {held_out:?}");
        assert_eq!(losses.iter().map(|(step, _)| *step).take(3).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(held_out.last().unwrap().0, last, "the end is evaluated");
        let rates = series(&log, "learning_rate");
        let highest = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        assert!(highest <= 1e-2 && highest > 9e-3 && rates[rates.len() - 1].1 < 1e-3, "{rates:?}");
        assert!(log.last().unwrap()["train_runtime"].as_f64().unwrap() > 0.0);
        // What is left of it.
        let state = bench.json(run.join(format!("checkpoint-{last}/trainer_state.json")));
        assert_eq!((&state["global_step"], &state["max_steps"]), (&last.into(), &last.into()));
        let history = state["log_history"].as_array().unwrap();
        assert_eq!(series(history, "loss"), losses);
        assert_eq!(series(history, "eval_loss"), held_out);
        let best = held_out.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert_eq!((&state["best_global_step"], &state["best_metric"]), (&best.0.into(), &best.1.into()));
        assert!(bench.read(run.join("loss.svg")).starts_with("<svg"));
        let events: Vec<_> = fs::read_dir(bench.path(run.join("runs"))).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(events.len(), 1);
        assert!(events[0].file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents"));
        assert!(fs::metadata(&events[0]).unwrap().len() > 1000);
        let args = bench.json(run.join(format!("checkpoint-{last}/args.json")));
        assert_eq!((&args["lora_rank"], &args["attn_impl"]), (&8.into(), &"flash_attn".into()));

        let exported = bench.ok("export --merge-lora --max-shard 2GB");
        let release = run.join(format!("checkpoint-{last}-merged"));
        assert!(bench.path(release.join("model.safetensors")).exists(), "{}{}", exported.out, exported.err);
        bench.ok(&format!("verify {}", release.display()));
        bench.ok(&format!("verify {} --audit", release.display()));
        assert!(bench.model(&release.to_string_lossy()) != bench.model("base"));
    }
}

/// The merged model has the held-out loss that the adapted one had: training and export mean the same by an adapter.
#[test]
fn the_merged_model_is_the_one_that_was_trained() {
    let bench = bench("llama");
    bench.write("held.jsonl", rows(110).lines().skip(98).collect::<Vec<_>>().join("\n"));
    let base = "--dataset data.jsonl --val_dataset held.jsonl --device cpu --report_to none --max_length 128 \
                --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_steps";
    let held_out = |said: &Said| printed(said)["eval_loss"].as_f64().unwrap();
    let before = held_out(&bench.ok(&format!("train --model base {base} 1 --learning_rate 0 --out before --json")));
    for (name, flags) in [
        ("plain", "--lora_rank 4 --lora_alpha 8"),
        ("rslora", "--use_rslora true --lora_rank 16 --lora_alpha 8"),
        ("dora", "--use_dora true --lora_rank 4 --target_modules q_proj v_proj down_proj"),
    ] {
        let trained =
            bench.ok(&format!("train --model base {base} 12 --learning_rate 2e-2 {flags} --out {name} --json"));
        let loss = held_out(&trained);
        assert!(loss < 0.9 * before, "{name}: {loss} after {before}");
        let adapter = run_of(&bench, name).join("checkpoint-12");
        let (adapter, merged) = (adapter.display(), format!("merged-{name}"));
        bench.ok(&format!("export --merge-lora --adapter {adapter} --out {merged}"));
        let again = format!("train --model {merged} {base} 1 --learning_rate 0 --out again-{name} --json");
        let merged = held_out(&bench.ok(&again));
        assert!((merged - loss).abs() < 1e-5 * loss, "{name}: {merged} merged, {loss} trained");
    }
}

#[test]
fn the_newest_and_the_best_checkpoints_are_kept() {
    let bench = bench("qwen2");
    // A rate that is too high: what is held out is soon worse.
    let line = RUN.replace("--learning_rate 1e-2", "--learning_rate 0.3 --lr_scheduler_type constant");
    let line = line.replace("--save_steps 10", "--save_steps 3 --save_total_limit 2 --load_best_model_at_end true");
    let report = printed(&bench.ok(&format!("{line} --out out --json")));
    let run = run_of(&bench, "out");
    let held_out = series(&log(&bench, &run), "eval_loss");
    assert_eq!(held_out.iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=10).map(|n| 3 * n).collect::<Vec<_>>());
    let best = held_out.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(best.0 < 27, "the best is not an old one: {held_out:?}");
    assert_eq!(checkpoints(&bench, &run), [best.0, 30]);
    assert_eq!((&report["best"]["eval_loss"], &report["eval_loss"]), (&best.1.into(), &held_out[9].1.into()));
    assert!(report["best"]["checkpoint"].as_str().unwrap().ends_with(&format!("checkpoint-{}", best.0)));
    assert!(report["checkpoint"].as_str().unwrap().ends_with("checkpoint-30"));
    let state = bench.json(run.join("checkpoint-30/trainer_state.json"));
    assert!(state["best_model_checkpoint"].as_str().unwrap().ends_with(&format!("checkpoint-{}", best.0)));

    // Epoch by epoch, and the end alone.
    let line = RUN.replace("--save_steps 10", "--save_strategy epoch --save_total_limit 1");
    bench.ok(&format!("{line} --out epochs"));
    let run = run_of(&bench, "epochs");
    let evaluated: Vec<u64> = series(&log(&bench, &run), "eval_loss").iter().map(|(step, _)| *step).collect();
    assert_eq!((evaluated, checkpoints(&bench, &run).last()), (vec![15, 30], Some(&30)));
    let line = RUN.replace("--save_steps 10", "--save_strategy no --eval_strategy steps --eval_steps 12");
    bench.ok(&format!("{line} --out end"));
    let run = run_of(&bench, "end");
    let evaluated: Vec<u64> = series(&log(&bench, &run), "eval_loss").iter().map(|(step, _)| *step).collect();
    assert_eq!((evaluated, checkpoints(&bench, &run)), (vec![12, 24, 30], vec![30]));
}

#[test]
fn bad_rows_are_named_skipped_and_counted() {
    let bench = bench("qwen2");
    let mut lines: Vec<String> = rows(12).lines().map(str::to_owned).collect();
    lines[1] = r#"{"conversations": [{"from": "human"#.to_owned();
    lines[4] = r#"{"conversations": [{"from": "narrator", "value": "x"}, {"from": "gpt", "value": "y"}]}"#.to_owned();
    lines[7] = r#"{"conversations": [{"from": "human", "value": "nobody answers"}]}"#.to_owned();
    let long = "and so on ".repeat(200);
    lines[9] =
        json!({"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "ok"}]}).to_string();
    bench.write("rows.jsonl", lines.join("\n"));
    let line = RUN.replace("data.jsonl --split_dataset_ratio 0.1", "rows.jsonl").replace("_epochs 2", "_epochs 1");
    let plan = printed(&bench.ok(&format!("{line} --dry_run --json")));
    let skipped: Vec<&str> = plan["data"]["skipped"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    for (line, (at, problem)) in skipped.iter().zip([(2, "not JSON"), (5, "narrator"), (8, "assistant")]) {
        assert!(line.contains(&format!("rows.jsonl, line {at}")) && line.contains(problem), "{line}");
    }
    assert_eq!((&plan["data"]["rows"], &plan["max_steps"]), (&8.into(), &2.into()), "{plan:#}");
    assert_eq!(plan["data"]["lengths"]["dropped"], json!({"too long": 1}));
    let text = bench.ok(&format!("{line} --dry_run"));
    assert!(
        text.out.contains("4 (1 too long, 3 unreadable)") && text.out.contains("rows.jsonl, line 10: has"),
        "{}",
        text.out
    );
    assert!(!bench.path("output").exists(), "a dry run leaves nothing behind");
    let done = bench.ok(&format!("{line} --out out --json"));
    assert_eq!(printed(&done)["steps"], 2);
    bench.refuses(&format!("{line} --out strict --strict true"), &["rows.jsonl: line 2", "not JSON"]);
    lines.remove(1);
    bench.write("rows.jsonl", lines.join("\n"));
    bench.refuses(&format!("{line} --out strict --strict"), &["rows.jsonl: line 4", "narrator"]);
    lines.drain(3..7);
    bench.write("rows.jsonl", lines.join("\n"));
    assert!(!bench.path("strict").exists(), "a run that is refused begins nothing");
    // A row that is only too long is dropped as --truncation_strategy says.
    bench.ok(&format!("{line} --out strict --strict true"));
}

#[test]
fn a_file_of_settings_is_the_same_as_flags() {
    let bench = bench("qwen2");
    bench.write(
        "recipe.toml",
        "model = \"base\"\ndataset = [\"data.jsonl\"]\ndevice = \"cpu\"\nlora_rank = 4\nlearning_rate = 1e-2\n\
         num_train_epochs = 3\nper_device_train_batch_size = 2\ntarget_modules = [\"q_proj\", \"v_proj\"]\n",
    );
    let file = printed(&bench.ok("train --config recipe.toml --num-train-epochs 1 --dry-run --json"));
    let flags = printed(&bench.ok(
        "train --model base --dataset data.jsonl --device cpu --lora_rank 4 --learning_rate 1e-2 --num_train_epochs 1 \
         --per_device_train_batch_size 2 --target_modules q_proj v_proj --dry_run --json",
    ));
    assert_eq!(file, flags);
    assert_eq!((&file["modules"], &file["rows_of_a_step"], &file["max_steps"]), (&4.into(), &16.into(), &7.into()));
    // rank * (inputs + outputs) of q_proj and v_proj, in two layers.
    assert_eq!(file["trained_parameters"], 2 * 4 * (64 + 48));
    let done = printed(&bench.ok("train --config recipe.toml --max_steps 1 --report_to none --json"));
    assert_eq!((&done["steps"], &done["interrupted"]), (&1.into(), &false.into()));
    assert!(done["train_loss"].as_f64().unwrap() > 0.0 && done["seconds"].as_f64().unwrap() > 0.0);
    bench.write("bad.toml", "model = \"base\"\nlora_rnk = 4\n");
    bench.refuses("train --config bad.toml", &["bad.toml", "is it lora_rank?"]);
}

/// A layer of another family: the model that would be trained is not the one that is there.
#[test]
fn a_tensor_that_no_layer_reads_is_refused() {
    let bench = bench("llama");
    let mut tensors = bench.model("base");
    let norm = tensors["model.norm.weight"].clone();
    tensors.insert("model.layers.0.self_attn.q_norm.weight".to_owned(), norm);
    bench.tensors("base/model.safetensors", &tensors);
    let problem = ["model.layers.0.self_attn.q_norm.weight", "no layer of llama"];
    bench.refuses("train --model base --dataset data.jsonl --device cpu", &problem);
}

#[test]
fn what_can_not_be_trained_is_refused() {
    let bench = bench("qwen2");
    let train = |base: &str| format!("train --model {base} --dataset data.jsonl --device cpu");
    bench.refuses(&train("nowhere"), &["nowhere"]);
    bench.refuses("train --model base --dataset none.jsonl", &["no file or directory none.jsonl"]);
    bench.refuses(&format!("{} --model_type llama3", train("base")), &["--model_type llama3", "qwen2"]);
    bench.refuses(&format!("{} --target_modules c_attn", train("base")), &["c_attn", "q_proj"]);
    bench.refuses(&format!("{} --packing true --max_length 8", train("base")), &["no row is left", "too long"]);
    bench.refuses(&format!("{} --deepspeed zero3", train("base")), &["deepspeed"]);
    bench.write("empty.jsonl", "\n\n");
    bench.refuses("train --model base --dataset empty.jsonl", &["no row in empty.jsonl"]);

    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        bench.trainee(name, "qwen2");
        let mut config = bench.json(Path::new(name).join("config.json"));
        change(&mut config);
        bench.write(Path::new(name).join("config.json"), config.to_string());
    };
    edit("gemma", &|config| config["model_type"] = "gemma3".into());
    bench.refuses(&train("gemma"), &["gemma3", "can't train", "llama, mistral, qwen2"]);
    edit("small", &|config| config["vocab_size"] = 300.into());
    bench.refuses(&train("small"), &["the tokenizer has 382 tokens", "300"]);
    edit("wide", &|config| config["intermediate_size"] = 96.into());
    bench.refuses(&train("wide"), &["gate_proj.weight", "shape [64, 32]"]);
    fs::remove_file(bench.path("gemma/tokenizer.json")).unwrap();
    edit("bare", &|_| ());
    fs::remove_file(bench.path("bare/tokenizer.json")).unwrap();
    bench.refuses(&train("bare"), &["tokenizer.json"]);
    let usage = bench.qft(&format!("{} --lora_rank none", train("base")));
    assert_eq!((usage.code, usage.err.contains("whole number")), (Some(2), true), "{}", usage.err);
}

#[test]
fn steps_that_are_not_finite_are_skipped() {
    let bench = bench("llama");
    // One token is infinite, and one row has it: "~".
    let tokenizer = bench.json("base/tokenizer.json");
    let token = tokenizer["model"]["vocab"]["~"].as_u64().unwrap() as usize;
    let mut tensors = bench.model("base");
    let embeddings = tensors.get_mut("model.embed_tokens.weight").unwrap();
    embeddings.2[token * 32 * 4..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    bench.tensors("base/model.safetensors", &tensors);
    let bad = row(5).to_string().replace("Somebody", "~");
    bench.write("data.jsonl", rows(88) + &bad + "\n");
    let line = RUN.replace("--split_dataset_ratio 0.1 ", "");
    let done = bench.ok(&format!("{line} --out out --json"));
    let report = printed(&done);
    assert_eq!((&report["skipped"], &report["steps"]), (&2.into(), &30.into()));
    assert!(report["train_loss"].as_f64().unwrap().is_finite());
    assert_eq!(done.err.matches("is skipped: its loss is NaN").count(), 2, "{}", done.err);
    assert_eq!(done.err.matches("(1 in a row)").count(), 2, "{}", done.err);
    let run = run_of(&bench, "out");
    let state = bench.json(run.join("checkpoint-30/qft_state.json"));
    assert_eq!(
        (&state["global_step"], &state["optimizer_steps"], &state["skipped"]),
        (&30.into(), &28.into(), &2.into())
    );
    let lines = log(&bench, &run);
    let unknown: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some_and(Value::is_null)).collect();
    assert_eq!(unknown.len(), 2, "a step without a loss is logged as such");
    assert_eq!(lines.last().unwrap()["skipped_steps"], 2);
    let factors = bench.model(&run.join("checkpoint-30").to_string_lossy());
    let finite = |bytes: &[u8]| bytes.chunks(4).all(|b| f32::from_le_bytes(b.try_into().unwrap()).is_finite());
    assert!(factors.values().all(|(_, _, bytes)| finite(bytes)));
}

#[test]
fn three_such_steps_in_a_row_stop_the_run() {
    let bench = bench("llama");
    let out = |line: &str| RUN.replace("--split_dataset_ratio 0.1 ", "").replace("--learning_rate 1e-2", line);
    // A rate at which the factors burst at the first step that has one: with a warm-up, the second.
    let line = out("--learning_rate 1e30").replace("--save_steps 10", "--save_steps 1");
    let stopped = bench.refuses(&format!("{line} --out out"), &["3 steps in a row", "--learning_rate"]);
    assert!(stopped.err.contains("(2 in a row)"), "{}", stopped.err);
    let run = run_of(&bench, "out");
    let kept = checkpoints(&bench, &run);
    assert!(kept.contains(&1) && kept.len() < 8, "{kept:?}");
    for step in &kept {
        state(&bench, &run.join(format!("checkpoint-{step}")));
    }
    let from = run.join("checkpoint-1");
    let saner = out("--learning_rate 1e-3").replace("_epochs 2", "_epochs 1");
    let resumed = bench.ok(&format!("{saner} --out out --resume_from_checkpoint {}", from.display()));
    assert!(resumed.out.contains("17 of 17") && !resumed.out.contains("skipped"), "{}", resumed.out);
    assert!(resumed.err.contains("learning_rate was"), "{}", resumed.err);

    // A base that is broken: nothing is saved, and the remedy says where to look.
    let mut tensors = bench.model("base");
    let weights = tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
    weights.2[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    bench.tensors("base/model.safetensors", &tensors);
    bench.refuses(&format!("{} --out broken", out("")), &["step 3", "qft inspect --stats"]);
    assert_eq!(checkpoints(&bench, &run_of(&bench, "broken")), [] as [u64; 0]);
}

#[test]
fn the_tokenized_set_is_kept_and_found_by_its_content() {
    let bench = bench("qwen2");
    let line = RUN.replace("--num_train_epochs 2", "--max_steps 2");
    let sets = || -> BTreeSet<String> {
        let dir = fs::read_dir(bench.path("out/tokens")).into_iter().flatten();
        dir.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let loss = |flags: &str| printed(&bench.ok(&format!("{line} --out out --json {flags}")))["last_loss"].clone();
    let fresh = loss("");
    let first = sets();
    assert!(!first.is_empty());
    assert_eq!((loss(""), sets()), (fresh.clone(), first.clone()));
    assert_eq!(loss("--load_from_cache_file false"), fresh);
    assert_ne!(loss("--system no"), fresh);
    assert!(sets().len() > first.len());
    // A set that was cut short is made again.
    for name in &first {
        let path = bench.path(format!("out/tokens/{name}"));
        if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
    assert_eq!(loss(""), fresh);
}
