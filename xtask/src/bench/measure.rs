//! Seconds and memory of one run of a program.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::machine::{kib, proc_value};

const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// What one run took.
pub(super) struct Run {
    pub(super) seconds: f64,
    pub(super) memory: Memory,
    /// What it printed.
    pub(super) printed: String,
    /// What it printed as errors.
    pub(super) complaints: String,
}

impl Run {
    /// The last line that it printed, the heads and rows of lists aside.
    pub(super) fn said(&self) -> &str {
        let listed = |line: &str| line.starts_with(' ') || line.ends_with(':');
        self.printed.lines().rfind(|line| !listed(line)).unwrap_or_default()
    }
}

/// The most memory that was seen, in KiB.
#[derive(Default, Clone, Copy)]
pub(super) struct Memory {
    /// Of its own: heap and stacks, without the files that it maps.
    pub(super) anonymous: u64,
    /// All that was resident, mapped files included.
    pub(super) resident: u64,
}

impl Memory {
    /// The larger of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self { anonymous: self.anonymous.max(other.anonymous), resident: self.resident.max(other.resident) }
    }

    /// The most of all runs.
    pub(super) fn most(runs: &[Run]) -> Self {
        runs.iter().map(|run| run.memory).reduce(Self::max).unwrap_or_default()
    }

    /// Anonymous and resident, in MiB.
    pub(super) fn mib(self) -> [u64; 2] {
        [self.anonymous.div_ceil(1024), self.resident.div_ceil(1024)]
    }
}

/// The median of the runs' seconds; zero without a run.
pub(super) fn median(runs: &[Run]) -> f64 {
    let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let middle = |i: usize| seconds.get(i).copied().unwrap_or(0.0);
    f64::midpoint(middle(seconds.len().saturating_sub(1) / 2), middle(seconds.len() / 2))
}

/// The least of the runs' seconds; zero without a run.
pub(super) fn least(runs: &[Run]) -> f64 {
    runs.iter().map(|run| run.seconds).reduce(f64::min).unwrap_or(0.0)
}

/// Writes out what earlier runs left in memory, so that the next one does not wait for it.
pub(super) fn settle(dir: &Path) -> anyhow::Result<()> {
    let status = Command::new("sync").arg("-f").arg(dir).status().context("sync could not be started")?;
    ensure!(status.success(), "sync -f {}: {status}", dir.display());
    Ok(())
}

/// Runs `lines` one after the other.
pub(super) fn run(lines: &[Vec<OsString>]) -> anyhow::Result<Run> {
    let mut total = Run { seconds: 0.0, memory: Memory::default(), printed: String::new(), complaints: String::new() };
    for line in lines {
        let run = run_one(line)?;
        total = Run { seconds: total.seconds + run.seconds, memory: total.memory.max(run.memory), ..run };
    }
    Ok(total)
}

fn run_one(line: &[OsString]) -> anyhow::Result<Run> {
    let Some((program, args)) = line.split_first() else { bail!("an empty command line") };
    let name = program.display();
    let started = Instant::now();
    let child = Command::new(program).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("{name} could not be started"))?;
    let (pid, done) = (child.id(), AtomicBool::new(false));
    let (output, seconds, memory) = thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(pid, &done));
        let output = child.wait_with_output();
        let seconds = started.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        (output, seconds, sampler.join().unwrap_or_default())
    });
    let output = output.with_context(|| format!("{name} was lost"))?;
    let [printed, complaints] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(output.status.success(), "{name}: {}\n{}", output.status, complaints.trim_end());
    Ok(Run { seconds, memory, printed, complaints })
}

/// Looks at a process's memory until `done`.
fn sample(pid: u32, done: &AtomicBool) -> Memory {
    let path = format!("/proc/{pid}/status");
    let mut most = Memory::default();
    while !done.load(Ordering::Relaxed) {
        // A process that has just ended has no such file, which is no reason to fail.
        let value = |key| proc_value(&path, key).map_or(0, |value| kib(&value));
        most = most.max(Memory { anonymous: value("RssAnon"), resident: value("VmHWM") });
        thread::sleep(SAMPLE_EVERY);
    }
    most
}
