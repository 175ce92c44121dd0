//! `qft quantize`: from one GGUF file to another.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qft::export::{QuantizePlan, Run, quantize};
use qft::gguf::GgufModel;
use qft::gguf::mixture::FileType;
use qft::merge::{Overflow, Vector};

use super::bars::Bars;
use super::encoded::{plan_json, plan_text, report_json, report_text};
use super::encoding::EncodingArgs;
use super::quality::{QualityArgs, quality};
use super::{CANCEL, handle_signals, jobs, print};

/// Quantize a GGUF file: the same bytes as llama-quantize writes, several times as fast.
#[expect(clippy::doc_markdown, reason = "the text is shown in a terminal")]
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The model: a GGUF file, F32, F16 or BF16, or any part of a split one.
    model: PathBuf,
    /// The mixture: q4_k_m, q5_k_m, q6_k, q8_0, iq4_xs, ...
    #[arg(long = "type", value_name = "TYPE")]
    mixture: FileType,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Encode anew what is quantized already, which loses more than quantizing the original.
    #[arg(long)]
    allow_requantize: bool,
    /// Write the largest finite value where one is beyond the type's range, instead of refusing.
    #[arg(long)]
    allow_overflow: bool,
    /// Replace the file that is there.
    #[arg(long)]
    overwrite: bool,
    /// Take over the parts that an interrupted run finished, after checking them.
    #[arg(long)]
    resume: bool,
    /// Print the type of each tensor and the sizes, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Worker threads [default: one a core]. The bytes don't depend on it.
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    #[command(flatten)]
    encoding: EncodingArgs,
    #[command(flatten)]
    quality: QualityArgs,
}

pub(super) fn run(args: &QuantizeArgs) -> anyhow::Result<ExitCode> {
    let mut options = args.encoding.options(&[args.mixture], args.allow_requantize)?;
    options.measure = args.quality.wanted();
    let overflow = if args.allow_overflow { Overflow::Clamp } else { Overflow::Refuse };
    args.quality.check(&[&args.model], args.overwrite)?;
    let model = GgufModel::open(&args.model)?;
    let plan = QuantizePlan::new(model, &args.out, &options, overflow, args.overwrite)?;
    let outputs = std::slice::from_ref(&plan.output);
    if args.dry_run {
        print(&if args.json { plan_json(outputs) } else { plan_text(outputs) })?;
        return Ok(ExitCode::SUCCESS);
    }
    handle_signals();
    let bars = Bars::default();
    let jobs = jobs(args.jobs);
    let how = Run { jobs, vector: Vector::detect(), resume: args.resume, cancel: &CANCEL, progress: &bars };
    let report = quantize(&plan, &how);
    bars.clear();
    let report = report?;
    let measured = args.quality.wanted().then(|| quality(outputs, &report));
    let page = measured.as_ref().map_or(Ok(()), |quality| args.quality.write(quality, args.overwrite));
    print(&if args.json {
        report_json(outputs, &report, measured.as_ref())
    } else {
        let quality = measured.as_ref().map_or(String::new(), |quality| args.quality.text(quality));
        quality + &report_text(outputs, &report)
    })?;
    page?;
    Ok(ExitCode::SUCCESS)
}
