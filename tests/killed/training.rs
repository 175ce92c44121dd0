//! Training that is killed, or whose disk fails: every checkpoint that is there is whole, and the run goes on to the same
//! adapter and log, with nothing else left.

use std::time::Instant;

use serde_json::Value;

use super::tracer::{Blow, NotPermitted, Point};
use super::{MADE, State, Tree, at_each_point, below, names, restore, run, tell, tree};
use crate::train;
use crate::workbench::Bench;

const RUN: &str = "train --model base --dataset data.jsonl --split_dataset_ratio 0.1 --device cpu --report_to none \
    --max_length 128 --lora_rank 2 --lora_dropout 0.1 --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 1 --max_steps 4 --save_steps 1 --logging_steps 1 --learning_rate 1e-2 \
    --target_modules q_proj --add_version false --output_dir made/out";
const LIMIT: &str = " --save_total_limit 2";
const RESUME: &str = " --resume_from_checkpoint true";

/// The files of a checkpoint that do not tell which settings the run had.
const STATE: [&str; 5] =
    ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "qft_state.json", "scheduler.json"];

struct Scene {
    bench: Bench,
    line: String,
    old: Tree,
    /// A run that keeps every checkpoint.
    every: Tree,
    new: Tree,
}

impl Scene {
    /// A run from its start, or one that goes on from its first checkpoint.
    fn new(resumes: bool) -> Result<(Self, [usize; 6]), NotPermitted> {
        let bench = Bench::new();
        bench.trainee("base", "qwen2");
        bench.write("data.jsonl", train::rows(12));
        std::fs::create_dir(bench.path(MADE)).unwrap();
        bench.ok(RUN);
        let every = tree(&bench.path(MADE));
        let mut old = Tree::new();
        let mut line = format!("{RUN}{LIMIT}");
        if resumes {
            old.clone_from(&every);
            old.retain(|name, _| ["2", "3", "4"].iter().all(|step| !name.contains(&format!("checkpoint-{step}/"))));
            line += RESUME;
        }
        restore(&bench.path(MADE), &old);
        let whole = run(&bench, &line, None, false)?;
        assert_eq!(whole.code, Some(0), "qft {line}\n{}", whole.err);
        let new = tree(&bench.path(MADE));
        assert_eq!(checkpoints(&new), ["checkpoint-3", "checkpoint-4"]);
        Ok((Self { bench, line, old, every, new }, whole.counts))
    }

    fn attempt(&self, point: &Point) -> Option<Result<State, String>> {
        let made = self.bench.path(MADE);
        restore(&made, &self.old);
        let ended = run(&self.bench, &self.line, Some(point), false).unwrap();
        let now = tree(&made);
        if !ended.hit {
            return self.is_whole(&now).err().map(|defect| Err(format!("undisturbed: {defect}: {}", ended.err)));
        }
        if ended.code.is_some_and(|code| code > 1) {
            return Some(Err(format!("exit code {:?}: {}", ended.code, ended.err)));
        }
        Some(self.judge(&now))
    }

    fn judge(&self, now: &Tree) -> Result<State, String> {
        for checkpoint in checkpoints(now) {
            let [ours, whole] = [now, &self.every].map(|tree| below(tree, &format!("out/{checkpoint}")));
            let is_whole = ours.keys().eq(whole.keys()) && STATE.iter().all(|name| ours[name] == whole[name]);
            let parses = |name: &str| serde_json::from_slice::<Value>(ours[name]).is_ok();
            if !is_whole || !parses("args.json") || !parses("trainer_state.json") {
                return Err(format!("{checkpoint} is not whole: {}", names(now)));
            }
        }
        for hidden in below(now, "out").keys().filter_map(|name| name.strip_suffix('/').filter(|n| n.starts_with('.')))
        {
            if !hidden.contains('/') && self.bench.qft(&format!("verify {MADE}/out/{hidden}")).code == Some(0) {
                return Err(format!("verify takes {hidden} for clean: {}", names(now)));
            }
        }
        if now == &self.old {
            return Ok(State::Old);
        }
        if self.is_whole(now).is_ok() {
            return Ok(State::New);
        }
        let resume = if checkpoints(now).is_empty() { "" } else { RESUME };
        let line = format!("{}{resume}", self.line.replace(RESUME, ""));
        let ended = self.bench.qft(&line);
        let then = tree(&self.bench.path(MADE));
        match self.is_whole(&then) {
            Ok(()) if ended.code == Some(0) => Ok(State::Resumable),
            whole => Err(format!("from {}\n  {line}: {whole:?}: {}", names(now), ended.err)),
        }
    }

    /// Whether a tree is what a run that nothing disturbed leaves.
    fn is_whole(&self, tree: &Tree) -> Result<(), String> {
        let names_of = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
        if names_of(tree) != names_of(&self.new) {
            return Err(format!("it left {}", names(tree)));
        }
        for checkpoint in checkpoints(&self.new) {
            for name in STATE {
                let path = format!("out/{checkpoint}/{name}");
                if tree[&path] != self.new[&path] {
                    return Err(format!("{path} differs"));
                }
            }
        }
        if figures(tree)? != figures(&self.new)? {
            return Err(format!("the log differs: {:?}", figures(tree)));
        }
        Ok(())
    }
}

fn checkpoints(tree: &Tree) -> Vec<String> {
    let inside = below(tree, "out");
    let tops = inside.keys().filter_map(|name| name.strip_suffix('/'));
    tops.filter(|name| name.starts_with("checkpoint-")).map(str::to_owned).collect()
}

/// What of the log must not depend on when a run stopped.
fn figures(tree: &Tree) -> Result<Vec<String>, String> {
    let text = String::from_utf8_lossy(&tree["out/logging.jsonl"]);
    let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    let lines = lines.map_err(|error| format!("the log has half a line: {error}"))?;
    let keys = ["step", "loss", "grad_norm", "learning_rate", "eval_loss"];
    let of = |line: &Value| keys.map(|key| line.get(key).map_or(String::new(), Value::to_string)).join(" ");
    Ok(lines.iter().filter(|line| line.get("train_runtime").is_none()).map(of).collect())
}

fn try_both(blows: &[Blow]) {
    let mut defects = Vec::new();
    for (name, resumes) in [("train", false), ("train, resumed", true)] {
        let started = Instant::now();
        let (scene, counts) = match Scene::new(resumes) {
            Ok(made) => made,
            Err(NotPermitted(why)) => return eprintln!("skipped: this machine lets no process be traced ({why})"),
        };
        let outcome = at_each_point(name, counts, blows, |point| scene.attempt(point));
        let told = std::panic::catch_unwind(|| tell(name, started, &outcome));
        defects.extend(told.is_err().then_some(name));
    }
    assert!(defects.is_empty(), "see above: {defects:?}");
}

#[test]
fn a_training_that_is_killed() {
    try_both(&[Blow::Before, Blow::After, Blow::Torn]);
}

#[test]
fn a_training_whose_disk_fails() {
    try_both(&[Blow::Fails, Blow::Breaks]);
}
