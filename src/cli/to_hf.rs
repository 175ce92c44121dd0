//! `qft to-hf`: from flags to a plan, to a report.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qft::error::shown;
use qft::export::Run;
use qft::export::to_hf::{ToHfOptions, ToHfPlan, ToHfReport};
use qft::gguf::GgufModel;
use qft::merge::Float;
use qft::size::ByteSize;
use serde_json::{Value, json};

use super::bars::Bars;
use super::flags::warned;
use super::models::overwrite;
use super::table::count;
use super::{CANCEL, handle_signals, jobs, note, print};

/// Convert a GGUF model to a directory that transformers loads.
///
/// Every tensor is decoded, put in transformers' order and written as safetensors; config.json, generation_config.json,
/// the tokenizer and the chat templates are made from the file's metadata. What can't be converted is refused by
/// name. The values are those of the GGUF file, with the errors of its quantization.
///
/// A model without output.weight is tied. One with it is untied, and keeps both matrices as the file has them; --tie
/// writes the head's weight, which quantizers give more bits, for both.
#[expect(clippy::doc_markdown, reason = "the text is shown in a terminal")]
#[derive(Debug, Args)]
pub(crate) struct ToHfArgs {
    /// The model: a GGUF file, or any part of a split one.
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// The destination; must be empty or absent unless --overwrite is given.
    #[arg(long, alias = "output-dir", value_name = "DIR")]
    out: PathBuf,
    /// Maximum tensor bytes of a weight file: KB, MB, GB, TB as the Hub counts them, or KiB, MiB, GiB, TiB.
    #[arg(long, alias = "max-shard-size", value_name = "SIZE", default_value = "5GB")]
    max_shard: ByteSize,
    /// Type of the weights: bf16, f16 or f32.
    #[arg(long, alias = "torch-dtype", value_name = "TYPE", default_value = "bf16")]
    dtype: Float,
    /// Use the weight of the head for the embeddings too, and tie them.
    #[arg(long)]
    tie: bool,
    /// Copy the tokenizer's files from this directory instead of making them.
    #[arg(long, alias = "tokenizer-dir", value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Exchange an existing destination as a whole, in one step. Files that are not part of a model are not deleted.
    #[arg(long)]
    overwrite: bool,
    /// With --overwrite: also delete the other files of the destination.
    #[arg(long, requires = "overwrite")]
    delete_others: bool,
    /// Use the weight files that an interrupted run of the same conversion finished, after checking them.
    #[arg(long)]
    resume: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Worker threads [default: one a core]. The bytes don't depend on it.
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &ToHfArgs) -> anyhow::Result<ExitCode> {
    let options = ToHfOptions {
        max_shard: args.max_shard,
        dtype: args.dtype,
        tie: args.tie,
        tokenizer: args.tokenizer.clone(),
        overwrite: overwrite(args.overwrite, args.delete_others),
    };
    let plan = ToHfPlan::new(GgufModel::open(&args.model)?, &args.out, options)?;
    if !args.json {
        plan.warnings.iter().for_each(|warning| note(&format!("warning: {}", warned(warning))));
    }
    handle_signals();
    let bars = Bars::of("decode");
    let how = Run { jobs: jobs(args.jobs), resume: args.resume, cancel: &CANCEL, progress: &bars, ..Run::default() };
    let report = plan.run(&how);
    bars.clear();
    let report = report?;
    print(&if args.json { report_json(&plan, &report) } else { report_text(&plan, &report) })?;
    Ok(ExitCode::SUCCESS)
}

fn report_text(plan: &ToHfPlan, report: &ToHfReport) -> String {
    let mut text = String::new();
    for shard in &plan.shards {
        if let Some((size, digest)) = report.files.get(&shard.name) {
            let _ = writeln!(text, "{}  {:>9}  sha256 {digest:.16}...", shard.name, ByteSize(*size).to_string());
        }
    }
    let seconds = report.seconds.max(1e-3);
    let _ = writeln!(
        text,
        "decoded {} into {}: {}, {} in {seconds:.1} s ({:.2} GB/s)",
        count(plan.tensors(), "tensor"),
        shown(&report.out),
        count(report.files.len(), "file"),
        ByteSize(report.bytes),
        report.bytes as f64 / 1e9 / seconds
    );
    text
}

fn report_json(plan: &ToHfPlan, report: &ToHfReport) -> String {
    let files: serde_json::Map<String, Value> = report
        .files
        .iter()
        .map(|(name, (size, sha256))| (name.clone(), json!({"size": size, "sha256": sha256})))
        .collect();
    let report = json!({
        "out": report.out.to_string_lossy(),
        "bytes": report.bytes,
        "seconds": report.seconds,
        "tensors": plan.tensors(),
        "files": files,
        "warnings": plan.warnings,
    });
    format!("{report:#}\n")
}
