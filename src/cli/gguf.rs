//! `qft gguf`: from a Hugging Face model to one GGUF file.

use std::process::ExitCode;

use clap::Args;
use qft::checkpoint::{Checkpoint, Locator};
use qft::export::{Export, ExportPlan, Options};
use qft::gpu::Cards;

use super::encoding::ConversionArgs;
use super::file_job::FileJobArgs;
use super::models::{find_base, overwrite};

/// Convert a Hugging Face model to GGUF: the file of llama.cpp's converter and llama-quantize, in one pass.
///
/// `qft export --merge-lora --gguf TYPE` does the same while it merges an adapter.
#[derive(Debug, Args)]
pub(crate) struct GgufArgs {
    /// The model: a directory with safetensors, or a Hub id.
    model: String,
    #[command(flatten)]
    job: FileJobArgs,
    #[command(flatten)]
    conversion: ConversionArgs,
}

pub(super) fn run(args: &GgufArgs) -> anyhow::Result<ExitCode> {
    let (plan, cards) = plan(args)?;
    args.job.carry_out(&plan.gguf, &plan.warnings, &cards, |how| plan.run(how))
}

fn plan(args: &GgufArgs) -> qft::Result<(ExportPlan, Cards)> {
    let (dir, provenance) = find_base(&Locator::from_env(), Some(&args.model), None)?;
    let base = Checkpoint::open(&dir)?;
    let cards = args.job.open_cards(base.tensor_bytes(), base.weights());
    let options = Options {
        overflow: args.job.overflow(),
        overwrite: overwrite(args.job.overwrite, false),
        ..Options::file(args.conversion.apply(args.job.options(false)?))
    };
    args.job.quality.check(&[&dir], args.job.overwrite)?;
    Ok((Export::of(base).found(provenance).options(options).plan(&args.job.out)?, cards))
}
