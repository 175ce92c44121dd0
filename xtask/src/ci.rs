//! `cargo xtask ci`: everything that a change must pass, section by section, with timings.

use std::time::Instant;

use anyhow::{anyhow, ensure};

use crate::shell;

/// One thing to pass.
struct Section {
    name: &'static str,
    line: &'static str,
    variable: Option<(&'static str, &'static str)>,
    remedy: &'static str,
}

/// A section that needs no environment variable.
const fn section(name: &'static str, line: &'static str, remedy: &'static str) -> Section {
    Section { name, line, variable: None, remedy }
}

const FORMAT: Section = section("format", "cargo fmt --all --check", "run `cargo fmt --all`");
const LINTS: Section = section(
    "lints",
    "cargo clippy --workspace --all-targets -- -D warnings",
    "mend what is named above; `cargo clippy --fix --workspace --all-targets` does the simple ones",
);
const REPEAT: &str = "mend what failed; `cargo test NAME` repeats one test";
/// nextest runs no doctests, so they have a section of their own; first, so that the tests' summary is the last word.
const NEXTEST: [Section; 2] = [
    section("doctests", "cargo test --doc", "mend the examples in the documentation comments"),
    section("tests", "cargo nextest run --workspace", REPEAT),
];
const TESTS: [Section; 1] = [section("tests", "cargo test --workspace", REPEAT)];
const DOCUMENTATION: Section = Section {
    name: "documentation",
    line: "cargo doc --no-deps --workspace --document-private-items",
    variable: Some(("RUSTDOCFLAGS", "-D warnings")),
    remedy: "mend the documentation comments that are named above",
};

/// Runs the sections and stops at the first that fails.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.is_empty(), "ci takes no options");
    let tests = if shell::succeeds("cargo nextest --version") { &NEXTEST[..] } else { &TESTS };
    let sections = [&FORMAT, &LINTS].into_iter().chain(tests).chain([&DOCUMENTATION]);
    let mut timings = Vec::new();
    for section in sections {
        println!("\n== {} ==", section.name);
        let started = Instant::now();
        let mut command = shell::command(section.line);
        command.envs(section.variable);
        shell::run(&mut command).map_err(|error| anyhow!("{error}\n  remedy: {}", section.remedy))?;
        timings.push((section.name, started.elapsed().as_secs_f64()));
    }
    println!("\n== passed ==");
    for (name, seconds) in timings {
        println!("{name:<14} {seconds:>6.1} s");
    }
    Ok(())
}
