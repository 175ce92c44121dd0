//! Runs of `qft train` that stop and go on, by a signal, by force, in one process and in two: the losses and the last
//! checkpoint are those of a run that did not.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::train::{RUN, bench, checkpoints, log, printed, rows, run_of, series, state};
use crate::workbench::{Bench, said};

/// What must not depend on when a run stopped: the figures of each line, in the log's own digits.
fn figures(bench: &Bench, run: &Path) -> Vec<String> {
    let keys = ["step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss", "num_input_tokens_seen"];
    let of = |line: &Value| keys.map(|key| line.get(key).map_or(String::new(), Value::to_string)).join(" ");
    log(bench, run).iter().filter(|line| line.get("train_runtime").is_none()).map(of).collect()
}

fn assert_same_run(bench: &Bench, run: &Path, whole: &Path) {
    assert_eq!(figures(bench, run), figures(bench, whole));
    let last = *checkpoints(bench, whole).last().unwrap();
    let [ours, theirs] = [run, whole].map(|run| state(bench, &run.join(format!("checkpoint-{last}"))));
    for (name, bytes) in &theirs {
        assert!(&ours[name] == bytes, "{name} of the last checkpoint differs");
    }
}

/// Copies directory `from` to `to`, without the checkpoints of steps after `last`.
fn copy_up_to(bench: &Bench, from: &str, to: &str, last: u64) {
    for (name, bytes) in bench.files(from) {
        let step = name.split('/').find_map(|part| part.strip_prefix("checkpoint-")?.parse::<u64>().ok());
        if step.is_none_or(|step| step <= last) {
            bench.write(Path::new(to).join(name), bytes);
        }
    }
}

#[test]
fn a_resumed_run_is_the_one_that_was_not_interrupted() {
    for family in ["qwen2", "llama"] {
        let bench = bench(family);
        // How many threads there are changes no bit either.
        let mut command = bench.command();
        command.env("RAYON_NUM_THREADS", "3").args(format!("{RUN} --out whole").split_whitespace());
        assert_eq!(said(command.output().unwrap()).code, Some(0));
        let whole = run_of(&bench, "whole");
        assert_eq!(checkpoints(&bench, &whole), [10, 20, 30]);
        let losses = series(&log(&bench, &whole), "loss");
        assert_eq!(losses.len(), 30);
        assert!(losses.windows(2).all(|pair| pair[0].1 != pair[1].1), "{losses:?}");
        let name = whole.file_name().unwrap().to_str().unwrap();
        // By name, over the checkpoints of later steps; it goes on in the run's own directory.
        copy_up_to(&bench, "whole", "named", 30);
        let said = bench.ok(&format!("{RUN} --out named --resume_from_checkpoint named/{name}/checkpoint-10"));
        assert!(said.err.contains("from step 10"), "{}", said.err);
        assert_same_run(&bench, &run_of(&bench, "named"), &whole);
        // The newest, which is in the second epoch.
        copy_up_to(&bench, "whole", "newest", 20);
        let said = bench.ok(&format!("{RUN} --out newest --resume_from_checkpoint true"));
        assert!(said.err.contains("from step 20"), "{}", said.err);
        let newest = run_of(&bench, "newest");
        assert_same_run(&bench, &newest, &whole);
        assert_eq!(checkpoints(&bench, &newest), [10, 20, 30]);
        let history = |run: &Path| bench.json(run.join("checkpoint-30/trainer_state.json"))["log_history"].clone();
        assert_eq!(series(history(&newest).as_array().unwrap(), "loss"), losses);
        // A record of several steps, of which some were another process's.
        let rarely = RUN.replace("--logging_steps 1", "--logging_steps 4");
        bench.ok(&format!("{rarely} --out rare"));
        copy_up_to(&bench, "rare", "rarer", 10);
        bench.ok(&format!("{rarely} --out rarer --resume_from_checkpoint true"));
        assert_same_run(&bench, &run_of(&bench, "rarer"), &run_of(&bench, "rare"));
        // Another seed is another run.
        bench.ok(&format!("{RUN} --out other --seed 43 --max_steps 3"));
        let other = series(&log(&bench, &run_of(&bench, "other")), "loss");
        assert!(other[..3] != losses[..3]);
    }
}

