//! What to say of a directory that isn't there: which are called nearly so.

use std::path::{Path, PathBuf};

use crate::error::{Error, escaped, shown};
use crate::spelling::edits;

/// Says that there is no directory `spec`, and which are called nearly so. It may be a Hub id, too.
pub(crate) fn no_such_directory(spec: &str, may_be_id: bool) -> Error {
    let near = nearly(Path::new(spec));
    let remedy = if may_be_id {
        format!("check the path; or, for the model of that name on the Hub, give {}@main", escaped(spec))
    } else {
        "check the path, or give a Hub id: org/name or org/name@revision".to_owned()
    };
    Error::not_found(format!("no such directory: {}{near}", escaped(spec)), remedy)
}

/// The directories that are called nearly as `path`, as a part of a sentence; nothing where there is none.
pub(crate) fn nearly(path: &Path) -> String {
    let near: Vec<String> = near(path).iter().map(|path| shown(path)).collect();
    if near.is_empty() { String::new() } else { format!(" (there is {})", near.join(", ")) }
}

/// Most names that are suggested.
const NEAR: usize = 3;

/// The directories beside `path` whose names are nearly its own, the nearest first.
fn near(path: &Path) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let wanted = name.to_string_lossy().to_lowercase();
    let here = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(entries) = std::fs::read_dir(here) else { return Vec::new() };
    let mut found: Vec<(usize, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| {
            (edits(&wanted, &entry.file_name().to_string_lossy().to_lowercase()), parent.join(entry.file_name()))
        })
        .filter(|(distance, _)| *distance <= wanted.len().div_ceil(3))
        .collect();
    found.sort();
    found.into_iter().take(NEAR).map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_nearly_that_name_is_suggested() {
        let dir = tempfile::tempdir().unwrap();
        ["model", "modem", "other", "Modal-2"]
            .iter()
            .for_each(|name| std::fs::create_dir(dir.path().join(name)).unwrap());
        std::fs::write(dir.path().join("modle.txt"), "").unwrap();
        let names = |name: &str| -> Vec<String> {
            let near = near(&dir.path().join(name));
            near.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names("modle"), ["model", "modem"]);
        assert_eq!(names("MODEL"), ["model", "modem"]);
        assert_eq!(names("elsewhere"), [""; 0]);
        assert!(near(Path::new("no/such/parent")).is_empty());
    }
}
