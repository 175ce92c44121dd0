//! `qft export`: from flags to a plan, to a report.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap::builder::BoolishValueParser;
use qft::adapter::Adapter;
use qft::checkpoint::{Checkpoint, LeftOut, Locator, TokenizerChoice};
use qft::error::{Error, escaped, shown};
use qft::export::{
    DEFAULT_SHARD, Export, ExportPlan, GgufOptions, Options, PlanSummary, Provenance, QualityReport, Report, Run,
};
use qft::gguf::mixture::FileType;
use qft::gpu::{Cards, Effort};
use qft::manifest::Change;
use qft::merge::{Float, Overflow};
use qft::size::ByteSize;
use serde::Serialize;
use serde_json::{Value, json};

use super::bars::Bars;
use super::device::{self, DeviceArgs};
use super::encoded;
use super::encoding::{ConversionArgs, EncodingArgs, Mixtures, encoding_effort};
use super::flags::warned;
use super::models::{AdapterSpec, Found, find_adapters, find_base, overwrite};
use super::quality::{QualityArgs, quality};
use super::swift::SwiftArgs;
use super::table::{columns, count};
use super::{CANCEL, handle_signals, jobs, note, print};

/// Merge a LoRA into its base, reshard, and publish a checked release.
///
/// After a training run, `qft export --merge-lora --max-shard 2GB` is enough: it takes the newest checkpoint below
/// ./output and the base that this names. Without --merge-lora, export reshards and casts a model.
///
/// The output is written beside its destination and put in place by one rename, so the destination is either
/// complete or unchanged. It has the weights with an index, config.json changed only where the merge requires it,
/// the tokenizer and the other companions, SHA256SUMS and qft-manifest.json.
///
/// ms-swift's flags have the same meaning: --ckpt_dir, --adapters, --model, --merge_lora true,
/// --safe_serialization true, --max_shard_size, --output_dir; underscores or dashes.
#[expect(clippy::doc_markdown, reason = "the text is shown in a terminal")]
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The base: a directory, or a Hub id, which is looked up in the Hugging Face and ModelScope caches and then
    /// downloaded [default: the one that the adapter names].
    #[arg(long, aliases = ["model", "model-id-or-path"], value_name = "DIR|ID")]
    base: Option<String>,
    /// An adapter: a directory or a Hub id, and after `=` a factor on its deltas. Several are applied in order
    /// [default: the newest checkpoint below ./output].
    #[arg(long, aliases = ["adapters", "ckpt-dir"], value_name = "DIR|ID[=WEIGHT]", num_args = 1..)]
    adapter: Vec<AdapterSpec>,
    /// Merge the adapter into the base.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, value_parser = BoolishValueParser::new(), default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true, overrides_with = "merge_lora")]
    merge_lora: bool,
    /// The destination; must be empty or absent unless --overwrite is given [default: <adapter>-merged].
    #[arg(long, alias = "output-dir", value_name = "DIR")]
    out: Option<PathBuf>,
    /// Maximum tensor bytes of a safetensors file: KB, MB, GB, TB as the Hub counts them, or KiB, MiB, GiB, TiB
    /// [default: 5GB; with --gguf, no safetensors are written unless this is given].
    #[arg(long, alias = "max-shard-size", value_name = "SIZE")]
    max_shard: Option<ByteSize>,
    /// Write GGUF files of these types, from the same read of the base: q4_k_m, q8_0, bf16, ...
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', value_parser = Mixtures, hide_possible_values = true)]
    gguf: Vec<FileType>,
    /// Cast the weights: bf16, f16 or f32 [default: the base's own types].
    #[arg(long, alias = "torch-dtype", value_name = "TYPE")]
    dtype: Option<Float>,
    /// The tokenizer of the release: base, adapter, or auto (the adapter's, if it has a complete one).
    #[arg(long, value_name = "WHOSE", default_value = "auto", hide_default_value = true)]
    tokenizer: TokenizerChoice,
    /// Write the largest finite value instead of a value outside the output type's range, which is refused otherwise.
    #[arg(long)]
    allow_overflow: bool,
    /// Exchange an existing destination as a whole, in one step. Files that are not part of a model are not deleted.
    #[arg(long)]
    overwrite: bool,
    /// With --overwrite: also delete the other files of the destination.
    #[arg(long, requires = "overwrite")]
    delete_others: bool,
    /// Use the shards that an interrupted run of the same export finished, after checking them.
    #[arg(long)]
    resume: bool,
    /// Print what would be done, and do nothing.
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
    conversion: ConversionArgs,
    #[command(flatten)]
    quality: QualityArgs,
    /// Accepted for ms-swift's sake: qft writes nothing but safetensors.
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, value_parser = BoolishValueParser::new(), default_missing_value = "true", default_value = "true")]
    safe_serialization: bool,
    #[command(flatten)]
    pub(super) swift: SwiftArgs,
}

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    args.swift.notes()?.iter().for_each(|line| note(&format!("note: {}", escaped(line))));
    check(args)?;
    let (plan, cards) = plan(args)?;
    let jobs = jobs(args.jobs);
    if args.dry_run {
        let mut summary = plan.summary(jobs);
        summary.needs.card = args.device.needs(jobs, &effort(args, &plan.base, plan.adapters.iter()));
        print(&if args.json { format!("{:#}\n", json!(summary)) } else { plan_text(&plan, &summary) })?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.json {
        plan.warnings.iter().for_each(|warning| note(&format!("warning: {}", warned(warning))));
    }
    handle_signals();
    let bars = Bars::of(job(args));
    let how = Run { jobs, cards: &cards, resume: args.resume, cancel: &CANCEL, progress: &bars, ..Run::default() };
    let report = plan.run(&how);
    bars.clear();
    let report = report?;
    device::warn(&cards, &report.cards);
    let quality = quality(&plan.gguf, &report);
    let page = args.quality.write(&quality, args.overwrite);
    print(&if args.json {
        report_json(&plan, &report, &quality)
    } else {
        args.quality.text(&quality) + &report_text(&plan, &report, args.timings)
    })?;
    page?;
    Ok(ExitCode::SUCCESS)
}

