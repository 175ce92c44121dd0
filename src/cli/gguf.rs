//! `qft gguf`: from a Hugging Face model to one GGUF file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qft::checkpoint::{Checkpoint, Locator};
use qft::error::escaped;
use qft::export::{self, ExportPlan, Options, Run};
use qft::gguf::mixture::FileType;
use qft::merge::{Overflow, Vector};

use super::bars::Bars;
use super::encoded::{plan_json, plan_text, report_json, report_text};
use super::encoding::{ConversionArgs, EncodingArgs};
use super::models::find_base;
use super::quality::{QualityArgs, quality};
use super::{CANCEL, handle_signals, jobs, note, print};

/// Make a GGUF file of a Hugging Face model: what llama.cpp's converter and llama-quantize make of it, in one pass.
///
/// `qft export --merge-lora --gguf TYPE` does the same while it merges an adapter.
#[expect(clippy::doc_markdown, reason = "the text is shown in a terminal")]
#[derive(Debug, Args)]
pub(crate) struct GgufArgs {
    /// The model: a directory with safetensors, or a Hub id.
    model: String,
    /// The type: f32, f16, bf16, q8_0, q4_k_m, q5_k_m, q6_k, iq4_xs, ...
    #[arg(long = "type", value_name = "TYPE")]
    mixture: FileType,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
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
    conversion: ConversionArgs,
    #[command(flatten)]
    quality: QualityArgs,
}

pub(super) fn run(args: &GgufArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(args)?;
    if args.dry_run {
        print(&if args.json { plan_json(&plan.gguf) } else { plan_text(&plan.gguf) })?;
        return Ok(ExitCode::SUCCESS);
    }
    plan.warnings.iter().for_each(|warning| note(&format!("warning: {}", escaped(warning))));
    handle_signals();
    let bars = Bars::default();
    let jobs = jobs(args.jobs);
    let how = Run { jobs, vector: Vector::detect(), resume: args.resume, cancel: &CANCEL, progress: &bars };
    let report = export::run(&plan, &how);
    bars.clear();
    let report = report?;
    let measured = args.quality.wanted().then(|| quality(&plan.gguf, &report));
    let page = measured.as_ref().map_or(Ok(()), |quality| args.quality.write(quality, args.overwrite));
    print(&if args.json {
        report_json(&plan.gguf, &report, measured.as_ref())
    } else {
        let quality = measured.as_ref().map_or(String::new(), |quality| args.quality.text(quality));
        quality + &report_text(&plan.gguf, &report)
    })?;
    page?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &GgufArgs) -> qft::Result<ExportPlan> {
    let (dir, provenance) = find_base(&Locator::from_env(), Some(&args.model), &[])?;
    let mut gguf = args.conversion.apply(args.encoding.options(&[args.mixture], false)?);
    gguf.measure = args.quality.wanted();
    let options = Options {
        max_shard: None,
        dtype: None,
        overflow: if args.allow_overflow { Overflow::Clamp } else { Overflow::Refuse },
        overwrite: args.overwrite,
        gguf: Some(gguf),
        as_file: true,
    };
    args.quality.check(&[&dir], args.overwrite)?;
    ExportPlan::new(Checkpoint::open(&dir)?, provenance, Vec::new(), &args.out, options)
}
