//! What `gguf` and `quantize` share: the flags of a job that writes one GGUF file, and carrying it out.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qft::export::{GgufOptions, GgufOutput, Report, Run};
use qft::gguf::mixture::FileType;
use qft::gpu::Cards;
use qft::merge::Overflow;

use super::bars::Bars;
use super::device::{self, DeviceArgs};
use super::encoded::{plan_json, plan_text, report_json, report_text, timings_text};
use super::encoding::{EncodingArgs, Mixtures, encoding_effort};
use super::flags::warned;
use super::quality::{QualityArgs, quality};
use super::{CANCEL, handle_signals, jobs, note, print};

/// What to write, where and how.
#[expect(clippy::doc_markdown, reason = "the text is shown in a terminal")]
#[derive(Debug, Args)]
pub(super) struct FileJobArgs {
    /// The type: f32, f16, bf16, q8_0, q4_k_m, q5_k_m, q6_k, iq4_xs, ...
    #[arg(long = "type", value_name = "TYPE", value_parser = Mixtures, hide_possible_values = true)]
    mixture: FileType,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    /// Write the largest finite value instead of a value outside the type's range, which is refused otherwise.
    #[arg(long)]
    allow_overflow: bool,
    /// Replace an existing file of this name, or all parts of it.
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Use the parts that an interrupted run finished, after checking them.
    #[arg(long)]
    resume: bool,
    /// Print the type of each tensor and the sizes, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print where the time went.
    #[arg(long)]
    timings: bool,
    /// Worker threads [default: one a core]. The bytes don't depend on it.
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    encoding: EncodingArgs,
    #[command(flatten)]
    pub(super) quality: QualityArgs,
}

impl FileJobArgs {
    /// The options of the one output.
    pub(super) fn options(&self, allow_requantize: bool) -> qft::Result<GgufOptions> {
        let options = self.encoding.options(&[self.mixture], allow_requantize)?;
        Ok(GgufOptions { measure: self.quality.wanted(), ..options })
    }

    /// The type, as it may be typed.
    pub(super) fn type_name(&self) -> String {
        self.mixture.name().to_lowercase()
    }

    /// The GPUs for reading that many bytes of that many weights.
    pub(super) fn open_cards(&self, input: u64, weights: u64) -> Cards {
        if self.dry_run {
            return Cards::none();
        }
        self.device.open(jobs(self.jobs), &encoding_effort(input, weights, &[self.mixture], &self.encoding))
    }

    /// What happens to a finite value outside the output type's range.
    pub(super) fn overflow(&self) -> Overflow {
        if self.allow_overflow { Overflow::Clamp } else { Overflow::Refuse }
    }

    /// Prints the plan, or carries it out by `run` and prints what came out.
    pub(super) fn carry_out(
        &self,
        outputs: &[GgufOutput],
        warnings: &[String],
        cards: &Cards,
        run: impl FnOnce(&Run<'_>) -> qft::Result<Report>,
    ) -> anyhow::Result<ExitCode> {
        warnings.iter().for_each(|warning| note(&format!("warning: {}", warned(warning))));
        if self.dry_run {
            print(&if self.json { plan_json(outputs) } else { plan_text(outputs) })?;
            return Ok(ExitCode::SUCCESS);
        }
        handle_signals();
        let bars = Bars::of(format!("encode {}", self.mixture));
        let jobs = jobs(self.jobs);
        let how = Run { jobs, cards, resume: self.resume, cancel: &CANCEL, progress: &bars, ..Run::default() };
        let report = run(&how);
        bars.clear();
        let report = report?;
        device::warn(cards, &report.cards);
        let measured = self.quality.wanted().then(|| quality(outputs, &report));
        let page = measured.as_ref().map_or(Ok(()), |quality| self.quality.write(quality, self.overwrite));
        print(&if self.json {
            report_json(outputs, &report, measured.as_ref())
        } else {
            let quality = measured.as_ref().map_or(String::new(), |quality| self.quality.text(quality));
            let timings = if self.timings { timings_text(&report.timings) } else { String::new() };
            quality + &report_text(outputs, &report) + &device::text(&report.cards) + &timings
        })?;
        page?;
        Ok(ExitCode::SUCCESS)
    }
}