/// What the export does, in two words.
fn job(args: &ExportArgs) -> &'static str {
    match (args.merge_lora, args.gguf.is_empty()) {
        (true, _) => "merge",
        (false, true) => "reshard",
        (false, false) => "encode",
    }
}

/// Flags that contradict each other, or are unsupported.
fn check(args: &ExportArgs) -> qft::Result<()> {
    if !args.safe_serialization {
        return Err(Error::unsupported("--safe-serialization false: qft writes safetensors only", "drop the flag"));
    }
    if args.gguf.is_empty() && args.quality.wanted() {
        return Err(Error::invalid("a quality report was requested, but no GGUF file", "add --gguf q4_k_m"));
    }
    if !args.merge_lora && !args.adapter.is_empty() {
        return Err(Error::invalid(
            "an adapter is named, but nothing is to be merged",
            "add --merge-lora, or drop --adapter",
        ));
    }
    if !args.merge_lora && args.base.is_none() {
        return Err(Error::invalid(
            "nothing to do: neither --merge-lora nor --base is given",
            "merge the newest checkpoint with --merge-lora, or name a model to reshard with --base",
        ));
    }
    Ok(())
}

fn plan(args: &ExportArgs) -> qft::Result<(ExportPlan, Cards)> {
    let locator = Locator::from_env();
    let found = if args.merge_lora { find_adapters(&locator, &args.adapter)? } else { Vec::new() };
    let (dir, provenance) = find_base(&locator, args.base.as_deref(), found.first().map(|found| &found.adapter))?;
    let base = Checkpoint::open(&dir)?;
    let cards = if args.dry_run {
        Cards::none()
    } else {
        args.device.open(jobs(args.jobs), &effort(args, &base, found.iter().map(|found| &found.adapter)))
    };
    let out = args.out.clone().unwrap_or_else(|| default_out(&found, &dir, &provenance));
    let inputs: Vec<&Path> = found.iter().map(|found| found.adapter.dir.as_path()).chain([dir.as_path()]).collect();
    args.quality.check(&inputs, args.overwrite)?;
    args.quality.check_outside(&out)?;
    let mut mixtures = Vec::new();
    args.gguf.iter().for_each(|mixture| {
        if !mixtures.contains(mixture) {
            mixtures.push(*mixture);
        }
    });
    let gguf = || Ok(GgufOptions { measure: true, ..args.conversion.apply(args.encoding.options(&mixtures, false)?) });
    let options = Options {
        max_shard: max_shard(args),
        dtype: args.dtype,
        overflow: if args.allow_overflow { Overflow::Clamp } else { Overflow::Refuse },
        overwrite: overwrite(args.overwrite, args.delete_others),
        gguf: (!mixtures.is_empty()).then(gguf).transpose()?,
        as_file: false,
        tokenizer: args.tokenizer,
    };
    let adapters = found.into_iter().map(|found| found.adapter);
    Ok((Export::of(base).found(provenance).adapters(adapters).options(options).plan(&out)?, cards))
}

