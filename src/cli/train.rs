//! `qft train`: from flags and a TOML file to settings, to a run. The flags are made from the library's table of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use qft::adapter::newest_checkpoint;
use qft::checkpoint::Locator;
use qft::error::{escaped, shown};
use qft::gpu::{Cards, Device};
use qft::ranks::{Joining, Launch, Patience, Waiting};
use qft::size::ByteSize;
use qft::train::log::{TrainProgress, Unwatched, quoted};
use qft::train::settings::{Fate, Flag, GROUPS, Given, Kind, Settings, find, flags};
use qft::train::{self, How, Preparing, TrainPlan, TrainReport};
use serde_json::{Value, json};

use super::flags::warned;
use super::models::OUTPUT;
use super::swift::{Names, hidden, last_value, usage};
use super::table::columns;
use super::train_bar::TrainBar;
use super::{CANCEL, EXIT_INTERRUPTED, STOP, handle_signals, note, print, unasked};

const ABOUT: &str =
    "Fine-tune a model with LoRA: the checkpoints are PEFT's, and `qft export --merge-lora` merges the newest";
const LONG_ABOUT: &str = "Fine-tune a model with LoRA: the checkpoints are PEFT's, and `qft export --merge-lora` \
    merges the newest.\n\nThe flags are ms-swift's `swift sft`, with their meanings and defaults; underscores or \
    dashes. Flags without effect here are accepted with a note; unsupported flags are refused with a remedy. --config \
    reads them from a TOML file, whose keys are the flags' names; the command line overrides it.\n\nCheckpoints go to \
    output/<model>/v<N>-<time>/checkpoint-<step>/, each published by one rename.";

/// The flags that are not settings of the run.
#[derive(Debug, Args)]
struct RunArgs {
    /// Settings from a TOML file: the flags' names without dashes in front, such as `lora_rank = 8`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Worker threads [default: one a core].
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// Print where the GPU's time of the last step went.
    #[arg(long, hide = true)]
    timings: bool,
}

/// What was typed.
#[derive(Debug)]
pub(crate) struct TrainArgs {
    run: RunArgs,
    given: Given,
}

impl TrainArgs {
    /// The settings: what was typed, over the file, over the defaults.
    pub(super) fn settings(&self) -> qft::Result<Settings> {
        let file = self.run.config.as_ref().map(|path| Given::read_toml(path)).transpose()?;
        self.given.clone().over(file.unwrap_or_default()).settings()
    }
}

/// The texts that clap keeps for a flag.
struct Words {
    names: Names,
    value: String,
    help: String,
}

static WORDS: LazyLock<Vec<(&Flag, Words)>> = LazyLock::new(|| {
    let defaults = Settings::default().args_json();
    let words = |flag: &Flag| Words {
        names: Names::new(flag),
        value: flag.kind.placeholder(),
        help: match default_text(defaults.get(flag.name)).filter(|_| !flag.help.contains("[default:")) {
            Some(default) => format!("{} [default: {default}]", flag.help),
            None => flag.help.to_owned(),
        },
    };
    flags().map(|flag| (flag, words(flag))).collect()
});

/// A default as the help shows it; `None` for false, none and empty.
fn default_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null | Value::Bool(false) => None,
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Array(list) => {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            (!texts.is_empty()).then(|| texts.join(","))
        }
        other => Some(other.to_string()),
    }
}

fn arg(flag: &'static Flag, words: &'static Words, heading: &'static str) -> Arg {
    let kind = flag.kind;
    if matches!(kind, Kind::Any) {
        return hidden(flag, &words.names);
    }
    let check = move |text: &str| kind.take(&text.into()).map(|_| text.to_owned());
    let arg = Arg::new(flag.name)
        .long(words.names.long.as_str())
        .aliases(words.names.aliases.iter().map(String::as_str))
        .value_name(words.value.as_str())
        .help(words.help.as_str())
        .help_heading(heading)
        .allow_negative_numbers(true)
        .value_parser(ValueParser::from(check));
    if kind.is_list() {
        return arg.num_args(1..).action(ArgAction::Append);
    }
    let arg = arg.action(ArgAction::Set).overrides_with(flag.name);
    if kind.stands_alone() { arg.num_args(0..=1).default_missing_value("true") } else { arg }
}

