//! `qft verify`: digests, lint, and the audit of a release.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use qft::Error;
use qft::adapter::Adapter;
use qft::audit::{Audit, Audited, Difference, Recipe, Verdict};
use qft::checkpoint::{Checkpoint, Locator};
use qft::error::{escaped, shown};
use qft::export::Run;
use qft::gguf::imatrix::Imatrix;
use qft::size::ByteSize;
use qft::verify::{Verification, verify};
use serde_json::{Value, json};

use super::bars::Bars;
use super::flags::warned;
use super::models::{AdapterSpec, find_adapters, find_base, newest_adapter};
use super::table::count;
use super::{CANCEL, EXIT_DIFFERENT, EXIT_INTERRUPTED, handle_signals, jobs, note, print};

/// Check a release: every digest, and every rule of its weights' formats, safetensors and GGUF.
///
/// With --audit, also recompute every tensor from the base and the adapters and compare byte for byte; and of a release
/// with a manifest every other file, the keys of GGUF files, and the manifest's own entries. What can't be checked is named.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The release, or one .gguf file.
    dir: PathBuf,
    /// Recompute every tensor from --base and --adapter, and report the first difference.
    #[arg(long)]
    audit: bool,
    /// The base: a directory or a Hub id [default: the one that the adapter names].
    #[arg(long, value_name = "DIR|ID", requires = "audit")]
    base: Option<String>,
    /// An adapter, with its weight after `=`, as it was given to export [default: the newest checkpoint below
    /// ./output, if the release was made from it].
    #[arg(long, value_name = "DIR|ID[=WEIGHT]", num_args = 1.., requires = "audit")]
    adapter: Vec<AdapterSpec>,
    /// The imatrix that the release's GGUF files were made with, if any.
    #[arg(long, value_name = "FILE", requires = "audit")]
    imatrix: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Worker threads [default: one a core].
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    match check(args) {
        // The library's own words are about a destination, and there is none.
        Err(error) if matches!(error.downcast_ref(), Some(Error::Interrupted { .. })) => {
            note("qft: interrupted");
            Ok(ExitCode::from(EXIT_INTERRUPTED))
        }
        done => done,
    }
}

fn check(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let audit = args.audit.then(|| audit(args)).transpose()?;
    handle_signals();
    let jobs = jobs(args.jobs);
    let mut result = with_bars("digest", jobs, |how| verify(&args.dir, how))?;
    let audited = audit.map(|audit| with_bars("audit", jobs, |how| audit.run(how))).transpose()?;
    let audited = audited.map(|Audited { verdict, problems, notes }| {
        result.extend(problems, notes);
        verdict
    });
    let seconds = started.elapsed().as_secs_f64();
    print(&if args.json {
        json(&result, audited.as_ref())
    } else {
        text(&args.dir, &result, audited.as_ref(), seconds)
    })?;
    let bad = problems(&result, audited.as_ref()) > 0;
    match audited {
        Some(Verdict::Failed(error)) if !bad => return Err(error.into()),
        Some(Verdict::Failed(error)) => note(&format!("error: {error}")),
        _ => {}
    }
    Ok(if bad { ExitCode::from(EXIT_DIFFERENT) } else { ExitCode::SUCCESS })
}

/// Calls `work` with a bar to show its progress.
fn with_bars<T>(job: &str, jobs: usize, work: impl FnOnce(&Run<'_>) -> qft::Result<T>) -> qft::Result<T> {
    let bars = Bars::of(job);
    let done = work(&Run { jobs, cancel: &CANCEL, progress: &bars, ..Run::default() });
    bars.clear();
    done
}

/// The audit that is asked for: what was named, or what the manifest and the adapter name.
fn audit(args: &VerifyArgs) -> qft::Result<Audit> {
    let locator = Locator::from_env();
    let recipe = Recipe::read(&args.dir);
    let adapters: Vec<Adapter> = match args.adapter.as_slice() {
        [] if !recipe.lists_adapters() && args.base.is_some() => Vec::new(),
        [] => recipe.unnamed_adapters(newest_adapter)?,
        named => find_adapters(&locator, named)?.into_iter().map(|found| found.adapter).collect(),
    };
    let (base, provenance) = find_base(&locator, args.base.as_deref(), adapters.first())?;
    let base = Checkpoint::open(&base)?;
    let imatrix = args.imatrix.as_deref().map(Imatrix::read).transpose()?;
    Ok(Audit::new(recipe, base).found(provenance).adapters(adapters).imatrix(imatrix))
}

const LEFT_OUT: &str = "left out: the release can't be opened";

fn verdict_json(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Agrees { .. } => json!({"first_difference": null}),
        Verdict::Differs(difference) => json!({"first_difference": difference}),
        Verdict::LeftOut => json!({"left_out": LEFT_OUT}),
        Verdict::Failed(error) => json!({"failed": error.to_string()}),
    }
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Agrees { files } => {
            let what = if *files { "every tensor and every file" } else { "every tensor" };
            format!("{what} is what the base and the adapters give, byte for byte")
        }
        Verdict::Differs(difference) => describe(difference),
        Verdict::LeftOut => LEFT_OUT.to_owned(),
        Verdict::Failed(_) => "failed".to_owned(),
    }
}

fn problems(result: &Verification, audited: Option<&Verdict>) -> usize {
    result.problems.len() + usize::from(matches!(audited, Some(Verdict::Differs(_))))
}

fn json(result: &Verification, audited: Option<&Verdict>) -> String {
    let mut report = json!(result);
    if let Some(audited) = audited {
        report["audit"] = verdict_json(audited);
    }
    format!("{report:#}\n")
}

fn text(dir: &Path, result: &Verification, audited: Option<&Verdict>, seconds: f64) -> String {
    let mut out = String::new();
    for problem in &result.problems {
        let file = if problem.file == "." { shown(dir) } else { problem.file.clone() };
        let _ = writeln!(out, "{file}: {}", problem.problem);
    }
    for warning in &result.warnings {
        let _ = writeln!(out, "warning: {}: {}", warning.file, warning.problem);
    }
    for note in &result.notes {
        let _ = writeln!(out, "note: {}", warned(note));
    }
    if let Some(audited) = audited {
        let _ = writeln!(out, "audit: {}", verdict_text(audited));
    }
    let tensors = count(result.tensors, "tensor");
    let checked = match result.digests {
        0 => format!("no digests to compare with; {tensors}"),
        n => format!("{} of {} and {tensors}", count(n, "digest"), ByteSize(result.bytes)),
    };
    let verdict = match (problems(result, audited), audited) {
        (0, Some(Verdict::Failed(_))) => "no problems, but no audit".to_owned(),
        (0, _) if result.digests == 0 => "no problems".to_owned(),
        (0, _) => "clean".to_owned(),
        (n, _) => count(n, "problem"),
    };
    let _ = writeln!(out, "{}: {verdict}; {checked} checked in {seconds:.1} s", shown(dir));
    out
}

fn describe(difference: &Difference) -> String {
    match difference {
        Difference::File { file, problem } => format!("{} {problem}", escaped(file)),
        Difference::Missing { tensor } => format!("tensor {} is missing", escaped(tensor)),
        Difference::Unexpected { tensor } => format!("tensor {} comes from neither base nor adapter", escaped(tensor)),
        Difference::Form { tensor, expected, found } => {
            format!("tensor {} should be {expected} and is {found}", escaped(tensor))
        }
        Difference::Value { tensor, row, column, expected, found } => format!(
            "the first difference is in tensor {} at row {row}, column {column}: it should be {expected} and is {found}",
            escaped(tensor)
        ),
    }
}
