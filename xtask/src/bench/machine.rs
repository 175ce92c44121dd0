//! The machine that a benchmark ran on, in one line.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// Processor, cores, memory, the filesystem that holds `dir`, and how busy it is: figures from a busy machine tell little.
pub(super) fn describe(dir: &Path) -> anyhow::Result<String> {
    let cpu = proc_value("/proc/cpuinfo", "model name")?;
    let memory = proc_value("/proc/meminfo", "MemTotal")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(format!(
        "Machine: {cpu}, {cores} cores, {:.0} GiB of memory, {}; load average at the start {}",
        kib(&memory) as f64 / 1024.0 / 1024.0,
        filesystem(dir)?,
        load.split_whitespace().next().unwrap_or("unknown")
    ))
}

/// The GPUs as nvidia-smi sees them, in one line: name, memory, driver.
pub(super) fn cards() -> String {
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return "GPUs: unknown, since nvidia-smi could not be run".to_owned();
    };
    let lines = String::from_utf8_lossy(&output.stdout).trim_end().replace('\n', "; ");
    format!("GPUs (name, memory, driver): {lines}")
}

/// The first value of `key` in a file of `key: value` lines, as /proc has them.
pub(super) fn proc_value(path: &str, key: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}: the benchmark needs Linux"))?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned());
    Ok(found.unwrap_or_else(|| "unknown".to_owned()))
}

/// The number of a value such as `123 kB`.
pub(super) fn kib(value: &str) -> u64 {
    value.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn filesystem(dir: &Path) -> anyhow::Result<String> {
    let output = Command::new("df").arg("--output=fstype").arg(dir).output().context("df could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().last().unwrap_or("unknown").trim().to_owned())
}
