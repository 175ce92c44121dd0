//! `qft verify`: digests, lint, and the audit of a release.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use qft::Error;
use qft::adapter::{ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH, Adapter};
use qft::checkpoint::{Checkpoint, INDEX_FILE, Locator, SINGLE_FILE, TokenizerChoice};
use qft::digest::sha256;
use qft::error::{escaped, shown};
use qft::export::{Audit, CHECKSUMS, Difference, MANIFEST, Provenance, Run, audit, audit_files, audit_gguf};
use qft::files::read_text;
use qft::gguf::GgufModel;
use qft::gguf::imatrix::Imatrix;
use qft::gpu::Cards;
use qft::merge::{Float, Overflow, Vector};
use qft::size::ByteSize;
use qft::verify::{Problem, Verification, verify};
use serde_json::{Value, json};

use super::bars::Bars;
use super::flags::warned;
use super::models::{AdapterSpec, Found, find_adapters, find_base};
use super::table::count;
use super::{CANCEL, EXIT_DIFFERENT, EXIT_INTERRUPTED, handle_signals, jobs, note, print};

/// Check a release: every digest, and every rule of the formats of its weights, safetensors and GGUF.
///
/// With --audit, also recompute every tensor from the base and the adapters and compare byte for byte; and of a release
/// with a manifest every other file, the keys of GGUF files, and the manifest's own entries. What nothing tells is named.
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
    /// The imatrix that the release's GGUF files were made with, if they were.
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
    let inputs = args.audit.then(|| Inputs::find(args)).transpose()?;
    handle_signals();
    let bars = Bars::of("digest");
    let jobs = jobs(args.jobs);
    let result = verify(&args.dir, jobs, &CANCEL, &bars);
    bars.clear();
    let mut result = result?;
    let audited = inputs.map(|inputs| inputs.audit(&args.dir, jobs, &mut result)).transpose()?;
    let seconds = started.elapsed().as_secs_f64();
    print(&if args.json {
        json(&result, audited.as_ref())
    } else {
        text(&args.dir, &result, audited.as_ref(), seconds)
    })?;
    let bad = problems(&result, audited.as_ref()) > 0;
    match audited {
        Some(Audited::Failed(error)) if !bad => return Err(error.into()),
        Some(Audited::Failed(error)) => note(&format!("error: {error}")),
        _ => {}
    }
    Ok(if bad { ExitCode::from(EXIT_DIFFERENT) } else { ExitCode::SUCCESS })
}

/// What the manifest says of how the release was made. It may lie: the audit finds out.
struct Recipe {
    /// All of it.
    manifest: Option<Value>,
    dtype: Option<Float>,
    overflow: Overflow,
    tokenizer: TokenizerChoice,
    /// Weight and digest of every adapter; `None` if there is no such list.
    adapters: Option<Vec<(f64, Option<String>)>>,
}

impl Recipe {
    /// Of a single file: the manifest beside it, if that lists it.
    fn read(release: &Path) -> Self {
        let file = release.file_name().filter(|_| release.is_file()).map(|name| name.to_string_lossy());
        let manifest = if file.is_some() { release.with_file_name(MANIFEST) } else { release.join(MANIFEST) };
        let whole: Option<Value> = read_text(&manifest).ok().and_then(|text| serde_json::from_str(&text).ok());
        let lists = |manifest: &Value| file.as_ref().is_none_or(|file| manifest["files"].get(file.as_ref()).is_some());
        let whole = whole.filter(lists);
        let manifest = whole.clone().unwrap_or_default();
        let options = &manifest["options"];
        let adapter = |entry: &Value| {
            let names = [ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH];
            let digest = names.iter().find_map(|name| entry["files"][name]["sha256"].as_str());
            (entry["weight"].as_f64().unwrap_or(1.0), digest.map(str::to_owned))
        };
        Self {
            dtype: options["dtype"].as_str().and_then(|name| name.parse().ok()),
            overflow: if options["overflow"] == "clamp" { Overflow::Clamp } else { Overflow::Refuse },
            tokenizer: serde_json::from_value(options["tokenizer"].clone()).unwrap_or_default(),
            adapters: manifest["adapters"].as_array().map(|list| list.iter().map(adapter).collect()),
            manifest: whole,
        }
    }
}

/// What a release is audited against.
struct Inputs {
    recipe: Recipe,
    base: Checkpoint,
    provenance: Provenance,
    adapters: Vec<Adapter>,
    imatrix: Option<Imatrix>,
    /// In what the adapters are not those of the manifest.
    notes: Vec<String>,
}