#[test]
fn what_does_not_fit_a_checkpoint_is_refused() {
    let bench = bench("qwen2");
    let run = RUN.replace("--num_train_epochs 2", "--max_steps 2");
    bench.ok(&format!("{run} --out out"));
    let resume = "--out out --resume_from_checkpoint true";
    bench.refuses(&format!("{run} {resume} --lora_rank 8"), &["lora_rank 4, not 8", "give --lora_rank 4"]);
    bench.refuses(&format!("{run} {resume} --lora_rank 4 --seed 1"), &["seed 42, not 1"]);
    bench.refuses(&format!("{run} {resume} --gradient_accumulation_steps 2"), &["gradient_accumulation_steps"]);
    bench.refuses(&format!("{run} {resume} --target_modules q_proj"), &["other modules", "--target_modules"]);
    bench.write("data.jsonl", rows(97));
    bench.refuses(&format!("{run} {resume}"), &["the data, or a setting of its tokens", "--ignore_data_skip true"]);
    bench.refuses(&format!("{run} --out none --resume_from_checkpoint true"), &["none holds no checkpoint"]);
    // Its factors are still of use.
    let only = bench.ok(&format!("{run} {resume} --resume_only_model true --json"));
    assert_eq!(printed(&only)["steps"], 2);
}

pub(crate) fn start(bench: &Bench, line: &str) -> Child {
    let mut command = bench.command();
    command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(crate) fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
}

/// Waits until the run below `output` has logged `lines` lines; `false` if the process ended before.
pub(crate) fn wait_for_lines(bench: &Bench, child: &mut Child, output: &str, lines: usize) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the run makes no progress");
        let runs = fs::read_dir(bench.path(output)).into_iter().flatten().flatten();
        let logs = runs.filter_map(|run| fs::read_to_string(run.path().join("logging.jsonl")).ok());
        if logs.into_iter().any(|log| log.lines().count() >= lines) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_signal_saves_and_ends_the_run() {
    let bench = bench("qwen2");
    // Long enough that it is not over before a signal comes.
    let line = RUN.replace("_epochs 2", "_epochs 6").replace("--save_steps 10", "--save_steps 30");
    bench.ok(&format!("{line} --out whole"));
    let whole = run_of(&bench, "whole");
    for (name, lines) in [("-INT", 4), ("-TERM", 17), ("-HUP", 9)] {
        let out = format!("out{name}");
        let mut child = start(&bench, &format!("{line} --out {out}"));
        assert!(wait_for_lines(&bench, &mut child, &out, lines), "the run was over before it could be interrupted");
        signal(&child, name);
        let ended = said(child.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(130), "{}{}", ended.out, ended.err);
        assert!(ended.out.contains("the same command with --resume_from_checkpoint out-"), "{}", ended.out);
        let run = run_of(&bench, &out);
        let steps = checkpoints(&bench, &run);
        let stopped = *steps.last().unwrap();
        assert!((3..90).contains(&stopped), "{steps:?}");
        state(&bench, &run.join(format!("checkpoint-{stopped}")));
        assert_eq!(
            series(&log(&bench, &run), "loss").last().unwrap().0,
            stopped,
            "it stopped at the step that it saved"
        );
        let resumed = bench.ok(&format!("{line} --out {out} --resume_from_checkpoint true"));
        assert!(resumed.err.contains(&format!("from step {stopped}")), "{}", resumed.err);
        assert_same_run(&bench, &run, &whole);
    }
}

/// A base whose weights were replaced in place is another one; and a run's base is found from any directory.
#[test]
fn a_run_goes_on_over_its_own_base_alone() {
    let bench = bench("qwen2");
    let line = RUN.replace("_epochs 2", "_epochs 1");
    bench.ok(&format!("{line} --out out"));
    let run = run_of(&bench, "out");
    std::fs::create_dir(bench.path("elsewhere")).unwrap();
    let checkpoint = bench.path(run.join("checkpoint-10"));
    let mut export = bench.command();
    export.current_dir(bench.path("elsewhere")).args(["export", "--merge-lora", "--out", "merged", "--adapter"]);
    let exported = said(export.arg(&checkpoint).output().unwrap());
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    let mut base = bench.model("base");
    let (_, _, bytes) = base.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    bench.tensors("base/model.safetensors", &base);
    let resume = format!("{line} --out out --resume_from_checkpoint {}", checkpoint.display());
    bench.refuses(&resume, &["other weights than those of the base", "--resume_only_model true"]);
    bench.ok(&format!("{resume} --resume_only_model true"));
}

/// A flipped bit in a factor or a moment looks like any other: it is seen by the file's digest.
#[test]
fn a_flipped_bit_is_seen_before_a_run_goes_on() {
    let bench = bench("qwen2");
    let line = RUN.replace("_epochs 2", "_epochs 1").replace("--save_steps 10", "--save_steps 4");
    bench.ok(&format!("{line} --out out"));
    let run = run_of(&bench, "out");
    let resume = format!("{line} --out out --resume_from_checkpoint {}/checkpoint-12", run.display());
    for name in ["adapter_model.safetensors", "optimizer.safetensors"] {
        let path = bench.path(run.join("checkpoint-12").join(name));
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() * 3 / 4;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let remedy = format!("--resume_from_checkpoint {}/checkpoint-8", run.display());
        let said = bench.refuses(&resume, &[name, "was damaged", &remedy]);
        assert!(!said.err.contains("from step"), "{}", said.err);
        fs::write(&path, whole).unwrap();
    }
    bench.ok(&resume);
}

