//! Kernel files with the headers that they include, and the digest of all that a compiler sees.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// One file of kernels.
pub(super) struct Source {
    /// Its name in the directory of the kernels.
    pub(super) name: String,
    pub(super) text: String,
    /// Every file that it includes, straight or through another, by the name that `#include` gives.
    pub(super) headers: BTreeMap<String, String>,
}

impl Source {
    /// Reads a file and what it includes, which lies beside it.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = read(path)?;
        let mut headers = BTreeMap::new();
        let mut wanted = includes(&text);
        while let Some(header) = wanted.pop() {
            if headers.contains_key(&header) {
                continue;
            }
            let text = read(&path.with_file_name(&header)).with_context(|| format!("{name} includes {header:?}"))?;
            wanted.extend(includes(&text));
            headers.insert(header, text);
        }
        Ok(Self { name, text, headers })
    }

    /// The SHA-256, in hexadecimal, of the file, its headers and the compiler's `options`.
    pub(super) fn digest(&self, options: &[&str]) -> String {
        let mut hasher = Sha256::new();
        let mut part = |name: &str, text: &str| {
            hasher.update(format!("{name}\n{}\n", text.len()));
            hasher.update(text);
        };
        part(&self.name, &self.text);
        self.headers.iter().for_each(|(name, text)| part(name, text));
        options.iter().for_each(|option| part("option", option));
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The files of `dir` with this extension, by name.
pub(super) fn with_extension(dir: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let files = fs::read_dir(dir).and_then(|files| files.map(|file| Ok(file?.path())).collect());
    let mut paths: Vec<PathBuf> = files.with_context(|| format!("cannot list {}", dir.display()))?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

/// Where the PTX of a kernel file is.
pub(super) fn ptx(source: &Path) -> PathBuf {
    source.with_extension("ptx")
}

pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The names in the lines `#include "NAME"`.
fn includes(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
        Some(line.strip_prefix('"')?.split_once('"')?.0.to_owned())
    };
    text.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, text: &str, headers: &[(&str, &str)]) -> Source {
        let headers = headers.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Source { name: name.to_owned(), text: text.to_owned(), headers }
    }

    #[test]
    fn digests_all_that_the_compiler_sees() {
        let digest = |name, text, headers: &[_], options: &[_]| source(name, text, headers).digest(options);
        let digests = [
            digest("a.cu", "x", &[("h", "y")], &["-o"]),
            digest("b.cu", "x", &[("h", "y")], &["-o"]),
            digest("a.cu", "z", &[("h", "y")], &["-o"]),
            digest("a.cu", "x", &[("i", "y")], &["-o"]),
            digest("a.cu", "x", &[("h", "z")], &["-o"]),
            digest("a.cu", "x", &[], &["-o"]),
            digest("a.cu", "x", &[("h", "y")], &["-p"]),
            digest("a.cu", "x", &[("h", "y")], &[]),
        ];
        for (i, digest) in digests.iter().enumerate() {
            assert!(!digests[..i].contains(digest), "case {i} has the digest of an earlier one");
        }
        // By `printf 'a.cu\n1\nxh\n1\nyoption\n2\n-o' | sha256sum`: what is committed stays valid.
        assert_eq!(digests[0], "40f024129f03c4c6a5f40c21d966a448d17e2877458690e42d3b86b35d2de496");
    }

    #[test]
    fn finds_what_is_included() {
        let text = "#pragma once\n#include \"a.cuh\"\n  #  include\t\"b.cuh\" // why\n#include <c>\nint include;\n";
        assert_eq!(includes(text), ["a.cuh", "b.cuh"]);
    }
}