/// Maximum tensor bytes of a safetensors file; `None` if none are written.
fn max_shard(args: &ExportArgs) -> Option<ByteSize> {
    args.max_shard.or_else(|| args.gguf.is_empty().then_some(DEFAULT_SHARD))
}

/// What the export will take.
fn effort<'a>(args: &ExportArgs, base: &Checkpoint, adapters: impl Iterator<Item = &'a Adapter>) -> Effort {
    Effort {
        rank: adapters.map(|adapter| adapter.config.uniform_rank().unwrap_or(UNEVEN_RANK)).reduce(|a, b| a + b),
        shard: max_shard(args).map(|size| size.0),
        ..encoding_effort(base.tensor_bytes(), base.weights(), &args.gguf, &args.encoding)
    }
}

/// Taken for the rank of an adapter whose modules differ in it.
const UNEVEN_RANK: u32 = 16;

/// `<adapter>-merged` or `<base>-export`, beside it; in the working directory if it lies in a cache.
fn default_out(found: &[Found], base: &Path, provenance: &Provenance) -> PathBuf {
    let (dir, repo, ending) = match found.first() {
        Some(Found { adapter, repo }) => (adapter.dir.as_path(), repo, "-merged"),
        None => (base, &provenance.repo, "-export"),
    };
    if let Some(repo) = repo {
        PathBuf::from(format!("{}{ending}", repo.rsplit('/').next().unwrap_or(repo)))
    } else {
        // `.` and `..` have no name of their own.
        let real = dir.file_name().map_or_else(|| dir.canonicalize().ok(), |_| None);
        let dir = real.as_deref().unwrap_or(dir);
        dir.with_file_name(format!("{}{ending}", dir.file_name().unwrap_or_default().to_string_lossy()))
    }
}