impl Args for TrainArgs {
    fn augment_args(command: Command) -> Command {
        let command = RunArgs::augment_args(command).about(ABOUT).long_about(LONG_ABOUT);
        WORDS.iter().fold(command, |command, (flag, words)| {
            let heading = GROUPS.iter().find(|(_, flags)| flags.iter().any(|other| other.name == flag.name));
            command.arg(arg(flag, words, heading.map_or("Options", |(heading, _)| heading)))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for TrainArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Given::default();
        for flag in flags() {
            let value = if flag.kind.is_list() {
                matches.get_many::<String>(flag.name).map(|texts| texts.map(String::as_str).collect())
            } else {
                last_value(matches, flag)
            };
            if let Some(value) = value {
                given.set(flag, &value).map_err(|e| usage(&e))?;
            }
        }
        Ok(Self { run: RunArgs::from_arg_matches(matches)?, given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(super) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let launch = Launch::from_env()?;
    let speaks = launch.rank == 0;
    handle_signals();
    let bar = TrainBar::default();
    let progress: &dyn TrainProgress = if speaks { &bar } else { &Unwatched };
    // The others are looked for meanwhile: a rank that can't prepare tells them.
    let joining = if args.run.dry_run { None } else { Some(Joining::begin(&launch, Patience::default(), &STOP)?) };
    let plan = prepare(args, &launch, progress);
    bar.clear();
    let (plan, joining) = match (plan, joining) {
        (Ok(plan), joining) => (plan, joining),
        (Err(error), joining) => {
            let others = joining.and_then(|joining| joining.fail(&error.split().0));
            // What stopped this rank was not the user, but another rank.
            let in_vain = matches!(error, qft::Error::Interrupted { .. }) && !CANCEL.load(Ordering::SeqCst);
            return Err(others.filter(|_| in_vain).unwrap_or(error).into());
        }
    };
    let Some(joining) = joining else {
        if speaks {
            plan.space.check(&plan.destination())?;
            print(&if args.run.json { format!("{:#}\n", json!(plan.summary())) } else { plan_text(&plan) })?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    if !args.run.json && speaks {
        note(plan_text(&plan).trim_end());
        launch.note.iter().for_each(|line| note(&format!("note: {line}")));
    }
    let settings = plan.settings.clone();
    let waiting = Waiting { cancel: &CANCEL, say: &|line| note(&warned(line)) };
    let mut ranks = joining.finish(plan.digest(), waiting)?;
    let mut how = How { cancel: &CANCEL, progress, ranks: &mut *ranks, timings: args.run.timings };
    let report = train::run(plan, &mut how);
    bar.clear();
    let report = report?;
    if speaks {
        print(&if args.run.json { report_json(&report) } else { report_text(&report, &settings) })?;
    }
    Ok(if report.interrupted { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The plan of the run, with what it needs from the Hub.
fn prepare(args: &TrainArgs, launch: &Launch, progress: &dyn TrainProgress) -> qft::Result<TrainPlan> {
    let mut settings = args.settings()?;
    // A dry run leaves no tokens behind.
    let keeps_tokens = settings.load_from_cache_file;
    settings.load_from_cache_file &= !args.run.dry_run;
    settings.device = own_device(settings.device()?, launch).to_string();
    let locator = Locator::from_env();
    let located = unasked(|| {
        let located = locator.model(&settings.model_spec(), &mut downloading)?;
        // An adapter that is no directory is on the Hub.
        for adapter in settings.adapters.iter_mut().filter(|adapter| !Path::new(adapter).exists()) {
            *adapter = locator.model(adapter, &mut downloading)?.dir.to_string_lossy().into_owned();
        }
        qft::Result::Ok(located)
    })?;
    let jobs = super::jobs(args.run.jobs);
    let mut plan = TrainPlan::new(
        settings,
        &located.dir,
        &Preparing { world: launch.count as u64, jobs, cancel: &STOP, progress },
    )?;
    plan.settings.load_from_cache_file = keeps_tokens;
    Ok(plan)
}

/// Of several processes on one host, each has a GPU of its own.
fn own_device(device: Device, launch: &Launch) -> Device {
    match device {
        Device::Auto | Device::Cuda | Device::All if launch.count > 1 && Cards::count() > 0 => {
            Device::One(launch.local_rank)
        }
        device => device,
    }
}

/// The report, for users: where the run is, what it came to, and what to do next.
fn report_text(report: &TrainReport, settings: &Settings) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    let [steps, max_steps] = report.steps;
    let skipped = if report.skipped > 0 { format!(", {} skipped", report.skipped) } else { String::new() };
    row("steps", format!("{steps} of {max_steps}{skipped}"));
    let held_out = report.eval_loss.map_or(String::new(), |loss| format!(", held out {loss:.4}"));
    // A run that was resumed after its end has done nothing.
    if report.tokens > 0 {
        row("loss", format!("{:.4}, at the end {:.4}{held_out}", report.loss, report.last_loss));
        let rate = report.tokens as f64 / report.seconds.max(1e-9);
        row("speed", format!("{} tokens in {:.1} s, {rate:.0} a second", report.tokens, report.seconds));
    }
    let memory = report.peak_memory.map_or(String::new(), |bytes| format!(", at most {} used", ByteSize(bytes)));
    row("device", format!("{}{memory}", escaped(&report.device)));
    row("run", shown(&report.run));
    if let Some(checkpoint) = &report.checkpoint {
        row("checkpoint", shown(checkpoint));
    }
    if let Some((best, loss)) = &report.best {
        row("best", format!("{} (held out {loss:.4})", shown(best)));
    }
    if let Some(curve) = &report.logs.curve {
        row("curve", shown(curve));
    }
    if let Some(command) = &report.logs.command {
        row("swanlab", command.clone());
    }
    // What was interrupted may have been the last evaluation on held-out data.
    let unfinished = report.interrupted && steps < max_steps;
    row("next", if unfinished { go_on(report, settings) } else { merge(report, settings) });
    lines(&rows) + &timings_text(report)
}

/// The command that merges what was trained. An export takes the newest checkpoint below ./output: it is told of
/// another, and of the best one where that is wanted.
fn merge(report: &TrainReport, settings: &Settings) -> String {
    let real = |path: &Path| path.canonicalize().ok();
    let found = newest_checkpoint(Path::new(OUTPUT)).ok().and_then(|found| real(&found));
    let best = report.best.as_ref().map(|(best, _)| best).filter(|_| settings.load_best_model_at_end);
    let unfound = report.checkpoint.as_ref().filter(|checkpoint| found.is_none() || real(checkpoint) != found);
    let adapter = best.or(unfound).map(|dir| format!(" --adapter {}", quoted(&dir.to_string_lossy())));
    format!("qft export --merge-lora{} --max-shard 2GB", adapter.unwrap_or_default())
}

/// How to resume after an interruption: with the checkpoint's factors and data, not with those that the run began with.
fn go_on(report: &TrainReport, settings: &Settings) -> String {
    let Some(checkpoint) = &report.checkpoint else { return "the same command: no step was finished".to_owned() };
    let from = quoted(&checkpoint.to_string_lossy());
    let given = [
        (!settings.adapters.is_empty(), "--adapters"),
        (settings.resume_only_model && !settings.save_only_model, "--resume_only_model"),
        (settings.ignore_data_skip, "--ignore_data_skip"),
    ];
    let dropped: Vec<&str> = given.iter().filter(|(is_given, _)| *is_given).map(|(_, flag)| *flag).collect();
    let without = if dropped.is_empty() { String::new() } else { format!(" without {},", dropped.join(", ")) };
    let again = format!("the same command{without} with --resume_from_checkpoint {from}");
    if !settings.save_only_model {
        return again;
    }
    let elsewhere = if settings.add_version { "" } else { " --output_dir OTHER" };
    format!(
        "{again} --resume_only_model true{elsewhere}, which begins a new run with its factors: --save_only_model saves \
         no optimizer"
    )
}

/// Where the time of the last step went, the most first; nothing where nobody asked.
fn timings_text(report: &TrainReport) -> String {
    let mut spent: Vec<(&str, f64)> =
        report.timings.iter().map(|(operation, seconds)| (*operation, *seconds)).collect();
    spent.sort_by(|a, b| b.1.total_cmp(&a.1));
    let rows: Vec<[String; 2]> =
        spent.iter().map(|(operation, seconds)| [format!("  {operation}"), format!("{seconds:.4} s")]).collect();
    if rows.is_empty() { String::new() } else { "the GPU's seconds of the last step:\n".to_owned() + &lines(&rows) }
}

fn report_json(report: &TrainReport) -> String {
    let json = json!({
        "run": report.run,
        "checkpoint": report.checkpoint,
        "best": report.best.as_ref().map(|(dir, loss)| json!({"checkpoint": dir, "eval_loss": loss})),
        "steps": report.steps[0],
        "max_steps": report.steps[1],
        "skipped": report.skipped,
        "train_loss": report.loss,
        "last_loss": report.last_loss,
        "eval_loss": report.eval_loss,
        "tokens": report.tokens,
        "seconds": report.seconds,
        "device": report.device,
        "peak_memory": report.peak_memory,
        "interrupted": report.interrupted,
        "curve": report.logs.curve,
        "timings": report.timings,
    });
    format!("{json:#}\n")
}

/// The plan, for users.
fn plan_text(plan: &TrainPlan) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    row("base", format!("{}: {}, {} layers", shown(&plan.base.dir), plan.spec.model_type, plan.spec.layers));
    let (modules, len) = (plan.layout.modules.len(), plan.layout.len);
    row("adapter", format!("rank {} on {modules} modules, {len} parameters", plan.layout.spec.rank));
    for line in plan.data.lengths.to_string().lines() {
        row("data", line.to_owned());
    }
    if !plan.data.held_out.rows.is_empty() {
        row("held out", format!("{} samples", plan.data.held_out.samples));
    }
    let progress = &plan.progress;
    let from = if progress.global_step > 0 { format!(", from step {}", progress.global_step) } else { String::new() };
    let warmup = plan.schedule.warmup_steps;
    row("steps", format!("{}, of {} rows each, {warmup} to warm up{from}", progress.max_steps, plan.rows_of_a_step()));
    row("runs", shown(&plan.settings.output_dir()));
    row("checkpoints", format!("up to {} of {}", plan.space.most, ByteSize(plan.space.each)));
    rows.extend(asked(&plan.settings));
    rows.extend(plan.notes.iter().map(|line| ["note".to_owned(), warned(line)]));
    lines(&rows)
}

fn lines(rows: &[[String; 2]]) -> String {
    columns(rows, [false, false]).iter().fold(String::new(), |text, line| text + line + "\n")
}

fn downloading(file: &str) {
    note(&format!("downloading {}", escaped(file)));
}

/// The settings that differ from the defaults.
fn asked(settings: &Settings) -> Vec<[String; 2]> {
    let defaults = Settings::default().args_json();
    let of = |(name, value): (String, Value)| {
        let differs =
            find(&name).is_some_and(|flag| matches!(flag.fate, Fate::Used)) && defaults.get(&name) != Some(&value);
        let text = default_text(Some(&value)).unwrap_or_else(|| "false".to_owned());
        differs.then(|| [name, escaped(&text)])
    };
    let given = Settings { found: serde_json::Map::new(), ..settings.clone() };
    given.args_json().into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command as Subcommand};
    use clap::Parser;

    fn parse(line: &str) -> Result<TrainArgs, String> {
        let words = line.split_whitespace().map(|word| super::super::dashes(word.into()));
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Subcommand::Train(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    fn settings(flags: &str) -> Settings {
        parse(&format!("qft train --model m --dataset d {flags}")).unwrap().settings().unwrap()
    }

    /// A common configuration of ms-swift.
    const COMMAND: &str = "qft train --model Qwen/Qwen2.5-7B-Instruct --dataset data.jsonl --train_type lora \
        --bf16 true --max_length 3072 --packing true --gradient_checkpointing true --lora_rank 8 --lora_alpha 32 \
        --lora_dropout 0.1 --target_modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj \
        --per_device_train_batch_size 8 \
        --gradient_accumulation_steps 4 --learning_rate 2e-4 --num_train_epochs 1 --warmup_ratio 0.1 --save_steps 200 \
        --save_total_limit 3 --logging_steps 20 --report_to swanlab --attn_impl flash_attn";

    #[test]
    fn the_recipe_is_the_command_of_ms_swift() {
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes/qwen2.5-7b-instruct.toml");
        let file = parse(&format!("qft train --config {recipe}")).unwrap().settings().unwrap();
        let line = parse(COMMAND).unwrap().settings().unwrap();
        assert_eq!(file, line);
        assert_eq!((line.lora_dropout, line.warmup_ratio, line.learning_rate), (0.1, 0.1, 2e-4));
        assert_eq!((line.target_modules.len(), line.save_total_limit, line.max_length), (7, Some(3), Some(3072)));
        assert_eq!((line.bf16, line.packing, line.accumulation(1)), (Some(true), true, 4));
        assert_eq!(line.notes.len(), 1, "{:?}", line.notes);
        // The recipe of the reference names these too.
        let more = format!("{COMMAND} --model_type qwen2_5 --template qwen2_5");
        assert!(parse(&more).unwrap().settings().unwrap().agree("qwen2").unwrap().is_empty());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes/qwen2.5-7b-instruct.toml");
        let line = format!("qft train --config {recipe} --lora-rank 16 --packing false --dataset a.jsonl#5 b.jsonl");
        let settings = parse(&line).unwrap().settings().unwrap();
        assert_eq!((settings.lora_rank, settings.packing, settings.lora_alpha), (16, false, 32.0));
        assert_eq!(settings.dataset, ["a.jsonl#5", "b.jsonl"]);
    }

    #[test]
    fn flags_take_their_forms() {
        let a =
            settings("--packing --use-dora 1 --max_steps -1 --resume_from_checkpoint --target_modules q_proj v_proj");
        assert!(a.packing && a.use_dora && a.max_steps.is_none());
        assert_eq!(a.resume_from_checkpoint.as_deref(), Some("true"));
        assert_eq!(a.target_modules, ["q_proj", "v_proj"]);
        let b = settings("--lora_rank 4 --lora_rank 8 --target_modules q_proj --target_modules v_proj --out x");
        assert_eq!((b.lora_rank, b.target_modules.len(), b.output_dir), (8, 2, Some(PathBuf::from("x"))));
        assert_eq!(
            settings("--resume_from_checkpoint out/checkpoint-5").resume_from_checkpoint.unwrap(),
            "out/checkpoint-5"
        );
        assert_eq!(settings("--fp16 false --deepspeed none --freeze_parameters_ratio 0").notes.len(), 0);
        assert_eq!(settings("--learning_rate=5e-5").args_json()["learning_rate"], 5e-5);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let usage = |flags: &str| parse(&format!("qft train --model m --dataset d {flags}")).unwrap_err();
        assert!(usage("--lora_rank zero").contains("is not a whole number from 1"));
        assert!(usage("--lora_dropout 1").contains("from 0 to below 1"));
        assert!(usage("--lr_scheduler_type polynomial").contains("one of cosine, linear"));
        assert!(usage("--lora_rnk 8").contains("--lora-rank"));
        let refused = |flags: &str| {
            parse(&format!("qft train --model m --dataset d {flags}")).unwrap().settings().unwrap_err().to_string()
        };
        assert!(refused("--fp16").contains("--bf16"));
        assert!(refused("--deepspeed zero2").contains("nothing to shard"));
        assert!(refused("--train_type full").contains("qft trains LoRA"));
        assert!(refused("--modules_to_save embed_tokens lm_head").contains("LoRA"));
    }

    #[test]
    fn timings_come_with_the_most_first() {
        assert!(parse("qft train --model m --dataset d --timings").unwrap().run.timings);
        let timings = [("attend", 0.25), ("project", 1.5)].into_iter().collect();
        let report = TrainReport { timings, ..TrainReport::default() };
        let text = timings_text(&report);
        assert!(text.find("project").unwrap() < text.find("attend").unwrap() && text.contains("1.5000 s"), "{text}");
        assert_eq!(timings_text(&TrainReport::default()), "");
    }

    #[test]
    fn the_plan_shows_what_was_asked() {
        let rows = asked(&parse(COMMAND).unwrap().settings().unwrap());
        let shows = |name: &str, value: &str| rows.iter().any(|row| row == &[name.to_owned(), value.to_owned()]);
        assert!(shows("learning_rate", "0.0002") && shows("lora_dropout", "0.1"), "{rows:?}");
        assert!(!rows.iter().any(|[name, _]| name == "adam_beta1"), "a default: {rows:?}");
    }
}
