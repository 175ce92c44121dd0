//! `cargo xtask crash`: the crash harness of tests/killed at every point, of which the tests try a sample.

use anyhow::ensure;

use crate::shell;

/// Runs the harness: a row for each job, kind of calls and kind of blow, as the jobs end.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.is_empty(), "crash takes no options");
    println!("each command is killed at, and fails by, every call that changes the disk; this takes many minutes");
    // Most of the time is the disk's.
    let line = "cargo test --test integration killed:: -- --nocapture --test-threads 10";
    shell::run(shell::command(line).env("QFT_CRASH", "all"))
}
