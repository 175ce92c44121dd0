//! What commands print about GGUF outputs: the plan by tensor, the files that were written, and how good they are.

use std::fmt::Write;

use qft::error::{escaped, shown};
use qft::export::{EncodedTensor, GgufOutput, Report};
use qft::gguf::Quality;
use qft::size::ByteSize;
use serde_json::{Value, json};

use super::table::{columns, count};

/// Tensors that the report names as the worst.
const WORST: usize = 10;

/// Each output with its files and the type of each tensor.
pub(super) fn describe(outputs: &[GgufOutput]) -> Value {
    let tensor = |t: &EncodedTensor| {
        let mut entry = json!({"name": t.name, "shape": t.shape, "type": t.kind.name(), "bytes": t.len});
        if let Some(wanted) = t.instead_of {
            entry["instead_of"] = json!(wanted.name());
        }
        if t.importance.is_some() {
            entry["imatrix"] = json!(true);
        }
        entry
    };
    let output = |output: &GgufOutput| {
        let file = |part: &qft::export::GgufPart| {
            let tensors: Vec<Value> = part.tensors.iter().map(tensor).collect();
            json!({"file": part.name, "bytes": part.len, "tensors": tensors})
        };
        json!({
            "type": output.choices.mixture.name(),
            "bytes": output.bytes(),
            "bits_per_weight": output.bits_per_weight(),
            "files": output.parts.iter().map(file).collect::<Vec<_>>(),
        })
    };
    outputs.iter().map(output).collect()
}

/// The plan, as JSON.
pub(super) fn plan_json(outputs: &[GgufOutput]) -> String {
    format!("{:#}\n", json!({"gguf": describe(outputs)}))
}

/// The plan, for people: the type of each tensor and the size of each file.
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
pub(super) fn report_json(outputs: &[GgufOutput], report: &Report) -> String {
    let files: Value = report
        .files
        .iter()
        .map(|(name, (bytes, digest))| json!({"file": name, "bytes": bytes, "sha256": digest}))
        .collect();
    let report = json!({
        "out": report.out.to_string_lossy(),
        "files": files,
        "gguf": describe(outputs),
        "quality": report.quality,
        "resumed": report.resumed,
        "seconds": report.seconds,
        "timings": report.timings,
    });
    format!("{report:#}\n")
}

/// What was written, for people.
pub(super) fn report_text(outputs: &[GgufOutput], report: &Report) -> String {
    let mut text = quality_text(outputs, report);
    text.push_str(&files_text(outputs, report));
    let seconds = report.seconds.max(1e-3);
    let _ = writeln!(text, "wrote {}: {} in {seconds:.1} s", shown(&report.out), size(report.bytes));
    text
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

/// The errors of each tensor, a summary, and the worst ten by the angle; nothing where none were measured.
pub(super) fn quality_text(outputs: &[GgufOutput], report: &Report) -> String {
    let mut text = String::new();
    for output in outputs {
        let tensors = output.parts.iter().flat_map(|part| {
            let measured = report.quality.get(&part.name);
            part.tensors.iter().filter_map(move |t| Some((t, *measured?.get(&t.name)?)))
        });
        let measured: Vec<(&EncodedTensor, Quality)> = tensors.collect();
        if measured.is_empty() {
            continue;
        }
        let head = ["tensor", "type", "rmse", "max error", "cosine"].map(str::to_owned);
        let row = |(t, q): &(&EncodedTensor, Quality)| {
            let [rmse, max_error] = [q.rmse, q.max_error].map(|v| format!("{v:.3e}"));
            [escaped(&t.name), t.kind.to_string(), rmse, max_error, format!("{:.6}", q.cosine)]
        };
        let table = |text: &mut String, rows: &mut dyn Iterator<Item = [String; 5]>| {
            let rows: Vec<[String; 5]> = std::iter::once(head.clone()).chain(rows).collect();
            for line in columns(&rows, [false, false, true, true, true]) {
                let _ = writeln!(text, "  {line}");
            }
        };
        let _ = writeln!(text, "{}", output.choices.mixture);
        table(&mut text, &mut measured.iter().map(row));
        let mut worst = measured.clone();
        worst.sort_by(|a, b| a.1.cosine.total_cmp(&b.1.cosine));
        let _ = writeln!(text, "the worst {} by cosine", WORST.min(worst.len()));
        table(&mut text, &mut worst.iter().take(WORST).map(row));
    }
    text
}
