//! Whether the committed PTX is that of the kernels as they are now.

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::source::{self, Source};
use super::{TARGET, VERSION};

/// What comes before the digest of its source in a PTX file.
pub(super) const DIGEST: &str = "// source sha256: ";

/// Fails with a line for each file of `dir` that is missing, stale, made with other options, for other GPUs or drivers,
/// or without a source.
pub(super) fn check(dir: &Path, options: &[&str]) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for path in source::with_extension(dir, "cu")? {
        let (source, ptx) = (Source::read(&path)?, source::ptx(&path));
        let text = if ptx.exists() { Some(source::read(&ptx)?) } else { None };
        faults.extend(fault(&source, options, text.as_deref()).map(|fault| format!("{}: {fault}", ptx.display())));
    }
    faults.extend(orphans(dir)?.iter().map(|path| format!("{}: there is no .cu of that name", path.display())));
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// The PTX files of `dir` without a source.
pub(super) fn orphans(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = source::with_extension(dir, "ptx")?;
    paths.retain(|path| !path.with_extension("cu").exists());
    Ok(paths)
}

/// What is wrong with the text of a PTX file.
fn fault(source: &Source, options: &[&str], ptx: Option<&str>) -> Option<String> {
    let Some(ptx) = ptx else { return Some(format!("missing; its source is {}", source.name)) };
    let digest = ptx.lines().find_map(|line| line.strip_prefix(DIGEST));
    if digest != Some(&source.digest(options)) {
        return Some(format!("not made from {} as it is, or not from the headers as they are", source.name));
    }
    let lacks = |line: &&str| !ptx.lines().any(|found| found == *line);
    [VERSION, TARGET].iter().find(|line| lacks(line)).map(|line| format!("has no line `{line}`"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A change to the files, and what the check then says.
    type Case = (&'static str, fn(&Path), &'static str);

    fn put(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).unwrap();
    }

    fn edit(dir: &Path, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        assert!(text.contains(from));
        put(dir, name, &text.replace(from, to));
    }

    const CASES: [Case; 7] = [
        ("missing", |dir| fs::remove_file(dir.join("a.ptx")).unwrap(), "a.ptx: missing"),
        ("source", |dir| put(dir, "a.cu", "#include \"h.cuh\"\nx"), "a.ptx: not made from a.cu"),
        ("header of a header", |dir| put(dir, "deep.cuh", "other"), "a.ptx: not made from a.cu"),
        ("version", |dir| edit(dir, "a.ptx", "8.4", "8.7"), "a.ptx: has no line `.version 8.4`"),
        ("target", |dir| edit(dir, "a.ptx", "sm_80", "sm_90"), "a.ptx: has no line `.target sm_80`"),
        ("no digest", |dir| edit(dir, "a.ptx", DIGEST, "// "), "a.ptx: not made from a.cu"),
        ("orphan", |dir| put(dir, "b.ptx", ""), "b.ptx: there is no .cu"),
    ];

    const OPTIONS: [&str; 1] = ["-o"];

    #[test]
    fn names_every_file_that_is_not_as_it_should_be() {
        for (case, change, expected) in CASES {
            let dir = std::env::temp_dir().join(format!("xtask-ptx-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            put(&dir, "a.cu", "#include \"h.cuh\"\n");
            put(&dir, "h.cuh", "#pragma once\n#include \"deep.cuh\"\n");
            put(&dir, "deep.cuh", "int deep;\n");
            put(&dir, "unused.cuh", "");
            let digest = Source::read(&dir.join("a.cu")).unwrap().digest(&OPTIONS);
            put(&dir, "a.ptx", &format!("{DIGEST}{digest}\n{VERSION}\n{TARGET}\n"));
            put(&dir, "unused.cuh", "any change of what is not included is none");
            check(&dir, &OPTIONS).unwrap();
            assert!(check(&dir, &["-p"]).unwrap_err().to_string().contains("a.ptx: not made from a.cu"));
            change(&dir);
            let said = check(&dir, &OPTIONS).unwrap_err().to_string();
            assert!(said.contains(expected) && said.lines().count() == 1, "{case}: {said}");
            fs::remove_dir_all(&dir).unwrap();
        }
    }
}
