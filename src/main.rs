//! The `qft` binary: parse, dispatch, exit code. Everything else is in `cli` and in the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    qft::files::prepare_signals();
    qft::caught::keep_quiet();
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(exit) => return exit,
    };
    match cli::run(command) {
        Ok(exit) => exit,
        Err(error) => cli::report(&error),
    }
}
