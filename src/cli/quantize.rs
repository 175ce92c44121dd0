//! `qft quantize`: from one GGUF file to another.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qft::error::{Error, quoted, shown};
use qft::export::QuantizePlan;
use qft::ggml::TensorType;
use qft::gguf::GgufModel;

use super::file_job::FileJobArgs;

/// Quantize a GGUF file: the same bytes as llama-quantize writes, several times as fast.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The model: a GGUF file, F32, F16 or BF16, or any part of a split one.
    model: PathBuf,
    /// Encode quantized weights again, which gives larger errors than encoding the original.
    #[arg(long)]
    allow_requantize: bool,
    #[command(flatten)]
    job: FileJobArgs,
}

pub(super) fn run(args: &QuantizeArgs) -> anyhow::Result<ExitCode> {
    let job = &args.job;
    job.quality.check(&[&args.model], job.overwrite)?;
    if args.model.is_dir() {
        return Err(no_file(args).into());
    }
    let model = GgufModel::open(&args.model)?;
    // What is quantized already is decoded on the processor, whatever the device.
    let floats = [TensorType::F32, TensorType::F16, TensorType::BF16];
    let of_floats = || model.tensors.iter().filter(|tensor| floats.contains(&tensor.info().kind));
    let input = of_floats().map(|tensor| tensor.bytes().len() as u64).sum();
    let weights = of_floats().map(|tensor| tensor.info().elements() as u64).sum();
    let cards = job.open_cards(input, weights);
    let plan = QuantizePlan::new(model, &job.out, &job.options(args.allow_requantize)?, job.overflow(), job.overwrite)?;
    job.carry_out(std::slice::from_ref(&plan.output), &plan.warnings, &cards, |how| plan.run(how))
}

/// Says what to do with a directory: a model for transformers, or one that holds GGUF files.
fn no_file(args: &QuantizeArgs) -> Error {
    let dir = &args.model;
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let first = files.filter(|path| path.extension().is_some_and(|ending| ending == "gguf")).min();
    let remedy = match first {
        Some(file) if !dir.join("config.json").exists() => format!("give a file in it, such as {}", shown(&file)),
        _ => format!(
            "to convert a model's directory, make a GGUF file with qft gguf {} --type {} --out {}",
            quoted(dir),
            args.job.type_name(),
            quoted(&args.job.out)
        ),
    };
    Error::invalid(format!("{} is a directory, not a GGUF file", shown(dir)), remedy)
}