/// The plan, for users.
fn plan_text(plan: &ExportPlan, summary: &PlanSummary) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    // Of its files, as of those that are written: another figure for the same weights would puzzle.
    let bytes = plan.base.files.iter().map(|file| file.bytes().len() as u64).sum();
    let base = format!("{}: {}", source_name(plan), totals(plan.base.tensors.len(), bytes));
    row("base", base);
    for adapter in &plan.adapters {
        let tensors = count(adapter.file.header().tensors.len(), "tensor");
        row("adapter", format!("{}: {tensors}, weight {}", shown(&adapter.dir), adapter.weight));
    }
    let (changed, all) = (plan.changed(), plan.tensors());
    row("merge", format!("{} changed, {} copied", count(changed, "tensor"), all - changed));
    module_lines(summary).into_iter().for_each(|line| row("", line));
    for name in &plan.deletes {
        row("deletes", escaped(name));
    }
    row("out", format!("{}: {}", shown(&plan.out), totals(all, plan.weight_files().map(|(_, len)| len).sum())));
    for shard in &plan.shards {
        row("", format!("{}  {}", shard.name, totals(shard.tensors.len(), shard.len())));
    }
    for (output, part) in plan.gguf.iter().flat_map(|output| output.parts.iter().map(move |part| (output, part))) {
        row("", format!("{}  {}", escaped(&part.name), totals(part.tensors.len(), part.len)));
        if part.name == output.parts[0].name {
            row("", format!("  {}", encoded::summary(output)));
        }
    }
    let names = plan.companions.iter().map(|c| escaped(&c.name)).collect::<Vec<_>>().join(", ");
    row("companions", if names.is_empty() { "none".to_owned() } else { names });
    for LeftOut { name, why, .. } in &plan.left_out {
        row("left out", format!("{}: {why}", escaped(name)));
    }
    for change in &plan.config_changes {
        let (file, change) = change.split_once(".json ").unwrap_or(("config", change));
        row(&format!("{file}.json"), escaped(change));
    }
    let needs = &summary.needs;
    let (disk, memory) = (ByteSize(needs.disk_bytes), ByteSize(needs.memory_bytes));
    row("needs", format!("{disk} of disk, up to {memory} of memory, {} workers", needs.jobs));
    if let Some(card) = needs.card {
        let (card, lane) = (ByteSize(card.card_bytes), ByteSize(card.lane_bytes));
        row("", format!("on a GPU: up to {card} of its memory, and {lane} more of host memory"));
    }
    plan.warnings.iter().for_each(|warning| row("warning", warned(warning)));
    let text = columns(&rows, [false, false]).iter().fold(String::new(), |text, line| text + line + "\n");
    text + &encoded::plan_text(&plan.gguf)
}

fn source_name(plan: &ExportPlan) -> String {
    let dir = shown(&plan.base.dir);
    plan.base_provenance.repo.as_ref().map_or(dir.clone(), |repo| format!("{} in {dir}", escaped(repo)))
}

fn totals(tensors: usize, bytes: u64) -> String {
    format!("{}, {}", count(tensors, "tensor"), ByteSize(bytes))
}

/// One line for each kind of module and change: `q_proj.weight x 28: low-rank, rank 8, scale 4`.
fn module_lines(summary: &PlanSummary) -> Vec<String> {
    let mut groups: Vec<(String, usize)> = Vec::new();
    for (name, tensor) in &summary.changed {
        let parts: Vec<&str> = name.rsplit('.').take(2).collect();
        let module = parts.into_iter().rev().collect::<Vec<_>>().join(".");
        let changes: Vec<String> = tensor.changes.iter().map(change_text).collect();
        let key = format!("{}: {}", escaped(&module), changes.join("; "));
        match groups.iter_mut().find(|(group, _)| *group == key) {
            Some((_, n)) => *n += 1,
            None => groups.push((key, 1)),
        }
    }
    groups.into_iter().map(|(group, n)| format!("{n} x {group}")).collect()
}

/// One change of a tensor.
fn change_text(change: &Change) -> String {
    let of = |adapter: &usize| if *adapter > 0 { format!(" (adapter {})", adapter + 1) } else { String::new() };
    match change {
        Change::Replaced { adapter } => format!("replaced{}", of(adapter)),
        Change::LowRank { adapter, rank, scale } => {
            format!("low-rank, rank {rank}, scale {}{}", json!(scale), of(adapter))
        }
        Change::Dora { adapter, norm } => format!("dora, norm {}{}", word(norm), of(adapter)),
        Change::Rows { adapter, rows } => format!("rows, rows {}{}", rows.len(), of(adapter)),
        Change::Cast { from } => format!("cast, from {}", word(from)),
    }
}

