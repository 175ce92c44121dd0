//! `qft verify`: digests, lint, and the audit of a release.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use qft::checkpoint::{Checkpoint, Locator, read_text};
use qft::error::{escaped, shown};
use qft::export::{Difference, MANIFEST, audit};
use qft::merge::{Float, Overflow, Vector};
use qft::size::ByteSize;
use qft::verify::{Verification, verify};
use serde_json::{Value, json};

use super::bars::Bars;
use super::models::{AdapterSpec, Found, find_adapters, find_base};
use super::table::count;
use super::{CANCEL, EXIT_DIFFERENT, handle_signals, jobs, print};

/// Check a release: every digest, and every rule of the safetensors format and of a sharded model.
///
/// With --audit, also recompute every tensor from the base and the adapters and compare byte for byte.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The release.
    dir: PathBuf,
    /// Recompute every tensor from --base and --adapter, and report the first difference.
    #[arg(long)]
    audit: bool,
    /// The base: a directory or a Hub id [default: the one that the adapter names].
    #[arg(long, value_name = "DIR|ID", requires = "audit")]
    base: Option<String>,
    /// An adapter, with its weight after `=`, as it was given to export.
    #[arg(long, value_name = "DIR|ID[=WEIGHT]", num_args = 1.., requires = "audit")]
    adapter: Vec<AdapterSpec>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Worker threads [default: one a core].
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let locator = Locator::from_env();
    let inputs = args.audit.then(|| inputs(&locator, args)).transpose()?;
    handle_signals();
    let bars = Bars::default();
    let jobs = jobs(args.jobs);
    let result = verify(&args.dir, jobs, &CANCEL, &bars);
    bars.clear();
    let result = result?;
    let difference = match inputs {
        Some((base, adapters)) => Some(run_audit(&args.dir, &base, &adapters, jobs)?),
        None => None,
    };
    if args.json {
        let mut report = json!(result);
        if let Some(difference) = &difference {
            report["audit"] = json!({"first_difference": difference});
        }
        print(&format!("{report:#}\n"))?;
    } else {
        print(&text(&args.dir, &result, difference.as_ref(), started.elapsed().as_secs_f64()))?;
    }
    let clean = result.problems.is_empty() && !matches!(difference, Some(Some(_)));
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DIFFERENT) })
}

/// The base and the adapters of an audit. A release that the manifest says has no adapters needs none.
fn inputs(locator: &Locator, args: &VerifyArgs) -> anyhow::Result<(PathBuf, Vec<Found>)> {
    let none = args.adapter.is_empty() && manifest(&args.dir).is_some_and(|m| m["adapters"] == json!([]));
    let adapters = if none { Vec::new() } else { find_adapters(locator, &args.adapter)? };
    let (base, _) = find_base(locator, args.base.as_deref(), &adapters)?;
    Ok((base, adapters))
}

fn manifest(dir: &Path) -> Option<Value> {
    serde_json::from_str(&read_text(&dir.join(MANIFEST)).ok()?).ok()
}

/// Audits with the options that the manifest records.
fn run_audit(dir: &Path, base: &Path, adapters: &[Found], jobs: usize) -> anyhow::Result<Option<Difference>> {
    let options = manifest(dir).map(|m| m["options"].clone()).unwrap_or_default();
    let dtype = options["dtype"].as_str().and_then(|name| name.parse::<Float>().ok());
    let overflow = if options["overflow"] == "clamp" { Overflow::Clamp } else { Overflow::Refuse };
    let release = Checkpoint::open(dir)?;
    let base = Checkpoint::open(base)?;
    let adapters: Vec<_> = adapters.iter().map(|found| found.adapter.clone()).collect();
    let bars = Bars::default();
    let found = audit(&release, &base, &adapters, (dtype, overflow), jobs, Vector::detect(), &CANCEL, &bars);
    bars.clear();
    Ok(found?)
}

fn text(dir: &Path, result: &Verification, audit: Option<&Option<Difference>>, seconds: f64) -> String {
    let mut out = String::new();
    for problem in &result.problems {
        let _ = writeln!(out, "{}: {}", problem.file, problem.problem);
    }
    for note in &result.notes {
        let _ = writeln!(out, "note: {}", escaped(note));
    }
    match audit {
        Some(Some(difference)) => {
            let _ = writeln!(out, "audit: {}", describe(difference));
        }
        Some(None) => {
            let _ = writeln!(out, "audit: every tensor is what the base and the adapters give, byte for byte");
        }
        None => {}
    }
    let verdict = match result.problems.len() + usize::from(matches!(audit, Some(Some(_)))) {
        0 => "clean".to_owned(),
        n => count(n, "problem"),
    };
    let _ = writeln!(
        out,
        "{}: {verdict}; {} of {} and {} checked in {seconds:.1} s",
        shown(dir),
        count(result.digests, "digest"),
        ByteSize(result.bytes),
        count(result.tensors, "tensor")
    );
    out
}

fn describe(difference: &Difference) -> String {
    match difference {
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
