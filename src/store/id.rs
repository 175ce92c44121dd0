//! Ids of repositories: `org/name` or `name`, either with `@revision`.

use super::no_such_directory;
use crate::error::{Error, Result, escaped};

/// A checked Hub id. Ids come out of files too, so nothing in one may lead out of a cache or change a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id {
    name: String,
    revision: Option<String>,
}

impl Id {
    /// Parses `org/name`, `name`, either with `@revision`.
    ///
    /// # Errors
    ///
    /// If `spec` is no id; it may be a path to a directory that isn't there.
    pub fn parse(spec: &str) -> Result<Self> {
        let (name, revision) = spec.split_once('@').map_or((spec, None), |(name, revision)| (name, Some(revision)));
        if spec.starts_with(['.', '/', '~']) || spec.contains('\\') || name.matches('/').count() > 1 {
            return Err(no_such_directory(spec, false));
        }
        if !name.split('/').chain(revision.iter().flat_map(|r| r.split('/'))).all(is_part) {
            let problem = format!("{:?} is neither a directory nor a Hub id", escaped(spec));
            return Err(Error::not_found(problem, "give a directory that exists, or org/name or org/name@revision"));
        }
        Ok(Self { name: name.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The id without its revision.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The revision, if one was asked for.
    pub fn asked(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The revision: that which was asked for, else `main`.
    pub fn revision(&self) -> &str {
        self.asked().unwrap_or("main")
    }
}

/// Whether `part` can stand between the slashes of an id or a revision, and as one name in a path.
pub(crate) fn is_part(part: &str) -> bool {
    let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    plain && (1..=96).contains(&part.len()) && !part.starts_with(['.', '-']) && !part.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_path_is_not_taken_for_an_id() {
        for spec in ["./x", "../x/y", "/no/such", "~/x", "a/b/c", "a/b/", "a\\b", ".hidden"] {
            let text = Id::parse(spec).unwrap_err().to_string();
            assert!(text.starts_with("no such directory"), "{spec}: {text}");
        }
    }

    #[test]
    fn hostile_ids_are_refused() {
        let long = format!("o/{}", "n".repeat(97));
        let words = "o/ o/.. o/.n -o/n o/-n o/a..b o/n?x o/n%2e ö/n o/n@ o/n@.. o/n@a/../b o/n@/etc o/n@a@b http:o";
        for spec in words.split(' ').chain(["", "o/n\0", "o/n m", &long]) {
            let text = Id::parse(spec).unwrap_err().to_string();
            assert!(text.contains("neither a directory nor a Hub id"), "{spec:?}: {text}");
        }
        let text = Id::parse("o/\u{1b}[2J").unwrap_err().to_string();
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn main_is_the_revision_if_none_is_asked_for() {
        let id = Id::parse("o/n").unwrap();
        assert_eq!((id.name(), id.asked(), id.revision()), ("o/n", None, "main"));
        let id = Id::parse("n@refs/pr/1").unwrap();
        assert_eq!((id.name(), id.asked(), id.revision()), ("n", Some("refs/pr/1"), "refs/pr/1"));
    }
}