impl Inputs {
    fn find(args: &VerifyArgs) -> qft::Result<Self> {
        let locator = Locator::from_env();
        let recipe = Recipe::read(&args.dir);
        let mut alone = None;
        let found = match &recipe.adapters {
            _ if !args.adapter.is_empty() => find_adapters(&locator, &args.adapter)?,
            None if args.base.is_some() => {
                alone = Some(format!(
                    "no {MANIFEST} lists its adapters: audited against the base alone; if it has any, name each with \
                     --adapter"
                ));
                Vec::new()
            }
            listed => default_adapters(&locator, &args.dir, listed.as_deref())?,
        };
        let (base, provenance) = find_base(&locator, args.base.as_deref(), &found)?;
        let base = Checkpoint::open(&base)?;
        let adapters: Vec<Adapter> = found.into_iter().map(|found| found.adapter).collect();
        let mut notes = recipe.adapters.as_ref().map(|listed| deviations(&adapters, listed)).unwrap_or_default();
        notes.extend(alone);
        let imatrix = args.imatrix.as_deref().map(Imatrix::read).transpose()?;
        Ok(Self { recipe, base, provenance, adapters, imatrix, notes })
    }

    /// Audits `release` after its verification, which it adds to.
    fn audit(mut self, release: &Path, jobs: usize, result: &mut Verification) -> qft::Result<Audited> {
        result.notes.extend(std::mem::take(&mut self.notes));
        let has_safetensors = [SINGLE_FILE, INDEX_FILE].iter().any(|name| release.join(name).exists());
        let is_file = release.is_file();
        let gguf = if is_file { GgufModel::open(release).map(|model| vec![model]) } else { GgufModel::all_in(release) };
        let opened = gguf.and_then(|gguf| {
            let safetensors = (has_safetensors || gguf.is_empty()).then(|| Checkpoint::open(release)).transpose()?;
            Ok((safetensors, gguf))
        });
        let (safetensors, gguf) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                result.unreadable(release, &error);
                return Ok(Audited::LeftOut);
            }
        };
        let Recipe { dtype, overflow, tokenizer, .. } = self.recipe;
        let manifest = self.recipe.manifest.as_ref();
        let files = manifest.is_some() && !is_file;
        if manifest.is_none() && !is_file {
            result.notes.push(format!(
                "not checked: the files beside the weights, and the keys of GGUF files; there is no {MANIFEST} that says how \
                 the release was made"
            ));
            // An export writes both, so that one was taken away.
            if release.join(CHECKSUMS).exists() {
                let problem =
                    format!("is missing: an export writes one beside {CHECKSUMS}, and what it says can't be audited");
                result.problems.push(Problem { file: MANIFEST.to_owned(), problem });
            }
        }
        let inputs = Audit {
            base: &self.base,
            provenance: &self.provenance,
            adapters: &self.adapters,
            dtype,
            overflow,
            tokenizer,
            manifest,
        };
        match self.compare(release, safetensors.as_ref(), gguf, &inputs, jobs) {
            Ok((difference, unchecked)) => {
                result.notes.extend(unchecked.into_iter().map(|line| format!("not checked: {line}")));
                Ok(difference.map_or(Audited::Agrees { files }, Audited::Differs))
            }
            Err(error @ Error::Interrupted { .. }) => Err(error),
            // An audit clamps where the manifest says that the export did.
            Err(error @ Error::Overflow { .. }) => {
                let remedy = format!(
                    "give the base and the adapters that the release was made from; if it was made with --allow-overflow, \
                     restore its {MANIFEST}, which says so"
                );
                Ok(Audited::Failed(Error::new(error.kind(), error.split().0, remedy)))
            }
            Err(error) => Ok(Audited::Failed(error)),
        }
    }

    /// The first difference in the safetensors, then in each GGUF model, then in all other files of a directory; and what
    /// could not be checked.
    fn compare(
        &self,
        release: &Path,
        safetensors: Option<&Checkpoint>,
        gguf: Vec<GgufModel>,
        inputs: &Audit<'_>,
        jobs: usize,
    ) -> qft::Result<(Option<Difference>, Vec<String>)> {
        if let Some(safetensors) = safetensors
            && let Some(difference) = run_with(jobs, |how| audit(safetensors, inputs, how))?
        {
            return Ok((Some(difference), Vec::new()));
        }
        let mut unchecked = Vec::new();
        let mut models = Vec::new();
        for model in gguf {
            let mut found = run_with(jobs, |how| audit_gguf(&model, self.imatrix.as_ref(), inputs, how))?;
            unchecked.append(&mut found.unchecked);
            if found.difference.is_some() {
                return Ok((found.difference, unchecked));
            }
            models.push((model, found));
        }
        if release.is_file() {
            return Ok((None, unchecked));
        }
        let found = run_with(jobs, |how| audit_files(release, &models, inputs, how))?;
        unchecked.extend(found.unchecked);
        Ok((found.difference, unchecked))
    }
}