/// A run that goes on from an earlier checkpoint than its newest: what it writes then is the newest, whatever its
/// number, for a resume and for an export; and what it has left behind goes first.
#[test]
fn resuming_from_an_earlier_checkpoint_sets_later_ones_aside() {
    let bench = bench("qwen2");
    bench.ok(&format!("{RUN} --out output"));
    let run = run_of(&bench, "output");
    let earlier = format!("--resume_from_checkpoint {}/checkpoint-10 --max_steps 14", run.display());
    let branched = bench.ok(&format!("{RUN} --out output {earlier}"));
    assert!(branched.err.contains("checkpoint-20 to -30 of"), "{}", branched.err);
    assert_eq!(checkpoints(&bench, &run), [10, 14, 20, 30], "they stay");
    let next =
        bench.ok(&format!("{RUN} --out output --resume_from_checkpoint true --max_steps 15 --save_total_limit 2"));
    assert!(next.err.contains("from step 14"), "{}", next.err);
    assert!(next.out.contains("checkpoint-15"), "{}", next.out);
    assert_eq!(checkpoints(&bench, &run), [14, 15], "the limit takes what was left behind first");
    let merged = bench.ok("export --merge-lora --dry-run");
    assert!(
        merged.out.contains("checkpoint-15") || merged.err.contains("checkpoint-15"),
        "{}{}",
        merged.out,
        merged.err
    );
}

/// A checkpoint of a GPU goes on on the processor, which is told.
#[test]
fn another_device_is_noted() {
    let bench = bench("qwen2");
    let line = RUN.replace("--num_train_epochs 2", "--max_steps 2");
    bench.ok(&format!("{line} --out out"));
    let resume = line.replace("--max_steps 2", "--max_steps 3") + " --out out --resume_from_checkpoint true";
    let state = run_of(&bench, "out").join("checkpoint-2/qft_state.json");
    let mut record = bench.json(&state);
    assert_eq!(record["device"], "cpu in f32");
    record["device"] = "NVIDIA H200 in bf16".into();
    bench.write(&state, record.to_string());
    let said = bench.ok(&resume);
    let note = "the last step was computed on NVIDIA H200 in bf16; the next ones are computed on cpu in f32";
    assert_eq!(said.err.matches(note).count(), 1, "{}", said.err);
    let again = bench.ok(&resume.replace("--max_steps 3", "--max_steps 4"));
    assert!(!again.err.contains("the last step was computed on"), "{}", again.err);
}

/// A long look at the held-out data is cut short, the step before it saved; a run that goes on looks again.
#[test]
fn a_signal_ends_an_evaluation() {
    let bench = bench("qwen2");
    bench.write("data.jsonl", rows(300));
    let line = RUN.replace("_ratio 0.1", "_ratio 0.9").replace("--num_train_epochs 2", "--max_steps 6");
    let line = line.replace("--save_steps 10", "--save_steps 5");
    let mut child = start(&bench, &format!("{line} --out out"));
    assert!(wait_for_lines(&bench, &mut child, "out", 5), "the run was over before it could be interrupted");
    signal(&child, "-TERM");
    let asked = Instant::now();
    let ended = said(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(130), "{}{}", ended.out, ended.err);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    let run = run_of(&bench, "out");
    assert_eq!(checkpoints(&bench, &run), [5], "{}", ended.out);
    assert!(series(&log(&bench, &run), "eval_loss").is_empty(), "the evaluation was over before it was interrupted");
    bench.ok(&format!("{line} --out out --resume_from_checkpoint true"));
    let steps: Vec<u64> = series(&log(&bench, &run), "eval_loss").into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [5, 6], "what was cut short is done");
}

/// As nohup starts it: a terminal that closes does not end the run.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let bench = bench("qwen2");
    let line = format!("{} --out out", RUN.replace("_epochs 2", "_epochs 6"));
    let mut command = std::process::Command::new("sh");
    command.current_dir(bench.path("")).args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    command.arg(bench.command().get_program()).args(line.split_whitespace());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(wait_for_lines(&bench, &mut child, "out", 4), "the run was over before its terminal could close");
    signal(&child, "-HUP");
    let ended = said(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(!ended.err.contains("stopping"), "{}", ended.err);
}

