//! The table, where the time of the exports went, and what was promised.

use std::collections::BTreeSet;

use super::{AUTO, COPY, CPU, CUDA, OUTPUTS, PEFT, Q4_K_M, SHARDS, name};
use crate::bench::contender::{self, Contender, find, target};
use crate::bench::data::Data;

/// The seconds of the whole model.
const SECONDS: [(&str, f64); 2] = [(SHARDS, 2.7), (Q4_K_M, 5.0)];
const TIMES_PEFT: f64 = 14.0;
/// Weights a second in the kernels.
const THROUGHPUT: f64 = 10e9;
/// Medians of few runs that are closer than this are equal.
const NOISE: f64 = 1.1;
/// The row of the kernels' seconds in what `--timings` prints.
const KERNELS: &str = "kernels";
/// The stage of the peer that a long-lived process would pay for once.
const IMPORTS: &str = "import";

/// A Markdown table of all contenders.
pub(super) fn table(contenders: &[Contender]) -> String {
    contender::table(contenders, &[(COPY, COPY), ("PEFT", PEFT)])
}

/// What the middle run of each export printed, on the processor and on the GPU.
pub(super) fn breakdowns(contenders: &[Contender]) -> String {
    let exports = OUTPUTS.iter().flat_map(|output| [CPU, CUDA].map(|device| name(output.name, device)));
    let text = |name: String| {
        let run = find(contenders, &name)?.middle_run()?;
        Some(format!("{name}, a run of {:.2} s:\n{}{}", run.seconds, run.printed, run.complaints))
    };
    exports.filter_map(text).collect::<Vec<_>>().join("\n")
}

/// What was promised, and what was seen.
pub(super) fn targets(contenders: &[Contender], data: &Data) -> String {
    let median = |name: &str| find(contenders, name).map(Contender::median);
    let on = |output, device| median(&name(output, device));
    let mut lines = Vec::new();
    for (output, most) in SECONDS.iter().filter(|_| data.is_whole()) {
        if let Some(seconds) = on(output, CUDA) {
            lines.push(target(seconds <= *most, &format!("{output} in at most {most} s"), &format!("{seconds:.2} s")));
        }
    }
    if !data.is_whole() {
        lines.push("the targets in seconds are for the complete model, without --layers".to_owned());
    }
    if let (Some(cuda), Some(peft)) = (on(SHARDS, CUDA), median(PEFT)) {
        let imports =
            find(contenders, PEFT).and_then(Contender::middle_run).and_then(|run| stage(&run.printed, IMPORTS));
        let without = imports.map_or_else(String::new, |imports| {
            format!(", {:.1}x without its imports ({:.1} s)", (peft - imports) / cuda, peft - imports)
        });
        let promised = format!("{SHARDS} at least {TIMES_PEFT}x as fast as {PEFT}");
        lines.push(target(peft >= TIMES_PEFT * cuda, &promised, &format!("{:.1}x{without}", peft / cuda)));
    }
    let kernels = find(contenders, &name(Q4_K_M, CUDA)).and_then(Contender::middle_run);
    if let Some(seconds) = kernels.and_then(|run| stage(&run.printed, KERNELS)).filter(|seconds| *seconds > 0.0) {
        let speed = data.weights as f64 / seconds;
        let promised =
            format!("{Q4_K_M} at {:.0} billion weights a second in the kernels, merging included", THROUGHPUT / 1e9);
        lines.push(target(speed >= THROUGHPUT, &promised, &format!("{:.1} billion", speed / 1e9)));
    }
    for output in &OUTPUTS {
        if let [Some(cpu), Some(cuda), Some(auto)] = [CPU, CUDA, AUTO].map(|device| on(output.name, device)) {
            let seen = format!("auto {auto:.2} s, cpu {cpu:.2} s, cuda {cuda:.2} s");
            lines.push(target(
                auto <= cpu.min(cuda) * NOISE,
                &format!("{}: auto is the faster of the two", output.name),
                &seen,
            ));
        }
    }
    let other = outputs_that_differ(contenders);
    let seen = if other.is_empty() { "every file of every run".to_owned() } else { other.join(", ") + " differ" };
    lines.push(target(other.is_empty(), "the same bytes on every device, by SHA256SUMS", &seen));
    lines.join("\n")
}

/// The outputs whose runs wrote different bytes, or no checksums at all.
pub(super) fn outputs_that_differ(contenders: &[Contender]) -> Vec<&'static str> {
    let differ = |output: &&super::Output| {
        let exports = output.devices.iter().filter_map(|device| find(contenders, &name(output.name, device)));
        exports.flat_map(|export| &export.checksums).collect::<BTreeSet<_>>().len() != 1
    };
    OUTPUTS.iter().filter(differ).map(|output| output.name).collect()
}

/// The seconds after `name` in a text of stages, by lines or commas: `import 17.0, load 2.8` or `  kernels  0.52 s`.
fn stage(text: &str, name: &str) -> Option<f64> {
    let mut stages = text.lines().flat_map(|line| line.split(", "));
    stages.find_map(|stage| stage.trim().strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_stage_in_what_was_printed() {
        let table = "merged 3 of 5 tensors\nseconds of all threads:\n  upload    0.50 s\n  kernels  0.25 s\n";
        assert_eq!(stage(table, "kernels"), Some(0.25));
        assert_eq!(stage("import 17.0, load 2.8, merge 1.3", "load"), Some(2.8));
        assert_eq!(stage("kernels are fast\n", "kernels"), None);
        assert_eq!(stage(table, "download"), None);
    }
}
