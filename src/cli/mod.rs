//! The command line: flags are syntax here, and become a plan in each subcommand's file. All printing is below this
//! module.

mod bars;
mod device;
mod encoded;
mod encoding;
mod export;
mod file_job;
mod flags;
mod gguf;
mod inspect;
mod models;
mod quality;
mod quantize;
mod reference;
mod shell;
mod signals;
mod swift;
mod table;
mod to_hf;
mod train;
mod train_bar;
mod verify;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use qft::ErrorKind;

use flags::flagged;
use signals::{CANCEL, STOP, handle_signals, unasked};

/// Turn a LoRA fine-tune into a release: merge, reshard, check, publish.
#[derive(Debug, Parser)]
#[command(name = "qft", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed, with the reason; 2 bad command line; \
                          3 verify found a difference; 75 failed, and a retry may help (network, GPU, memory, disk \
                          space); 130 interrupted.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(train::TrainArgs),
    Export(export::ExportArgs),
    Gguf(gguf::GgufArgs),
    Quantize(quantize::QuantizeArgs),
    ToHf(to_hf::ToHfArgs),
    Verify(verify::VerifyArgs),
    Inspect(inspect::InspectArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// Exit code of `verify` for a release that is not what it should be.
const EXIT_DIFFERENT: u8 = 3;
/// Exit code of a failure that a retry may cure: `EX_TEMPFAIL` of sysexits.h.
const EXIT_TRANSIENT: u8 = 75;
/// Exit code of a run that was interrupted.
const EXIT_INTERRUPTED: u8 = 130;

/// Parses the command line; the error is the exit code after usage, help or version was printed.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, ExitCode> {
    match Cli::try_parse_from(args.into_iter().map(dashes)) {
        Ok(cli) => Ok(cli.command),
        Err(error) => {
            // A closed pipe is no reason to fail.
            let _ = error.print();
            Err(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
        }
    }
}

/// `--max_shard_size=2GB` as `--max-shard-size=2GB`: underscores in the names of long flags are dashes.
fn dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|text| text.starts_with("--") && text.contains('_')) else { return arg };
    match text.split_once('=') {
        Some((flag, value)) => format!("{}={value}", flag.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Gguf(args) => gguf::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::ToHf(args) => to_hf::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

/// Prints an error and chooses the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let broken_pipe = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let kind = error.downcast_ref::<qft::Error>().map(qft::Error::kind);
    let interrupted = kind == Some(ErrorKind::Interrupted);
    let line = if interrupted { format!("qft: {error}") } else { format!("error: {error}") };
    note(&line);
    match kind {
        Some(ErrorKind::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        Some(kind) if kind.is_transient() => ExitCode::from(EXIT_TRANSIENT),
        _ => ExitCode::FAILURE,
    }
}

/// Prints to standard output, with flags for the settings that the library names.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(flagged(text).as_bytes()).and_then(|()| out.flush()) {
        // A closed pipe is found by its cause in `report`.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(qft::Error::io("write to", Path::new("standard output"))(e).into())
        }
        done => Ok(done?),
    }
}

/// Prints a line that is not the result: to standard error, with flags for the settings that the library names.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{}", flagged(line));
}

/// Worker threads: as many as asked for, or as the machine has.
fn jobs(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).clamp(1, 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn underscores_are_dashes_in_flags_only() {
        assert_eq!(dashes("--max_shard_size=2_GB".into()), OsString::from("--max-shard-size=2_GB"));
        assert_eq!(dashes("my_model".into()), OsString::from("my_model"));
        assert_eq!(dashes("--merge_lora".into()), OsString::from("--merge-lora"));
    }
}
