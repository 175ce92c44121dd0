//! `cargo xtask ci`: everything that a change must pass, section by section, with timings.

use std::time::Instant;

use anyhow::{anyhow, ensure};

use crate::{ptx, shell};

/// One thing to pass.
struct Section {
    name: &'static str,
    check: Check,
    remedy: &'static str,
}

/// How a section is checked.
enum Check {
    /// By a command that succeeds, with an environment variable perhaps.
    Line(&'static str, Option<(&'static str, &'static str)>),
    /// By a chore of this program.
    Chore(fn() -> anyhow::Result<()>),
}

impl Check {
    fn run(&self) -> anyhow::Result<()> {
        match *self {
            Self::Line(line, variable) => shell::run(shell::command(line).envs(variable)),
            Self::Chore(chore) => chore(),
        }
    }
}

/// A section whose command needs no environment variable.
const fn section(name: &'static str, line: &'static str, remedy: &'static str) -> Section {
    Section { name, check: Check::Line(line, None), remedy }
}

const FORMAT: Section = section("format", "cargo fmt --all --check", "run `cargo fmt --all`");
const KERNELS: Section = Section {
    name: "kernels",
    check: Check::Chore(ptx::check),
    remedy: "run `cargo xtask ptx` and commit the .ptx files",
};
const LINTS: Section = section(
    "lints",
    "cargo clippy --workspace --all-targets -- -D warnings",
    "mend what is named above; `cargo clippy --fix --workspace --all-targets` does the simple ones",
);
/// Checked, not linked: that would take a C++ compiler, which makes libFuzzer itself.
const FUZZ: Section = Section {
    name: "fuzz targets",
    check: Check::Line(
        "cargo check --manifest-path fuzz/Cargo.toml --target-dir target --bins",
        Some(("CUSTOM_LIBFUZZER_PATH", "none/libfuzzer.a")),
    ),
    remedy: "mend the targets of fuzz/, which use qft as other programs do",
};
const REPEAT: &str = "mend what failed; `cargo test NAME` repeats one test";
/// nextest runs no doctests, so they have a section of their own; first, so that the tests' summary is the last word.
const NEXTEST: [Section; 2] = [
    section("doctests", "cargo test --doc", "mend the examples in the documentation comments"),
    section("tests", "cargo nextest run --workspace", REPEAT),
];
const TESTS: [Section; 1] = [section("tests", "cargo test --workspace", REPEAT)];
const DOCUMENTATION: Section = Section {
    name: "documentation",
    check: Check::Line(
        "cargo doc --no-deps --workspace --document-private-items",
        Some(("RUSTDOCFLAGS", "-D warnings")),
    ),
    remedy: "mend the documentation comments that are named above",
};

/// Runs the sections and stops at the first that fails.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.is_empty(), "ci takes no options");
    let tests = if shell::succeeds("cargo nextest --version") { &NEXTEST[..] } else { &TESTS };
    let sections = [&FORMAT, &KERNELS, &LINTS, &FUZZ].into_iter().chain(tests).chain([&DOCUMENTATION]);
    let mut timings = Vec::new();
    for section in sections {
        println!("\n== {} ==", section.name);
        let started = Instant::now();
        section.check.run().map_err(|error| anyhow!("{error}\n  remedy: {}", section.remedy))?;
        timings.push((section.name, started.elapsed().as_secs_f64()));
    }
    println!("\n== passed ==");
    for (name, seconds) in timings {
        println!("{name:<14} {seconds:>6.1} s");
    }
    Ok(())
}