/// Calls `compare` with a bar to show its progress.
fn run_with<T>(jobs: usize, compare: impl FnOnce(&Run<'_>) -> qft::Result<T>) -> qft::Result<T> {
    let bars = Bars::of("audit");
    let (cards, vector) = (Cards::none(), Vector::detect());
    let found = compare(&Run { jobs, vector, cards: &cards, resume: false, cancel: &CANCEL, progress: &bars });
    bars.clear();
    found
}

/// The adapters that the manifest lists, where they need no name: none, or the newest checkpoint below `./output`.
fn default_adapters(
    locator: &Locator,
    release: &Path,
    listed: Option<&[(f64, Option<String>)]>,
) -> qft::Result<Vec<Found>> {
    const REMEDY: &str = "name each adapter with --adapter, as it was given to export";
    let refused = |problem: &str, remedy: &str| Error::invalid(format!("{} {problem}", shown(release)), remedy);
    let (weight, digest) = match listed {
        None => {
            let problem = format!("has no {MANIFEST} that lists its adapters");
            return Err(refused(&problem, &format!("{REMEDY}; if it has none, name the model with --base")));
        }
        Some([]) => return Ok(Vec::new()),
        Some([one]) => one,
        Some(many) => return Err(refused(&format!("was made from {} adapters", many.len()), REMEDY)),
    };
    let unnamed = |error: Error| refused(&format!("was made from an adapter, and {}", error.split().0), REMEDY);
    let mut found = find_adapters(locator, &[]).map_err(unnamed)?;
    for Found { adapter, .. } in &mut found {
        if digest.as_ref() != Some(&sha256(adapter.file.bytes())) {
            let problem = format!("was made from another adapter than {}", shown(&adapter.dir));
            return Err(refused(&problem, REMEDY));
        }
        adapter.weight = *weight;
    }
    Ok(found)
}

/// In what `adapters` are not those that the manifest lists.
fn deviations(adapters: &[Adapter], listed: &[(f64, Option<String>)]) -> Vec<String> {
    let mut notes = Vec::new();
    if adapters.len() != listed.len() {
        let (given, made) = (count(adapters.len(), "adapter"), count(listed.len(), "adapter"));
        notes.push(format!("{given} given; {MANIFEST} lists {made}"));
    }
    for (adapter, (weight, digest)) in adapters.iter().zip(listed) {
        let dir = adapter.dir.display();
        if digest.as_ref().is_some_and(|digest| *digest != sha256(adapter.file.bytes())) {
            notes.push(format!("{dir} is not the adapter in {MANIFEST}: {} has another SHA-256", adapter.file.name()));
        }
        if adapter.weight.to_bits() != weight.to_bits() {
            notes.push(format!("{dir} has the weight {}; {MANIFEST} gives it {weight}", adapter.weight));
        }
    }
    notes
}

/// How an audit ended.
enum Audited {
    Agrees {
        /// Whether all files were compared, and not tensors alone.
        files: bool,
    },
    Differs(Difference),
    /// The release can't be opened.
    LeftOut,
    /// It can't be computed what the inputs give.
    Failed(Error),
}

const LEFT_OUT: &str = "left out: the release can't be opened";

impl Audited {
    fn json(&self) -> Value {
        match self {
            Self::Agrees { .. } => json!({"first_difference": null}),
            Self::Differs(difference) => json!({"first_difference": difference}),
            Self::LeftOut => json!({"left_out": LEFT_OUT}),
            Self::Failed(error) => json!({"failed": error.to_string()}),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Agrees { files } => {
                let what = if *files { "every tensor and every file" } else { "every tensor" };
                format!("{what} is what the base and the adapters give, byte for byte")
            }
            Self::Differs(difference) => describe(difference),
            Self::LeftOut => LEFT_OUT.to_owned(),
            Self::Failed(_) => "failed".to_owned(),
        }
    }
}

fn problems(result: &Verification, audited: Option<&Audited>) -> usize {
    result.problems.len() + usize::from(matches!(audited, Some(Audited::Differs(_))))
}

fn json(result: &Verification, audited: Option<&Audited>) -> String {
    let mut report = json!(result);
    if let Some(audited) = audited {
        report["audit"] = audited.json();
    }
    format!("{report:#}\n")
}

fn text(dir: &Path, result: &Verification, audited: Option<&Audited>, seconds: f64) -> String {
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
        let _ = writeln!(out, "audit: {}", audited.text());
    }
    let tensors = count(result.tensors, "tensor");
    let checked = match result.digests {
        0 => format!("nothing to compare digests with; {tensors}"),
        n => format!("{} of {} and {tensors}", count(n, "digest"), ByteSize(result.bytes)),
    };
    let verdict = match (problems(result, audited), audited) {
        (0, Some(Audited::Failed(_))) => "no problems, but no audit".to_owned(),
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
