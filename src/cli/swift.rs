//! ms-swift's flags that a command has no setting for, on its command line: hidden, of any values, noted or refused.

use std::sync::LazyLock;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use qft::swift::{EXPORT, Flag};
use serde_json::Value;

use super::flags::flagged;

/// Those of `swift export`, `infer`, `deploy` and `eval`, as they were given to `qft export`.
#[derive(Debug, Clone, Default)]
pub(crate) struct SwiftArgs {
    given: Vec<(&'static Flag, Value)>,
}

impl SwiftArgs {
    /// A note on each that changes nothing. What qft doesn't do is refused.
    pub(super) fn notes(&self) -> qft::Result<Vec<String>> {
        let notes = self.given.iter().filter_map(|(flag, value)| flag.verdict(value).transpose());
        notes.collect()
    }
}

/// A flag's names as they are typed.
pub(super) struct Names {
    pub(super) long: String,
    pub(super) aliases: Vec<String>,
}

impl Names {
    pub(super) fn new(flag: &Flag) -> Self {
        let dashed = |name: &str| name.replace('_', "-");
        Self { long: dashed(flag.name), aliases: flag.aliases.iter().map(|alias| dashed(alias)).collect() }
    }
}

static NAMES: LazyLock<Vec<(&Flag, Names)>> =
    LazyLock::new(|| EXPORT.iter().copied().flatten().map(|flag| (flag, Names::new(flag))).collect());

/// The flag, hidden. Some take a list and some stand alone: all that matters is what was asked for.
pub(super) fn hidden(flag: &'static Flag, names: &'static Names) -> Arg {
    Arg::new(flag.name)
        .long(names.long.as_str())
        .aliases(names.aliases.iter().map(String::as_str))
        .hide(true)
        .allow_negative_numbers(true)
        .num_args(0..)
        .default_missing_value("true")
        .action(ArgAction::Append)
}

/// What a hidden flag was given last: one value, or a list.
pub(super) fn last_value(matches: &ArgMatches, flag: &Flag) -> Option<Value> {
    let last = matches.get_occurrences::<String>(flag.name)?.next_back()?;
    let mut texts: Vec<Value> = last.map(|text| text.as_str().into()).collect();
    match texts.pop() {
        Some(one) if texts.is_empty() => Some(one),
        last => Some(texts.into_iter().chain(last).collect()),
    }
}

/// An error of the library as one of the command line.
pub(super) fn usage(error: &qft::Error) -> clap::Error {
    clap::Error::raw(ErrorKind::ValueValidation, format!("{}\n", flagged(&error.to_string())))
}

impl Args for SwiftArgs {
    fn augment_args(command: Command) -> Command {
        NAMES.iter().fold(command, |command, (flag, names)| command.arg(hidden(flag, names)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SwiftArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let taken = |flag: &'static Flag| {
            let value = last_value(matches, flag)?;
            Some(flag.take(&value).map(|value| (flag, value)).map_err(|e| usage(&e)))
        };
        let given = EXPORT.iter().copied().flatten().filter_map(taken).collect::<Result<_, _>>()?;
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command as Subcommand, dashes};
    use clap::{CommandFactory, Parser};
    use qft::swift::Fate;
    use qft::train::settings::flags;

    /// A line a flag: its name, the commands that have it, its type, its default.
    const LIST: &str = include_str!("../../fixtures/swift/flags-4.6.0.tsv");

    struct Listed {
        name: &'static str,
        commands: Vec<&'static str>,
        kind: &'static str,
        default: &'static str,
    }

    impl Listed {
        /// The default as it is typed; nothing where there is none.
        fn default_words(&self) -> Vec<String> {
            let list = self.default.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let words = list.map_or(vec![self.default], |list| list.split(", ").collect());
            let words = words.into_iter().map(|word| word.trim_matches('\''));
            words.filter(|word| !["", "None", "{}"].contains(word)).map(str::to_owned).collect()
        }

        /// A value of its type that is not the default.
        fn other_words(&self) -> Vec<String> {
            let has = |kind: &str| self.kind.contains(kind);
            let choices = self.kind.split('\'').skip(1).step_by(2);
            let word = match self.default {
                default if has("Literal['") => choices.into_iter().find(|choice| *choice != default).unwrap_or("x"),
                "True" => "false",
                "False" => "true",
                default if has("int") || default.parse::<i64>().is_ok() => "7",
                default if has("float") || default.parse::<f64>().is_ok() => "0.5",
                _ if has("bool") => "true",
                _ => "x",
            };
            vec![word.to_owned()]
        }
    }

    fn listed() -> impl Iterator<Item = Listed> {
        LIST.lines().map(|line| {
            let cells: Vec<&'static str> = line.split('\t').collect();
            Listed { name: cells[0], commands: cells[1].split(',').collect(), kind: cells[2], default: cells[3] }
        })
    }

    /// What the command says to `--name words`: its notes, or why it refuses.
    fn say(command: &str, name: &str, words: &[String]) -> Result<Vec<String>, String> {
        let start = match (command, name) {
            ("train", _) => "qft train --model m --dataset d",
            (_, "model") => "qft export",
            _ => "qft export --base b",
        };
        // Flags that are part of a whole are given with it.
        let whole = match name {
            "resume_only_model" => "--resume_from_checkpoint",
            "load_best_model_at_end" | "eval_on_start" => "--split_dataset_ratio=0.1",
            "adapters" if command == "export" => "--merge_lora",
            _ => "",
        };
        let line = start.split(' ').chain(Some(whole).filter(|word| !word.is_empty())).map(str::to_owned);
        let line = line.chain([format!("--{name}")]).chain(words.iter().cloned());
        match Cli::try_parse_from(line.map(|word| dashes(word.into()))).map_err(|e| e.to_string())?.command {
            Subcommand::Train(args) => args.settings().map(|settings| settings.notes).map_err(|e| e.to_string()),
            Subcommand::Export(args) => args.swift.notes().map_err(|e| e.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flag_of_ms_swift_is_used_noted_or_refused() {
        let mut unknown = Vec::new();
        for flag in listed() {
            for command in ["train", "export"] {
                if command == "export" && flag.commands == ["sft"] {
                    continue;
                }
                let words = [flag.default_words(), flag.other_words()];
                for words in words.into_iter().filter(|words| !words.is_empty()) {
                    if let Err(error) = say(command, flag.name, &words) {
                        let told = error.contains("\n  remedy: ") || error.contains("invalid value '");
                        if !told || error.contains("unexpected argument") {
                            unknown.push(format!("{command} --{} {words:?}: {error}", flag.name));
                        }
                    }
                }
            }
        }
        assert_eq!(unknown, [] as [&str; 0]);
    }

    #[test]
    fn what_ms_swift_has_by_default_is_taken_without_a_word() {
        let mut heard = Vec::new();
        for (command, theirs) in [("train", "sft"), ("export", "export")] {
            for flag in listed().filter(|flag| flag.commands.contains(&theirs)) {
                let words = flag.default_words();
                let said = if words.is_empty() { Ok(Vec::new()) } else { say(command, flag.name, &words) };
                if said != Ok(Vec::new()) {
                    heard.push(format!("{command} --{} {words:?}: {said:?}", flag.name));
                }
            }
        }
        assert_eq!(heard, [] as [&str; 0]);
    }

    #[test]
    fn a_remedy_names_flags_of_its_command() {
        let root = Cli::command();
        let visible = |command: &str, name: &str| {
            let command = root.find_subcommand(command).unwrap();
            let long = name.replace('_', "-");
            command.get_arguments().any(|arg| {
                let names = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
                !arg.is_hide_set() && names.into_iter().any(|other| other == long)
            })
        };
        let named = |text: &str| -> Vec<String> {
            let starts = text.match_indices("--").map(|(at, _)| &text[at + 2..]);
            let name =
                |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
            starts.map(name).filter(|name: &String| !name.is_empty()).collect()
        };
        let export = EXPORT.iter().copied().flatten().map(|flag| ("export", flag));
        for (command, flag) in flags().map(|flag| ("train", flag)).chain(export) {
            let Fate::Only { remedy, .. } = flag.fate else { continue };
            // Every other part is a command line of its own.
            for (number, part) in remedy.split('`').enumerate() {
                let words: Vec<&str> = part.split(' ').collect();
                let command = match (number % 2, &words[..]) {
                    (0, _) => command,
                    (_, ["qft", other, ..]) => other,
                    _ => continue,
                };
                for name in named(part) {
                    assert!(visible(command, &name), "{}: qft {command} has no --{name}", flag.name);
                }
            }
        }
    }

    #[test]
    fn the_words_of_ms_swift_s_readme_are_understood() {
        let said = |command, name, words: &str| {
            let words: Vec<String> = words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
            say(command, name, &words)
        };
        assert!(said("train", "model_author", "swift").unwrap()[0].contains("{{AUTHOR}}"));
        assert!(said("train", "model_name", "a swift-robot").is_ok());
        for name in ["train_type", "tuner_type", "sft_type"] {
            assert_eq!(said("train", name, "lora"), Ok(Vec::new()));
            assert!(said("train", name, "full").unwrap_err().contains("drop the flag"));
        }
        assert!(said("train", "new_special_tokens", "<a> <b>").unwrap_err().contains("remedy"));
        assert!(said("train", "use_chat_template", "false").unwrap_err().contains("remedy"));
        assert!(said("train", "label_smoothing_factor", "0.1").unwrap_err().contains("cross-entropy"));
        assert!(said("train", "merge_lora", "true").unwrap_err().contains("qft export"));
        assert!(said("export", "quant_bits", "4").unwrap_err().contains("--gguf"));
        assert!(said("export", "to_ollama", "").unwrap_err().contains("--gguf"));
        assert!(said("export", "exist_ok", "true").unwrap()[0].contains("--overwrite"));
        assert!(said("export", "infer_backend", "vllm").unwrap()[0].contains("vllm serve"));
        assert!(said("export", "api_key", "sk-1").unwrap()[0].contains("api_key ..."));
        assert_eq!(said("export", "adapters", "x"), Ok(Vec::new()));
    }
}
