//! `cargo xtask fuzz`: every target of fuzz/ for some seconds each. What they find collects in fuzz/corpus; an input
//! that crashes is left in fuzz/artifacts.

use std::fs;

use anyhow::{Context, bail, ensure};

use crate::options::count;
use crate::shell::{self, root};

const SECONDS: usize = 60;

/// Fuzzes each target in turn, and says at the end which ones crashed.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.len() <= 1, "fuzz takes one number, the seconds for each target");
    let seconds = args.first().map_or(Ok(SECONDS), |text| count(text))?;
    if !shell::succeeds("cargo fuzz --version") {
        bail!(
            "cargo-fuzz is not installed\n  remedy: cargo install cargo-fuzz --locked (targets need a C++ compiler too)"
        );
    }
    let mut crashed = Vec::new();
    for target in targets()? {
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        fs::create_dir_all(root().join(&corpus)).with_context(|| format!("cannot create {corpus}"))?;
        // No sanitizer: those need a nightly compiler, and qft's parsers hold no unsafe code for one to watch.
        let line = format!("cargo fuzz run -s none {target} {corpus} {seeds} -- -max_total_time={seconds}");
        if let Err(error) = shell::run(&mut shell::command(&line)) {
            eprintln!("{error}");
            crashed.push(target);
        }
    }
    ensure!(
        crashed.is_empty(),
        "{} failed\n  remedy: mend what the reports above name, and run the saved input again",
        crashed.join(", ")
    );
    Ok(())
}

/// The names of the targets: one a file.
fn targets() -> anyhow::Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let files = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let paths: Vec<_> = files.map(|file| Ok(file?.path())).collect::<std::io::Result<_>>()?;
    let mut names: Vec<String> =
        paths.iter().filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    Ok(names)
}
