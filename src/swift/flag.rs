//! A flag as a row of a table: its names, what it takes, what becomes of it, and what is to be said of a value.

use serde_json::Value;

use super::SECRETS;
use super::kind::{Kind, bool_of, number, shown};
use crate::error::{Error, Result};

/// A flag; the same name without dashes is the key of a TOML file and of args.json.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name, with underscores.
    pub name: &'static str,
    /// Other names of it.
    pub aliases: &'static [&'static str],
    /// What it takes.
    pub kind: Kind,
    /// What becomes of it.
    pub fate: Fate,
    /// What it means.
    pub help: &'static str,
}

/// What becomes of a flag that is given.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// It is a field of the command's settings.
    Used,
    /// It changes nothing in qft.
    Noted {
        /// Values that need no note.
        unless: &'static [&'static str],
        /// Why it changes nothing.
        why: &'static str,
    },
    /// qft does one thing only.
    Only {
        /// Values that ask for that. Those that ask for nothing (false, none, 0) are accepted too, unless that is a
        /// switch which is always on, and `true` stands here.
        values: &'static [&'static str],
        /// What to do where another was asked for.
        remedy: &'static str,
    },
}

/// A flag that does something.
pub(crate) const fn used(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, aliases: &[], kind, fate: Fate::Used, help }
}

/// A flag that changes nothing.
pub(super) const fn noted(name: &'static str, unless: &'static [&'static str], why: &'static str) -> Flag {
    Flag { name, aliases: &[], kind: Kind::Any, fate: Fate::Noted { unless, why }, help: "Accepted" }
}

/// A flag for what qft doesn't do, or does in one way.
pub(super) const fn only(name: &'static str, values: &'static [&'static str], remedy: &'static str) -> Flag {
    Flag { name, aliases: &[], kind: Kind::Any, fate: Fate::Only { values, remedy }, help: "Refused" }
}

/// `flag`, with other names.
pub(crate) const fn also(aliases: &'static [&'static str], flag: Flag) -> Flag {
    Flag { aliases, ..flag }
}

impl Flag {
    /// Whether `name`, whose dashes are underscores, is one of its names.
    pub fn goes_by(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    /// The value in its one form; null where it asks for nothing.
    pub fn take(&self, value: &Value) -> Result<Value> {
        let name = self.name;
        match self.fate {
            Fate::Only { values, .. } if asks_for_nothing(value, values) => Ok(Value::Null),
            _ => self.kind.take(value).map_err(|problem| {
                Error::invalid(format!("{name}: {problem}"), format!("give {} for {name}", self.kind.expected()))
            }),
        }
    }

    /// What is to be said of a value that was taken: a note, nothing, or that qft doesn't do it.
    pub fn verdict(&self, value: &Value) -> Result<Option<String>> {
        let name = self.name;
        let asks = |for_any: &[&str]| for_any.iter().any(|known| same(value, known));
        match self.fate {
            Fate::Noted { unless, why } if !value.is_null() && !asks(unless) => {
                let value = if SECRETS.contains(&name) { "...".to_owned() } else { shown(value) };
                Ok(Some(format!("{name} {value} has no effect: {why}")))
            }
            Fate::Only { values, remedy } if !value.is_null() && !asks(values) => {
                Err(Error::unsupported(format!("qft does not support {name} {}", shown(value)), remedy))
            }
            _ => Ok(None),
        }
    }
}

/// Whether a value turns a feature off, or leaves it to a default. A switch that is always on can't be turned off.
fn asks_for_nothing(value: &Value, values: &[&str]) -> bool {
    const DEFAULTS: [&str; 5] = ["", "none", "null", "[]", "{}"];
    const OFF: [&str; 2] = ["no", "off"];
    let word = shown(value).to_ascii_lowercase();
    let off = bool_of(value) == Some(false) || number(value) == Some(0.0) || OFF.contains(&word.as_str());
    DEFAULTS.contains(&word.as_str()) || (off && !values.contains(&"true"))
}

/// Whether a value is the one that a table writes so, in any case and with any number of zeros.
fn same(value: &Value, known: &str) -> bool {
    let truth = |word: &str| (word == "true" || word == "false").then_some(word == "true");
    let numbers = (number(value), known.parse::<f64>().ok());
    shown(value).eq_ignore_ascii_case(known)
        || truth(known).is_some_and(|truth| bool_of(value) == Some(truth) || number(value) == Some(f64::from(truth)))
        || matches!(numbers, (Some(a), Some(b)) if a.to_bits() == b.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_says_what_becomes_of_a_value() {
        let say = |flag: Flag, value: Value| flag.take(&value).and_then(|value| flag.verdict(&value));
        let quiet = |flag: Flag, value: Value| assert_eq!(say(flag, value.clone()).unwrap(), None, "{value}");
        let smooth = only("label_smoothing_factor", &[], "drop it");
        for nothing in [json!("0"), json!("0.00"), json!(0.0), json!("False"), json!("none"), json!(""), json!([])] {
            quiet(smooth, nothing);
        }
        assert!(say(smooth, json!("0.1")).unwrap_err().to_string().contains("label_smoothing_factor 0.1\n"));
        // A switch that is always on.
        let shuffles = only("dataset_shuffle", &["true"], "drop it");
        for on in [json!("true"), json!(true), json!("1"), json!("yes"), json!("None")] {
            quiet(shuffles, on);
        }
        for off in [json!("false"), json!("0"), json!(false), json!("no")] {
            assert!(say(shuffles, off.clone()).is_err(), "{off}");
        }
        let beta = noted("adalora_beta1", &["0.85"], "it is AdaLoRA's");
        quiet(beta, json!("0.850"));
        quiet(beta, json!(0.85));
        let note = say(beta, json!("0.9")).unwrap().unwrap();
        assert_eq!(note, "adalora_beta1 0.9 has no effect: it is AdaLoRA's");
        let key = noted("api_key", &[], "there is no server");
        assert!(!say(key, json!("sk-1")).unwrap().unwrap().contains("sk-1"));
        assert!(say(only("modules_to_save", &[], "drop it"), json!(["a", "b"])).is_err());
    }
}
