//! `qft inspect`: what is in a model, an adapter or a file.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qft::error::{escaped, shown};
use qft::inspect::{Inspection, KeyEntry, Kind, Stats, TensorEntry, inspect};
use qft::size::ByteSize;
use serde_json::Value;

use super::flags::warned;
use super::table::{columns, count, grouped};
use super::{jobs, print};

/// Show what is in a model, an adapter, or a safetensors or GGUF file.
///
/// Reads headers only; with --stats, it reads the values, too.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model's or adapter's directory, or one .safetensors or .gguf file; of a split model, any part.
    path: PathBuf,
    /// Smallest, largest and mean value, deviation, and how many are zero, NaN or infinite, of every tensor.
    #[arg(long)]
    stats: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Threads that read values [default: one a core].
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let found = inspect(&args.path, args.stats, jobs(args.jobs))?;
    if args.json {
        print(&format!("{:#}\n", serde_json::to_value(&found)?))?;
    } else {
        print(&text(&found, args.stats))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(found: &Inspection, with_stats: bool) -> String {
    let kind = match found.kind {
        Kind::Model => "model",
        Kind::Adapter => "adapter",
        Kind::File => "file",
        Kind::Gguf => "gguf",
    };
    let mut out = String::new();
    let _ = write!(
        out,
        "{kind} {}: {}, {} parameters, {}",
        shown(&found.path),
        count(found.tensors.len(), "tensor"),
        grouped(found.parameters),
        ByteSize(found.bytes)
    );
    if let Some(gguf) = &found.gguf {
        let _ = write!(out, ", {:.2} bits per weight", gguf.bits_per_weight);
    }
    out.push('\n');
    for (key, value) in settings(found) {
        let _ = writeln!(out, "  {key}: {}", escaped(&value));
    }
    for entry in found.gguf.iter().flat_map(|gguf| &gguf.keys) {
        let _ = writeln!(out, "  {}", key_line(entry));
    }
    let lines = if with_stats {
        let head = ["min", "max", "mean", "std", "zeros", "nan", "inf"].map(str::to_owned);
        let mut rows = vec![row(None, head)];
        rows.extend(found.tensors.iter().map(|t| row(Some(t), t.stats.map_or_else(not_computed, cells))));
        columns(&rows, [false, false, false, true, true, true, true, true, true, true])
    } else {
        let rows: Vec<_> = found
            .tensors
            .iter()
            .map(|t| {
                [
                    escaped(&t.name),
                    t.dtype.clone(),
                    format!("{:?}", t.shape),
                    ByteSize(t.bytes).to_string(),
                    escaped(&t.file),
                ]
            })
            .collect();
        columns(&rows, [false, false, false, true, false])
    };
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
    for warning in &found.warnings {
        let _ = writeln!(out, "warning: {}", warned(warning));
    }
    out
}

/// The settings that users look for first.
fn settings(found: &Inspection) -> Vec<(&'static str, String)> {
    const KEYS: [&str; 14] = [
        "architectures",
        "model_type",
        "torch_dtype",
        "dtype",
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "tie_word_embeddings",
        "peft_type",
        "peft_version",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "use_rslora",
    ];
    let value = |key| found.config.as_ref()?.get(key).filter(|v| !v.is_null()).map(|v| (key, v.to_string()));
    KEYS.into_iter().filter_map(value).collect()
}

/// Longest text of a value, in characters, that is shown whole.
const WIDEST: usize = 100;

/// Key, type and value of GGUF on one line.
fn key_line(KeyEntry { key, kind, count, value }: &KeyEntry) -> String {
    let (value, more) = match (value, count) {
        (Value::Array(first), Some(count)) => {
            let items: Vec<String> = first.iter().map(|item| short(&item.to_string())).collect();
            let more = if first.len() < *count { ", ..." } else { "" };
            (items.join(", "), more)
        }
        (other, _) => (short(&other.to_string()), ""),
    };
    let kind = count.map_or_else(|| kind.clone(), |count| format!("{kind} of {}", grouped(count as u64)));
    format!("{}: {kind} {}{more}", escaped(key), escaped(&value)).trim_end().to_owned()
}

/// The start of `text`.
fn short(text: &str) -> String {
    match text.char_indices().nth(WIDEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn row(tensor: Option<&TensorEntry>, [a, b, c, d, e, f, g]: [String; 7]) -> [String; 10] {
    let form = tensor.map(|t| [escaped(&t.name), t.dtype.clone(), format!("{:?}", t.shape)]).unwrap_or_default();
    let [name, dtype, shape] = form;
    [name, dtype, shape, a, b, c, d, e, f, g]
}

fn not_computed() -> [String; 7] {
    let mut cells = <[String; 7]>::default();
    "not computed".clone_into(&mut cells[0]);
    cells
}

fn cells(s: Stats) -> [String; 7] {
    let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.4e}"));
    let [min, max, mean, std] = [s.min, s.max, s.mean, s.std].map(number);
    let [zeros, nan, inf] = [s.zeros, s.nan, s.inf].map(grouped);
    [min, max, mean, std, zeros, nan, inf]
}
