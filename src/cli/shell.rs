//! `qft completions` and `qft man`: generated from the flags, so they are always up to date.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use qft::error::Error;

use super::{Cli, print};

/// Print the completion script of a shell.
///
/// For example: qft completions bash > ~/.local/share/bash-completion/completions/qft
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Print the manual page, or write the pages of all commands to a directory.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write qft.1, qft-export.1 and so on here.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "qft", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    if let Some(dir) = &args.out {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        clap_mangen::generate_to(Cli::command(), dir).map_err(Error::io("write to", dir))?;
    } else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        print(&String::from_utf8_lossy(&page))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_know_the_types_of_gguf() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "qft", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("q4_k_m") && script.contains("iq4_xs"), "{shell}");
        }
        let mut help = Cli::command();
        let help = help.find_subcommand_mut("quantize").unwrap().render_long_help().to_string();
        assert!(!help.contains("ossible values"), "{help}");
    }
}
