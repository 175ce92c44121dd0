//! `cargo xtask ptx`: compiles the kernels of src/gpu/kernels to the PTX that is committed beside them. What the compiler
//! reads is in `source`, the compiler in `nvrtc`, and what CI holds the committed files against in `check`.

mod check;
mod nvrtc;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::options::Options;
use crate::shell::root;
use nvrtc::Nvrtc;
use source::Source;

/// What the compiler is told. The oldest card that is served, and no contraction of products and sums: the processor
/// rounds twice.
const OPTIONS: [&str; 3] = ["--gpu-architecture=compute_80", "--fmad=false", "--std=c++17"];
/// What a PTX file must say: the oldest drivers that are served read no newer version.
const VERSION: &str = ".version 8.4";
const TARGET: &str = ".target sm_80";

/// Compiles every kernel file, and removes PTX that has no source any more.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(args, &["nvrtc"])?;
    let (dir, nvrtc) = (dir(), Nvrtc::load(options.text("nvrtc"))?);
    let mut failed = Vec::new();
    for path in source::with_extension(&dir, "cu")? {
        match compile(&nvrtc, &path) {
            Ok(said) => println!("{said}"),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    for path in check::orphans(&dir)? {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        println!("{}: removed, since it has no .cu", shown(&path));
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Compiles one file, and tells what was written.
fn compile(nvrtc: &Nvrtc, path: &Path) -> anyhow::Result<String> {
    let source = Source::read(path)?;
    let compiled = nvrtc.compile(&source, &OPTIONS)?;
    if !compiled.log.is_empty() {
        eprintln!("{}", compiled.log);
    }
    let (path, text) = (source::ptx(path), dress(&source, &compiled.ptx)?);
    fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!("{} ({} KiB)", shown(&path), text.len().div_ceil(1024)))
}

/// Fails unless the committed PTX is what the kernels would be compiled to: a section of CI, which has no compiler.
pub(crate) fn check() -> anyhow::Result<()> {
    check::check(&dir())
}

/// Where the kernels are.
fn dir() -> PathBuf {
    root().join("src/gpu/kernels")
}

/// The compiler's PTX under the lines that say where it is from, without its own remarks.
fn dress(source: &Source, ptx: &str) -> anyhow::Result<String> {
    let name = &source.name;
    let body = ptx.find(VERSION).and_then(|start| ptx.get(start..));
    let body = body.with_context(|| format!("{name}: the compiler's output has no line `{VERSION}`"))?;
    ensure!(body.contains(TARGET), "{name}: the compiler's output has no line `{TARGET}`");
    let (mark, digest) = (check::DIGEST, source.digest(&OPTIONS));
    Ok(format!("// Made by `cargo xtask ptx` from {name}; do not edit.\n{mark}{digest}\n{}\n", body.trim_end()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dresses_what_the_compiler_made() {
        let source = Source { name: "a.cu".to_owned(), text: String::new(), headers: [].into() };
        let ptx = "//\n// a compiler's remark\n//\n\n.version 8.4\n.target sm_80\n.address_size 64\n\n";
        let digest = source.digest(&OPTIONS);
        let expected = format!(
            "// Made by `cargo xtask ptx` from a.cu; do not edit.\n// source sha256: {digest}\n\
             .version 8.4\n.target sm_80\n.address_size 64\n"
        );
        assert_eq!(dress(&source, ptx).unwrap(), expected);
        for newer in [ptx.replace("8.4", "8.5"), ptx.replace("sm_80", "sm_90")] {
            assert!(dress(&source, &newer).unwrap_err().to_string().starts_with("a.cu: "));
        }
    }

    /// What this test would find is what `cargo xtask ci` says, too: here it is among the tests that people repeat.
    #[test]
    fn the_committed_ptx_is_that_of_its_sources() {
        check().unwrap();
    }
}
