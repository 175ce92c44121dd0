//! Malformed, hostile and unlucky input: each is an error with exit code 1 that names the file and a remedy, and leaves
//! the destination and its surroundings as they were. A table a subject; a row is (what, how to break it, what the
//! message must mention). Every row runs before a test fails, so that one failure hides no other.

mod adapter;
mod bounded;
mod file;
mod gguf;
mod index;
mod model;
mod output;
mod rows;
mod system;
mod template;
mod terminal;
mod tokenizer;

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::workbench::{Bench, Said, said};

/// An export that succeeds in an unbroken [`Scene`], but for its destination.
const EXPORT: &[&str] = &["export", "--merge-lora", "--base", "base", "--adapter", "lora", "--jobs", "1"];
/// Seconds after which a command counts as hanging.
const LIMIT: &str = "20";

/// A good base in `base`, a good adapter in `lora`, and an older release in `old`.
struct Scene(Bench);

impl Scene {
    fn new() -> Self {
        let bench = Bench::new();
        bench.base(8);
        bench.adapter("lora", 8);
        bench.write("old/config.json", "{}");
        bench.write("old/model.safetensors", "an older release");
        Self(bench)
    }

    /// Runs qft below the command `wrapper`, which sets its limits.
    fn run(&self, wrapper: &[&str], args: &[&str]) -> Said {
        let qft = self.0.command();
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", LIMIT]).args(wrapper).arg(qft.get_program()).args(args);
        command.current_dir(qft.get_current_dir().unwrap()).env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        command.envs(qft.get_envs().filter_map(|(key, value)| Some((key, value?))));
        said(command.output().unwrap())
    }

    /// What is wrong with how qft refuses `args`; nothing, as a rule.
    fn refuses(&self, what: &str, args: &[&str], mentions: &[&str]) -> Option<String> {
        self.refuses_below(&[], what, args, mentions)
    }

    /// As [`Self::refuses`], below the command `wrapper`.
    fn refuses_below(&self, wrapper: &[&str], what: &str, args: &[&str], mentions: &[&str]) -> Option<String> {
        let before = (self.0.names(), self.0.files("old"));
        let said = self.run(wrapper, args);
        let mut wrong = complaints(&said, 1, &said.err, mentions);
        if !said.err.contains("remedy: ") {
            wrong.push("no remedy".to_owned());
        }
        let after = self.0.names();
        for left in after.iter().filter(|name| !before.0.contains(name)) {
            if !is_kept(left, &said) {
                wrong.push(format!("{left} was left behind"));
            }
            // So that it does not get into the way of the next row.
            let _ = std::fs::remove_dir_all(self.0.path(left));
        }
        if after.len() < before.0.len() {
            wrong.push(format!("of {:?}, only {after:?} are left", before.0));
        }
        if self.0.files("old") != before.1 {
            wrong.push("the older release was changed".to_owned());
        }
        describe(what, args, &wrong, &said)
    }

    /// What is wrong with how an export is refused, to a new destination and over an older release.
    fn export_refuses(&self, what: &str, mentions: &[&str]) -> Vec<String> {
        let to = |end: &[&str]| self.refuses(what, &[EXPORT, end].concat(), mentions);
        [to(&["--out", "out"]), to(&["--out", "old", "--overwrite"])].into_iter().flatten().collect()
    }

    /// What is wrong with how `verify` reports a problem of `dir`.
    fn verify_reports(&self, what: &str, dir: &str, mentions: &[&str]) -> Option<String> {
        let said = self.run(&[], &["verify", dir]);
        describe(what, &["verify", dir], &complaints(&said, 3, &said.out, mentions), &said)
    }

    /// What is wrong with how qft does `args`, which are fine.
    fn accepts(&self, what: &str, args: &[&str]) -> Option<String> {
        let said = self.run(&[], args);
        describe(what, args, &complaints(&said, 0, "", &[]), &said)
    }

    /// Replaces file `name` by a link to `target`.
    fn link(&self, name: impl AsRef<Path>, target: impl AsRef<Path>) {
        let path = self.0.path(name);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    /// Replaces file `name` by a pipe that nobody writes to.
    fn pipe(&self, name: &str) {
        let path = self.0.path(name);
        let _ = std::fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    /// Gives the base settings beside its own.
    fn base_config(&self, extra: &serde_json::Value) {
        let mut config = json!({"model_type": "llama", "tie_word_embeddings": false});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.0.write("base/config.json", config.to_string());
    }
}

/// Whether what an export left is its finished shards, kept for `--resume`, and it says so.
fn is_kept(left: &str, said: &Said) -> bool {
    left.ends_with(".qft-staging") && said.err.contains(left) && said.err.contains("--resume")
}

/// What any command must not do, and what this one must.
fn complaints(said: &Said, code: i32, text: &str, mentions: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    if said.code != Some(code) {
        wrong.push(match said.code {
            Some(124) => "it hangs".to_owned(),
            Some(other) => format!("exit code {other}, not {code}"),
            None => "ended by a signal, or hangs in spite of SIGTERM".to_owned(),
        });
    }
    if said.err.contains("panicked") {
        wrong.push("a panic".to_owned());
    }
    if !is_tame(&said.out) || !is_tame(&said.err) {
        wrong.push("control characters reach the terminal".to_owned());
    }
    if said.err.len() > 1 << 14 {
        wrong.push(format!("a message of {} bytes", said.err.len()));
    }
    wrong.extend(mentions.iter().filter(|m| !text.contains(**m)).map(|m| format!("{m:?} is not mentioned")));
    wrong
}

fn describe(what: &str, args: &[&str], wrong: &[String], said: &Said) -> Option<String> {
    let start = |text: &str| text.chars().take(240).collect::<String>().escape_debug().to_string();
    let command = args.join(" ").escape_debug().to_string();
    let lines =
        || format!("{what} (qft {command}): {}\n    {}{}", wrong.join("; "), start(&said.out), start(&said.err));
    (!wrong.is_empty()).then(lines)
}

/// Whether a terminal shows `text` as it is: no control characters but line ends, no change of direction.
fn is_tame(text: &str) -> bool {
    let reorders = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !text.chars().any(|c| (c.is_control() && c != '\n') || reorders(c))
}

/// Ends a test: with all that was wrong.
fn expect_none(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{} wrong:\n  {}", wrong.len(), wrong.join("\n  "));
}

/// Whether a wrapper works here; if not, says what is skipped.
fn can(wrapper: &[&str], what: &str) -> bool {
    let works = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output().is_ok_and(|o| o.status.success());
    if !works {
        println!("skipped: {what}: `{}` does not work here", wrapper.join(" "));
    }
    works
}