/// A process that is killed at any moment leaves whole checkpoints, and what else it left is no obstacle.
#[test]
fn a_killed_run_goes_on_from_its_newest_checkpoint() {
    let bench = bench("qwen2");
    let line = RUN.replace("--save_steps 10", "--save_steps 2");
    bench.ok(&format!("{line} --out whole"));
    let whole = run_of(&bench, "whole");
    let mut resume = "";
    for lines in [5, 12, 20] {
        let mut child = start(&bench, &format!("{line} --out out {resume}"));
        if wait_for_lines(&bench, &mut child, "out", lines) {
            child.kill().unwrap();
        }
        child.wait().unwrap();
        let run = run_of(&bench, "out");
        for entry in fs::read_dir(bench.path(&run)).unwrap().map(|e| e.unwrap().file_name()) {
            if entry.to_string_lossy().starts_with("checkpoint-") {
                state(&bench, &run.join(entry));
                resume = "--resume_from_checkpoint true";
            }
        }
    }
    bench.ok(&format!("{line} --out out {resume}"));
    assert_same_run(&bench, &run_of(&bench, "out"), &whole);
}

/// Starts two ranks of the same line.
fn start_two(bench: &Bench, line: &str) -> [Child; 2] {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    ["0", "1"].map(|rank| {
        let mut command = bench.command();
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]).args(line.split_whitespace());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    })
}

/// The same path on two machines may hold two models.
#[test]
fn ranks_must_share_their_base() {
    let [ours, theirs] = ["qwen2", "qwen2"].map(bench);
    let mut base = theirs.model("base");
    base.values_mut().for_each(|(_, _, bytes)| bytes[0] ^= 1);
    theirs.tensors("base/model.safetensors", &base);
    let line = format!("{} --out two", RUN.replace("_epochs 2", "_epochs 1"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let ranks = [("0", &ours), ("1", &theirs)].map(|(rank, bench)| {
        let mut command = bench.command();
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]).args(line.split_whitespace());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let [mut first, second] = ranks;
    let second = said(second.wait_with_output().unwrap());
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.code, Some(1), "{}", second.err);
    assert!(second.err.contains("another model than rank 0"), "{}", second.err);
}

/// Two processes share each step's rows; masks of dropout, too, are those of one process with all of them.
#[test]
fn two_processes_train_as_one() {
    let bench = bench("qwen2");
    let shared = |each: u32, accumulation: u32| {
        let line = RUN.replace("_epochs 2", "_epochs 1").replace("_batch_size 2", &format!("_batch_size {each}"));
        line.replace("accumulation_steps 3", &format!("accumulation_steps {accumulation}"))
    };
    bench.ok(&format!("{} --out one", shared(1, 6)));
    let line = format!("{} --out two", shared(1, 3));
    let [first, second] = start_two(&bench, &line).map(|child| said(child.wait_with_output().unwrap()));
    assert_eq!((first.code, second.code), (Some(0), Some(0)), "{}{}", first.err, second.err);
    assert!(first.out.contains("15 of 15") && second.out.is_empty(), "{}{}", first.out, second.out);
    let [one, two] = ["one", "two"].map(|out| log(&bench, &run_of(&bench, out)));
    for key in ["loss", "grad_norm", "eval_loss", "learning_rate", "num_input_tokens_seen"] {
        let within = if key == "grad_norm" { 1e-5 } else { 1e-6 };
        let (one, two) = (series(&one, key), series(&two, key));
        assert!(!one.is_empty() && one.len() == two.len(), "{key}: {one:?} {two:?}");
        for (one, two) in one.iter().zip(two) {
            assert!(one.0 == two.0 && (one.1 - two.1).abs() <= within * one.1, "{key} of one {one:?}, of two {two:?}");
        }
    }
    assert_eq!(checkpoints(&bench, &run_of(&bench, "two")), [10, 15]);
    bench.refuses(&format!("{line} --resume_from_checkpoint true"), &["the number of ranks was 2"]);

    // A signal to one of them ends both after the same step, and two go on to the same end.
    let line = shared(1, 3).replace("_epochs 1", "_epochs 4");
    let both = |line: &str| {
        let said = start_two(&bench, line).map(|child| said(child.wait_with_output().unwrap()));
        assert!(said.iter().all(|said| said.code == Some(0)), "{said:?}");
    };
    both(&format!("{line} --out long"));
    let [mut first, second] = start_two(&bench, &format!("{line} --out cut"));
    assert!(wait_for_lines(&bench, &mut first, "cut", 3), "the run was over before it could be interrupted");
    signal(&second, "-TERM");
    let ended = [first, second].map(|child| said(child.wait_with_output().unwrap()));
    assert!(ended.iter().all(|said| said.code == Some(130)), "{ended:?}");
    let cut = run_of(&bench, "cut");
    assert!((2..60).contains(checkpoints(&bench, &cut).last().unwrap()));
    both(&format!("{line} --out cut --resume_from_checkpoint true"));
    assert_same_run(&bench, &cut, &run_of(&bench, "long"));
}
