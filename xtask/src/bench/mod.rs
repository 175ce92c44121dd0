//! `cargo xtask bench`: qft against its peers, all in one run on one machine. What the benchmarks share is here and in
//! `contender`, `data`, `machine` and `measure`; each benchmark is a directory of its own.

mod contender;
mod data;
mod export;
mod gguf;
mod gpu;
mod machine;
mod measure;
mod train;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::options::Options;
use crate::shell::{self, root};

pub(crate) use export::export;
pub(crate) use gguf::gguf;
pub(crate) use gpu::gpu;
pub(crate) use train::train;

/// The peer that merges.
const SCRIPT: &str = include_str!("peft_merge.py");
/// Peers that are slow and steady run twice at most.
const PEER_RUNS: usize = 2;
const GET_PEER: &str = "python3 -m venv VENV && VENV/bin/pip install torch transformers peft, \
                        then --python VENV/bin/python";

/// What the words in capitals of a command line stand for: any number of words each.
struct Words(Vec<(&'static str, Vec<OsString>)>);

impl Words {
    /// A command line from one whose words hold no spaces. `NAME/rest` is a path below the one that NAME stands for.
    fn fill(&self, line: &str) -> Vec<OsString> {
        line.split(' ').flat_map(|word| self.word(word)).collect()
    }

    fn word(&self, word: &str) -> Vec<OsString> {
        let (name, below) = word.split_once('/').map_or((word, None), |(name, below)| (name, Some(below)));
        let found = self.0.iter().find(|(known, _)| *known == name);
        match (found, below) {
            (None, _) => vec![word.into()],
            (Some((_, words)), None) => words.clone(),
            (Some((_, words)), Some(below)) => words.iter().map(|dir| Path::new(dir).join(below).into()).collect(),
        }
    }
}

/// Where the data goes: --dir, or `bench-data` in the repository.
fn data_dir(options: &Options) -> PathBuf {
    options.text("dir").map_or_else(|| root().join("bench-data"), PathBuf::from)
}

/// The binary that --qft names, or else the one that is built now: it lies beside the directory of this one.
fn qft(options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(path) = options.text("qft") {
        return Ok(PathBuf::from(path));
    }
    shell::run(&mut shell::command("cargo build --release --quiet --package qft"))?;
    let here = std::env::current_exe().context("cannot find this program's own file")?;
    let target = here.ancestors().nth(2).context("this program does not lie in a target directory")?;
    Ok(target.join("release/qft"))
}

/// Fails unless `python` has what the peer that merges needs.
fn check_python(python: &str) -> anyhow::Result<()> {
    check_python_runs(python, "import torch, transformers, peft")
}

/// Fails unless `python` has it and a GPU, too.
fn check_python_on_card(python: &str) -> anyhow::Result<()> {
    let card = "assert torch.cuda.is_available(), 'its torch finds no GPU'";
    check_python_runs(python, &format!("import torch, transformers, peft\n{card}"))
}

fn check_python_runs(python: &str, code: &str) -> anyhow::Result<()> {
    let output = Command::new(python).args(["-c", code]).output();
    let output = output.with_context(|| format!("{python} could not be started: name a Python with --python"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{python} lacks what the peer needs: {}\n  remedy: {GET_PEER}",
        said.lines().last().unwrap_or_default()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_words_paths_and_nothings() {
        let words =
            Words(vec![("OUT", vec!["/a b".into()]), ("PRE", vec!["--pre".into(), "x".into()]), ("NO", vec![])]);
        let filled = words.fill("cp OUT OUT/c/d PRE NO --out");
        assert_eq!(filled, ["cp", "/a b", "/a b/c/d", "--pre", "x", "--out"]);
    }
}
