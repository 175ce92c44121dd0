//! What may be written to: refuses destinations where something would be lost. Looks, and changes nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::foreign::{Overwrite, foreign};
use super::publish::{Halfway, aside, names_in};
use super::staging::parent;
use crate::error::{Error, Result, escaped, shown};

/// Files that a refusal lists; the rest is counted.
const LISTED: usize = 8;

/// Refuses destinations that would lose something: files, directories with content (unless `overwrite`, and even then
/// those that hold an input or do not look like a model, and by it alone those that hold more than a model). Returns what
/// is deleted that is no part of a model.
pub(crate) fn check_destination(out: &Path, inputs: &[&Path], overwrite: Overwrite) -> Result<Vec<String>> {
    let refuse = |problem: String, remedy: &str| Err(Error::exists(problem, remedy));
    let nothing = Ok(Vec::new());
    let other = "choose another destination with ⟦out⟧";
    if out.file_name().is_none() {
        return Err(Error::invalid(format!("{} can't be a destination", shown(out)), other));
    }
    let real = resolved(out);
    for input in inputs {
        let input = resolved(input);
        if input.starts_with(&real) {
            let problem = format!("the destination {} holds the input {}", shown(out), shown(&input));
            return Err(Error::invalid(problem, other));
        }
    }
    // The old content, which the next run puts back, if a run was killed while it lay aside.
    let aside = aside(out);
    let place = if fs::symlink_metadata(out).is_err() && aside.is_dir() { aside.as_path() } else { out };
    match fs::metadata(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(out).is_ok() => {
            refuse(format!("{} is a link to nothing", shown(out)), "remove the link, or choose another ⟦out⟧")
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => nothing,
        Err(e) => Err(Error::io("look at", out)(e)),
        Ok(meta) if !meta.is_dir() => refuse(format!("{} exists, and is not a directory", shown(out)), other),
        Ok(_) if is_empty(place)? => nothing,
        Ok(_) if !looks_like_model(place) => refuse(
            format!("{} exists, is not empty, and does not look like a model, so it is not exchanged", shown(out)),
            other,
        ),
        Ok(_) if !overwrite.is_allowed() => refuse(
            format!("{} exists and is not empty", shown(out)),
            "choose another ⟦out⟧, or exchange it with ⟦overwrite⟧",
        ),
        Ok(_) => {
            let others = foreign(place)?;
            if others.is_empty() || overwrite == Overwrite::All {
                return Ok(others.into_iter().collect());
            }
            let mut listed = others.iter().take(LISTED).map(|name| escaped(name)).collect::<Vec<_>>().join(", ");
            if others.len() > LISTED {
                listed += &format!(" and {} more", others.len() - LISTED);
            }
            refuse(
                format!("{} has files that are not part of the model there: {listed}", shown(out)),
                "move it away, choose another ⟦out⟧, or delete it with the model by ⟦overwrite⟧ ⟦delete_others⟧",
            )
        }
    }
}

/// Whether `dir` holds a file that a model has: what may be deleted when it is exchanged.
fn looks_like_model(dir: &Path) -> bool {
    let signs = ["config.json", "qft-manifest.json", "model.safetensors", "model.safetensors.index.json"];
    signs.iter().any(|name| dir.join(name).exists())
}

/// Refuses a destination file that is there, unless `overwrite`, and even then one that is an input or no file. `setting`
/// names it.
pub(crate) fn check_file(setting: &str, out: &Path, inputs: &[&Path], overwrite: bool) -> Result<()> {
    check_one(setting, out, inputs, overwrite, &Halfway::default())
}

/// [`check_file`] for the files `names`, of which one is to be at `out` and the others beside it. What else belongs to
/// the model there, an older split of it, say, is refused as well, or returned: with `overwrite` it goes, unless it is an
/// input.
pub(crate) fn check_files(
    out: &Path,
    names: &[&str],
    belongs: impl Fn(&str) -> bool,
    inputs: &[&Path],
    overwrite: bool,
) -> Result<Vec<String>> {
    let left = Halfway::beside(out);
    names.iter().try_for_each(|name| check_one("out", &out.with_file_name(name), inputs, overwrite, &left))?;
    let is_input = |path: &Path| inputs.iter().any(|input| resolved(input) == resolved(path));
    let there = |name: &str| {
        let path = out.with_file_name(name);
        let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_dir());
        (is_file && !left.placed.contains(name) || left.displaced.contains(name)) && !is_input(&path)
    };
    let mut found = names_in(parent(out)).map_err(Error::io("list", parent(out)))?;
    found.extend(left.displaced.iter().cloned());
    found.retain(|name| belongs(name) && !names.contains(&name.as_str()) && there(name));
    match found.first() {
        Some(first) if !overwrite => {
            let more = if found.len() > 1 { format!(" and {} more", found.len() - 1) } else { String::new() };
            let first = shown(&out.with_file_name(first));
            Err(Error::exists(
                format!("{first}{more} would remain from an older model of this name"),
                "choose another ⟦out⟧, or replace all of it with ⟦overwrite⟧",
            ))
        }
        _ => Ok(found.into_iter().collect()),
    }
}