/// A choice, as JSON spells it.
fn word(choice: impl Serialize) -> String {
    json!(choice).as_str().unwrap_or_default().to_owned()
}

/// The closing summary, for users.
fn report_text(plan: &ExportPlan, report: &Report, timings: bool) -> String {
    let mut text = String::new();
    for shard in &plan.shards {
        if let Some((size, digest)) = report.files.get(&shard.name) {
            let _ = writeln!(text, "{}  {:>9}  sha256 {digest:.16}...", shard.name, ByteSize(*size).to_string());
        }
    }
    text.push_str(&encoded::files_text(&plan.gguf, report));
    let done = if plan.adapters.is_empty() {
        format!("exported {}", count(plan.tensors(), "tensor"))
    } else {
        format!("merged {} of {}", plan.changed(), count(plan.tensors(), "tensor"))
    };
    let seconds = report.seconds.max(1e-3);
    let _ = writeln!(
        text,
        "{done} into {}: {}, {} in {seconds:.1} s ({:.2} GB/s)",
        shown(&report.out),
        count(report.files.len(), "file"),
        ByteSize(report.bytes),
        report.bytes as f64 / 1e9 / seconds
    );
    text.push_str(&device::text(&report.cards));
    if report.resumed > 0 {
        let _ = writeln!(text, "{} taken over from the interrupted run", count(report.resumed, "shard"));
    }
    if timings {
        text.push_str(&encoded::timings_text(&report.timings));
    }
    text
}

fn report_json(plan: &ExportPlan, report: &Report, quality: &QualityReport) -> String {
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
        "changed_tensors": plan.changed(),
        "resumed_shards": report.resumed,
        "files": files,
        "timings": report.timings,
        "cards": report.cards,
        "gguf": encoded::summaries(&plan.gguf),
        "quality": report.quality,
        "quality_summary": quality.sums(),
        "warnings": plan.warnings,
    });
    format!("{report:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(line: &str) -> ExportArgs {
        let words = line.split_whitespace().map(|word| super::super::dashes(word.into()));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Export(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_of_the_mission() {
        let a = args("qft export --merge-lora --max-shard 2GB");
        assert!(a.merge_lora && a.adapter.is_empty() && a.base.is_none());
        assert_eq!(a.max_shard, Some(ByteSize(2_000_000_000)));
    }

    #[test]
    fn the_command_of_ms_swift() {
        let a = args(
            "qft export --ckpt_dir ./output/x/checkpoint-1 --model Qwen/Qwen2.5-7B-Instruct --merge_lora true \
             --safe_serialization true --max_shard_size 2GB --output_dir ./export/x",
        );
        assert!(a.merge_lora && a.safe_serialization);
        assert_eq!(a.base.as_deref(), Some("Qwen/Qwen2.5-7B-Instruct"));
        assert_eq!((a.adapter.len(), a.out), (1, Some(PathBuf::from("./export/x"))));
        assert_eq!(args("qft export --adapters a b=0.5 --merge_lora true").adapter.len(), 2);
        assert!(!args("qft export --base x --merge_lora false").merge_lora);
        assert!(args("qft export --base x --merge_lora false --merge-lora").merge_lora, "the last one counts");
        assert!(check(&args("qft export --base x --safe_serialization false")).is_err());
        assert!(check(&args("qft export --base x --adapter y")).is_err());
    }

    #[test]
    fn the_default_destination_lies_beside_its_source() {
        let out = |base: &str, repo: Option<&str>| {
            let provenance = Provenance { repo: repo.map(str::to_owned), revision: None };
            default_out(&[], Path::new(base), &provenance)
        };
        assert_eq!(out("models/a", None), Path::new("models/a-export"));
        assert_eq!(out("models/a/", None), Path::new("models/a-export"));
        assert_eq!(out("/cache/snapshots/123", Some("org/a")), Path::new("a-export"));
    }
}
