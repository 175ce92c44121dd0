//! Runs of `qft train` whose disk fills up, or whose directory another run is in.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::train::{RUN, bench, checkpoints, log, run_of, series};
use crate::workbench::{Bench, Said, said};

/// Mounts a disk of memory at `disk` with options `$1`, runs `$2` there, and copies what is left to `kept`.
const ON_A_DISK: &str = "mount -t tmpfs -o $1 none disk || exit 99; script=$2; shift 2; eval \"$script\"; code=$?; \
                         cp -r disk/. kept; exit $code";
/// Fills the disk after the second record, until both are told, then frees space again.
const FULL_FOR_A_WHILE: &str = "\"$@\" 2>err & pid=$!; until [ $(cat disk/o/*/logging.jsonl 2>/dev/null | wc -l) -ge 2 \
    ]; do sleep 0.01; done; cat /dev/zero > disk/fill 2>/dev/null; until grep -q 'no checkpoint after step' err && \
    grep -q 'cannot write.*training continues' err || ! kill -0 $pid; do sleep 0.01; done; rm disk/fill; wait $pid; \
    code=$?; cat err >&2; (exit $code)";

/// Runs `script` with qft's command line `line`, on a disk with `options`; `None` where none can be mounted.
fn on_a_disk(bench: &Bench, options: &str, script: &str, line: &str) -> Option<Said> {
    let probe = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("skipped: a full disk: mounting needs root and a mount namespace");
        return None;
    }
    ["disk", "kept"].iter().for_each(|name| std::fs::create_dir_all(bench.path(name)).unwrap());
    let qft = bench.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", ON_A_DISK, "sh", options, script]).arg(qft.get_program());
    command.args(line.split_whitespace()).current_dir(qft.get_current_dir().unwrap()).env_clear();
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command.envs(qft.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Some(said(command.output().unwrap()))
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_nothing() {
    let bench = bench("qwen2");
    let line = format!("{RUN} --out disk/o --max_steps 120 --save_steps 10");
    let Some(said) = on_a_disk(&bench, "size=24m", FULL_FOR_A_WHILE, &line) else { return };
    assert_eq!(said.code, Some(0), "{}", said.err);
    for told in [
        "training continues, and saves one as soon as there is free space",
        "the log can be written again, and has the missing records",
    ] {
        assert!(said.err.contains(told), "{told}: {}", said.err);
    }
    let run = run_of(&bench, "kept/o");
    let losses = series(&log(&bench, &run), "loss");
    assert_eq!(losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(), Vec::from_iter(1..=120));
    assert_eq!(checkpoints(&bench, &run).last(), Some(&120));
}

#[test]
fn a_disk_without_room_for_a_checkpoint_is_told_before_the_run() {
    let bench = bench("qwen2");
    for line in [format!("{RUN} --out disk/o"), format!("{RUN} --out disk/o --dry-run")] {
        let Some(said) = on_a_disk(&bench, "size=8m", "\"$@\"", &line) else { return };
        assert_eq!(said.code, Some(75), "{}", said.err);
        assert!(said.err.contains("a checkpoint in disk/o requires 16.8 MB, and its disk has 8."), "{}", said.err);
        assert!(said.err.contains("give another --output_dir"), "{}", said.err);
    }
}

#[test]
fn two_runs_in_one_directory_are_kept_apart() {
    let bench = bench("qwen2");
    let line = format!("{RUN} --out one --add_version false --save_steps 5");
    let mut first = bench.command();
    first.args(format!("{line} --max_steps 100000").split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = first.spawn().unwrap();
    let started = Instant::now();
    while !bench.path("one/checkpoint-5").exists() {
        assert!(started.elapsed() < Duration::from_secs(60) && first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let again = format!("{line} --max_steps 100000 --resume_from_checkpoint one/checkpoint-5");
    bench.fails(75, &again, &["another process trains in one", "--output_dir"]);
    first.kill().unwrap();
    first.wait().unwrap();
    // A process that was killed leaves no lock.
    bench.ok(&again.replace("100000", "6"));
}