fn check_one(setting: &str, out: &Path, inputs: &[&Path], overwrite: bool, left: &Halfway) -> Result<()> {
    let refuse = |problem: String, remedy: &str| Err(Error::exists(problem, remedy));
    let other = &format!("choose another destination with ⟦{setting}⟧");
    let Some(name) = out.file_name().map(|name| name.to_string_lossy()) else {
        return Err(Error::invalid(format!("{} can't be a destination", shown(out)), other));
    };
    let real = resolved(out);
    if inputs.iter().any(|input| resolved(input).starts_with(&real)) {
        return Err(Error::invalid(format!("the destination {} is an input, or holds it", shown(out)), other));
    }
    let another = format!("choose another ⟦{setting}⟧, or replace it with ⟦overwrite⟧");
    match fs::symlink_metadata(out) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && left.displaced.contains(&*name) && !overwrite => {
            refuse(format!("{} was moved aside by a run that was interrupted", shown(out)), &another)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", out)(e)),
        Ok(meta) if !meta.is_file() => refuse(format!("{} exists, and is not a file", shown(out)), other),
        Ok(_) if overwrite || left.placed.contains(&*name) => Ok(()),
        Ok(_) => refuse(format!("{} exists", shown(out)), &another),
    }
}

/// `path` with links resolved as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => resolved(parent).join(name),
        (_, Some(name)) => fs::canonicalize(".").map_or_else(|_| path.to_owned(), |dir| dir.join(name)),
        _ => path.to_owned(),
    }
}

fn is_empty(dir: &Path) -> Result<bool> {
    Ok(fs::read_dir(dir).map_err(Error::io("list", dir))?.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(dir: &Path, name: &str, content: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), content).unwrap();
        path
    }

    #[test]
    fn refuses_what_would_lose_something() {
        let tmp = tempfile::tempdir().unwrap();
        let base = model(tmp.path(), "base", "{}");
        let check = |out: &Path, overwrite| {
            let overwrite = if overwrite { Overwrite::Model } else { Overwrite::No };
            check_destination(out, &[&base], overwrite).map_err(|e| e.to_string())
        };
        let nothing = Ok(Vec::new());
        assert_eq!(check(&tmp.path().join("new/deeper"), false), nothing);
        for overwrite in [false, true] {
            assert!(check(&base, overwrite).unwrap_err().contains("holds the input"));
            assert!(check(tmp.path(), overwrite).unwrap_err().contains("holds the input"));
            assert!(check(&base.join("config.json"), overwrite).unwrap_err().contains("not a directory"));
        }
        let other = model(tmp.path(), "other", "old");
        assert!(check(&other, false).unwrap_err().contains("⟦overwrite"));
        assert_eq!(check(&other, true), nothing);
        fs::write(other.join("README.md"), "a model card").unwrap();
        let refused = check(&other, true).unwrap_err();
        assert!(refused.contains("README.md") && refused.contains("⟦delete_others"), "{refused}");
        assert_eq!(check_destination(&other, &[], Overwrite::All).unwrap(), ["README.md"]);
        let home = tmp.path().join("home");
        fs::create_dir(&home).unwrap();
        assert_eq!(check(&home, false), nothing, "an empty directory is as good as none");
        fs::write(home.join("thesis.tex"), "").unwrap();
        assert!(check(&home, true).unwrap_err().contains("does not look like a model"));
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&base, &link).unwrap();
        assert!(check(&link, true).unwrap_err().contains("holds the input"));
    }

    #[test]
    fn files_of_an_older_model_go_or_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("x-1");
        let check = |names: &[&str], inputs: &[&Path], overwrite| {
            check_files(&out, names, |name| name.starts_with("x-"), inputs, overwrite).map_err(|e| e.to_string())
        };
        assert_eq!(check_files(&tmp.path().join("new/x-1"), &["x-1"], |_| true, &[], false).unwrap(), [""; 0]);
        ["x-1", "x-2", "x-3", "y-1"].iter().for_each(|name| fs::write(tmp.path().join(name), "old").unwrap());
        fs::create_dir(tmp.path().join("x-dir")).unwrap();
        assert_eq!(check(&["x-1"], &[], true).unwrap(), ["x-2", "x-3"]);
        assert!(check(&["x-1"], &[], false).unwrap_err().contains("x-1 exists\n  remedy"));
        let refused = check(&["x-4"], &[], false).unwrap_err();
        assert!(refused.contains("x-1 and 2 more would remain") && refused.contains("⟦overwrite"), "{refused}");
        let input = tmp.path().join("x-2");
        assert_eq!(check(&["x-1"], &[&input], true).unwrap(), ["x-3"], "an input stays");
        assert!(check(&["x-2"], &[&input], true).unwrap_err().contains("is an input"));
        assert!(check_file("out", &out, &[], false).is_err() && check_file("out", &out, &[&out], true).is_err());
        assert!(check_file("out", tmp.path(), &[], true).is_err(), "no file");
        assert!(check_file("out", &out, &[], true).is_ok());
    }
}
