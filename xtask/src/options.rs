//! Options of a task: `--name VALUE` and `--name=VALUE`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

/// The options that were given, by name.
pub(crate) struct Options(BTreeMap<&'static str, String>);

impl Options {
    /// Reads `args`, which may hold the options of `names` and nothing else.
    pub(crate) fn parse(args: &[String], names: &'static [&'static str]) -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            let Some(known) = names.iter().find(|known| name.strip_prefix("--") == Some(**known)) else {
                bail!("{arg}: no such option; `cargo xtask help` lists them");
            };
            let value = value.or_else(|| args.next().cloned());
            found.insert(*known, value.with_context(|| format!("{name} needs a value after it"))?);
        }
        Ok(Self(found))
    }

    /// The value of an option, if it was given.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A whole number above zero, or `default`.
    pub(crate) fn count(&self, name: &str, default: usize) -> anyhow::Result<usize> {
        let Some(text) = self.text(name) else { return Ok(default) };
        count(text).with_context(|| format!("--{name}"))
    }
}

/// A whole number above zero.
pub(crate) fn count(text: &str) -> anyhow::Result<usize> {
    text.parse().ok().filter(|n| *n > 0).with_context(|| format!("{text:?} is no whole number above zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Options> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&args, &["runs", "dir"])
    }

    #[test]
    fn reads_both_spellings_and_refuses_the_rest() {
        let options = parse("--runs 3 --dir=x").unwrap();
        assert_eq!((options.count("runs", 5).unwrap(), options.text("dir")), (3, Some("x")));
        assert_eq!(parse("").unwrap().count("runs", 5).unwrap(), 5);
        for line in ["--run 3", "runs", "--runs"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--runs 0").unwrap().count("runs", 5).is_err());
    }
}
