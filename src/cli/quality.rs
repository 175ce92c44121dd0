//! The flags and the text of the quality report.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use qft::error::{Error, escaped, shown};
use qft::export::{
    GgufOutput, OutputQuality, QualityReport, QualityRow, Report, check_page, cosine, percent, scientific, write_page,
};
use qft::manifest::{Figures, Summary};
use qft::size::ByteSize;

use super::table::columns;

/// Whether and where the quality of the encoding is shown.
#[derive(Debug, Args)]
#[command(next_help_heading = "Quality of the encoding")]
pub(super) struct QualityArgs {
    /// Print the errors of the encoded values of each tensor, sums by kind, and the worst ten.
    #[arg(long)]
    report: bool,
    /// Write the same as an HTML page, after all other files.
    #[arg(long, value_name = "FILE")]
    report_html: Option<PathBuf>,
}

impl QualityArgs {
    /// Whether errors have to be measured.
    pub(super) fn wanted(&self) -> bool {
        self.report || self.report_html.is_some()
    }

    /// Refuses what could only fail after the run.
    pub(super) fn check(&self, inputs: &[&Path], overwrite: bool) -> qft::Result<()> {
        self.report_html.as_deref().map_or(Ok(()), |page| check_page(page, inputs, overwrite))
    }

    /// Refuses a page in the release, where no digest would know it.
    pub(super) fn check_outside(&self, out: &Path) -> qft::Result<()> {
        match self.report_html.as_deref().filter(|page| page.starts_with(out)) {
            None => Ok(()),
            Some(page) => Err(Error::invalid(
                format!("{} would lie in the release {}", shown(page), shown(out)),
                "write the page beside it",
            )),
        }
    }

    /// What to print of the report.
    pub(super) fn text(&self, quality: &QualityReport) -> String {
        if self.report { text(quality) } else { String::new() }
    }

    /// Writes the page.
    pub(super) fn write(&self, quality: &QualityReport, overwrite: bool) -> qft::Result<()> {
        let Some(page) = &self.report_html else { return Ok(()) };
        write_page(page, &quality.to_html(), overwrite).map_err(|error| {
            let (problem, remedy) = error.split();
            Error::new(
                error.kind(),
                format!("the GGUF output is complete, but the quality report is not written: {problem}"),
                remedy.unwrap_or_else(|| "write the page elsewhere".to_owned()),
            )
        })
    }
}

/// The quality of the outputs of a run that measured it.
pub(super) fn quality(outputs: &[GgufOutput], report: &Report) -> QualityReport {
    QualityReport::new(outputs, &report.quality)
}

/// The report, for users: every tensor, sums by kind, the worst ten.
fn text(report: &QualityReport) -> String {
    let mut text = String::new();
    for output in &report.outputs {
        let _ = writeln!(text, "{}: {}", escaped(&output.file), output.mixture);
        tensors(output.rows.iter(), &mut text);
        text.push_str("by kind\n");
        sums(output, &mut text);
        let worst = output.worst();
        if !worst.is_empty() {
            let _ = writeln!(text, "the worst {} by cosine", worst.len());
            tensors(worst.into_iter(), &mut text);
        }
    }
    text
}

fn tensors<'a>(rows: impl Iterator<Item = &'a QualityRow>, text: &mut String) {
    let head = ["tensor", "type", "relative", "rmse", "max error", "cosine"].map(str::to_owned);
    let row = |row: &QualityRow| {
        let figures = row.quality.map(|q| Figures {
            rmse: q.rmse,
            relative: q.relative(),
            max_error: q.max_error,
            cosine: q.cosine,
        });
        let [relative, rmse, max_error, cosine] = cells(figures);
        [escaped(&row.name), row.encoding.to_string(), relative, rmse, max_error, cosine]
    };
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows.map(row)).collect();
    indented(&columns(&rows, [false, false, true, true, true, true]), text);
}

fn sums(output: &OutputQuality, text: &mut String) {
    let head = ["kind", "tensors", "size", "bits", "relative", "rmse", "max error", "lowest cosine"].map(str::to_owned);
    let row = |sum: Summary| {
        let [relative, rmse, max_error, cosine] = cells(sum.figures);
        let (tensors, size) = (sum.tensors.to_string(), ByteSize(sum.bytes).to_string());
        [escaped(&sum.name), tensors, size, format!("{:.2}", sum.bits_per_weight), relative, rmse, max_error, cosine]
    };
    let sums = output.kinds().into_iter().chain([output.total()]).map(row);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(sums).collect();
    indented(&columns(&rows, [false, true, true, true, true, true, true, true]), text);
}

/// Relative error, RMSE, largest error and cosine as text.
fn cells(figures: Option<Figures>) -> [String; 4] {
    let Some(Figures { rmse, relative, max_error, cosine: angle }) = figures else {
        return ["exact", "", "", ""].map(str::to_owned);
    };
    [percent(relative), scientific(rmse), scientific(max_error), cosine(angle)]
}

fn indented(lines: &[String], text: &mut String) {
    lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
}
