//! What commands print about GGUF outputs: the plan by tensor, and the files that were written. How good
//! they are is in `quality`.

use std::fmt::Write;

use qft::error::{escaped, shown};
use qft::export::{GgufOutput, GgufSummary, QualityReport, Report, Timings};
use qft::size::ByteSize;
use serde_json::{Value, json};

use super::table::{columns, count};

/// Each output with its files and the type of each tensor.
pub(super) fn summaries(outputs: &[GgufOutput]) -> Vec<GgufSummary> {
    outputs.iter().map(GgufOutput::summary).collect()
}

/// The plan, as JSON.
pub(super) fn plan_json(outputs: &[GgufOutput]) -> String {
    format!("{:#}\n", json!({"gguf": summaries(outputs)}))
}

/// The plan, for users: the type of each tensor and the size of each file.
pub(super) fn plan_text(outputs: &[GgufOutput]) -> String {
    let mut text = String::new();
    for output in outputs {
        for part in &output.parts {
            let rows: Vec<[String; 4]> = part
                .tensors
                .iter()
                .map(|t| {
                    let fallback = t.instead_of.map_or(String::new(), |wanted| format!(" (rows don't fit {wanted})"));
                    [escaped(&t.name), format!("{:?}", t.shape), format!("{}{fallback}", t.kind), size(t.len)]
                })
                .collect();
            columns(&rows, [false, false, false, true]).iter().for_each(|line| text.push_str(&format!("  {line}\n")));
            let _ =
                writeln!(text, "{}  {}, {}", escaped(&part.name), count(part.tensors.len(), "tensor"), size(part.len));
        }
        let _ = writeln!(text, "{}: {}", output.choices.mixture, summary(output));
    }
    text
}

/// Size and bits per weight of an output, and how many tensors have which type.
pub(super) fn summary(output: &GgufOutput) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for tensor in output.parts.iter().flat_map(|part| &part.tensors) {
        match kinds.iter_mut().find(|(name, _)| *name == tensor.kind.name()) {
            Some((_, n)) => *n += 1,
            None => kinds.push((tensor.kind.name(), 1)),
        }
    }
    let kinds: Vec<String> = kinds.iter().map(|(name, n)| format!("{n} {name}")).collect();
    format!("{}, {:.2} bits per weight: {}", size(output.bytes()), output.bits_per_weight(), kinds.join(", "))
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// What was written, as JSON.
pub(super) fn report_json(outputs: &[GgufOutput], report: &Report, quality: Option<&QualityReport>) -> String {
    let files: Value = report
        .files
        .iter()
        .map(|(name, (bytes, digest))| json!({"file": name, "bytes": bytes, "sha256": digest}))
        .collect();
    let report = json!({
        "out": report.out.to_string_lossy(),
        "files": files,
        "gguf": summaries(outputs),
        "quality": report.quality,
        "quality_summary": quality.map(QualityReport::sums),
        "resumed": report.resumed,
        "seconds": report.seconds,
        "timings": report.timings,
    });
    format!("{report:#}\n")
}

/// What was written, for users.
pub(super) fn report_text(outputs: &[GgufOutput], report: &Report) -> String {
    let mut text = files_text(outputs, report);
    let seconds = report.seconds.max(1e-3);
    let _ = writeln!(text, "wrote {}: {} in {seconds:.1} s", shown(&report.out), size(report.bytes));
    text
}

/// Where the time went.
pub(super) fn timings_text(t: &Timings) -> String {
    let stages = [
        ("fill on the processor", t.fill),
        ("read for the GPUs", t.read),
        ("upload", t.upload),
        ("kernels", t.kernel),
        ("download", t.download),
        ("GPU lanes, all", t.lanes),
        ("idle, GPU lanes", t.lane_idle),
        ("digest", t.digest),
        ("digest of inputs", t.input_digest),
        ("idle, workers", t.idle),
        ("write", t.write),
        ("sync", t.sync),
    ];
    let rows: Vec<[String; 2]> = stages.iter().map(|(name, s)| [(*name).to_owned(), format!("{s:.2} s")]).collect();
    let lines = columns(&rows, [false, true]);
    lines.iter().fold("seconds of all threads:\n".to_owned(), |text, line| format!("{text}  {line}\n"))
}

/// A line for each file, and one for each output.
pub(super) fn files_text(outputs: &[GgufOutput], report: &Report) -> String {
    let mut text = String::new();
    for output in outputs {
        for part in &output.parts {
            if let Some((bytes, digest)) = report.files.get(&part.name) {
                let _ = writeln!(text, "{}  {:>9}  sha256 {digest:.16}...", escaped(&part.name), size(*bytes));
            }
        }
        let _ = writeln!(text, "  {}: {}", output.choices.mixture, summary(output));
    }
    text
}
