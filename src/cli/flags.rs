//! What the settings that the library's messages name are called on the command line.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use clap::CommandFactory;
use qft::error::{escaped, name_settings};
use qft::train::settings::GROUPS;

use super::Cli;

/// A text of the library, with flags for the settings that it names.
pub(super) fn flagged(text: &str) -> Cow<'_, str> {
    name_settings(text, flag)
}

/// A warning of the library, escaped, with flags for the settings that it names.
pub(super) fn warned(text: &str) -> String {
    escaped(&flagged(text))
}

/// The long flags of all commands, without their dashes in front.
static FLAGS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let mut cli = Cli::command();
    cli.build();
    let long = |arg: &clap::Arg| arg.get_long().map(str::to_owned);
    cli.get_subcommands().flat_map(|command| command.get_arguments().filter_map(long)).collect()
});

/// The flag of the setting `name`. Those of a training are written as ms-swift writes them.
fn flag(name: &str) -> Option<String> {
    if GROUPS.iter().any(|(_, flags)| flags.iter().any(|flag| flag.name == name)) {
        return Some(format!("--{name}"));
    }
    let name = name.replace('_', "-");
    FLAGS.contains(&name).then(|| format!("--{name}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// The lines of the library's sources that are no comments, and where they are. Those of tests are left out, and the
    /// tables of flags, which are the command line's.
    fn lines() -> Vec<(String, String)> {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (mut dirs, mut files) = (vec![src.clone()], Vec::<PathBuf>::new());
        while let Some(dir) = dirs.pop() {
            for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() { dirs.push(path) } else { files.push(path) }
            }
        }
        let mut lines = Vec::new();
        for path in files.iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs")) {
            let name = path.strip_prefix(&src).unwrap().display().to_string();
            let is_apart = ["cli/", "swift/", "train/settings/table.rs", "main.rs", "error/settings.rs"];
            if is_apart.iter().any(|part| name.starts_with(part)) || name.contains("tests") || name.contains("golden") {
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let all: Vec<&str> = text.lines().collect();
            let is_tests =
                |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{');
            let end = all.windows(2).position(is_tests).unwrap_or(all.len());
            let numbered = all[..end].iter().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
            lines.extend(numbered.map(|(at, line)| (format!("src/{name}:{}", at + 1), (*line).to_owned())));
        }
        lines
    }

    #[test]
    fn every_setting_that_a_message_names_has_a_flag() {
        let mut named = 0;
        for (place, line) in lines() {
            for mark in line.split('⟦').skip(1) {
                let (mark, _) = mark.split_once('⟧').unwrap_or_else(|| panic!("{place}: a mark goes over lines"));
                let name = mark.split(' ').next().unwrap_or_default();
                // Some are filled in.
                assert!(name.starts_with('{') || flag(name).is_some(), "{place}: no command has a flag {name}");
                named += 1;
            }
        }
        assert!(named > 100, "{named} marks were looked at");
    }

    /// A message that knew a flag would be wrong in every other program.
    #[test]
    fn the_library_names_no_flag() {
        for (place, line) in lines() {
            let is_anothers = ["torchrun", "swanlab", "modelscope"].iter().any(|program| line.contains(program));
            for word in line.split("--").skip(1).filter(|_| !is_anothers) {
                let name: String = word.chars().take_while(|c| c.is_ascii_lowercase() || "-_".contains(*c)).collect();
                assert!(!FLAGS.contains(&name.replace('_', "-")), "{place} names the flag --{name}");
            }
        }
    }

    #[test]
    fn flags_are_written_as_their_commands_write_them() {
        let text = "give ⟦max_length 8⟧, ⟦split_max_size⟧ or ⟦a_thing⟧; see `qft train ⟦help⟧`";
        assert_eq!(flagged(text), "give --max_length 8, --split-max-size or ⟦a_thing⟧; see `qft train --help`");
    }
}
