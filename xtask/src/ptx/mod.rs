//! `cargo xtask ptx`: compiles the kernels of every directory of `PLACES` to the PTX that is committed beside them. What
//! the compiler reads is in `source`, the compiler in `nvrtc`, and what CI holds the committed files against in `check`.

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

/// A directory of kernels, and what the compiler is told: the oldest GPU that is served, and whether products and sums
/// may be contracted.
struct Place {
    dir: &'static str,
    options: [&'static str; 3],
}

/// What is computed for an export must be the processor's bytes, and that rounds twice; training has no such double.
const PLACES: [Place; 2] = [
    Place { dir: "src/gpu/lanes/kernels", options: ["--gpu-architecture=compute_80", "--fmad=false", "--std=c++17"] },
    Place { dir: "src/engine/cuda/kernels", options: ["--gpu-architecture=compute_80", "--fmad=true", "--std=c++17"] },
];
/// What a PTX file must say: the oldest drivers that are served read no newer version.
const VERSION: &str = ".version 8.4";
const TARGET: &str = ".target sm_80";

/// Compiles every kernel file, and removes PTX that has no source any more.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(args, &["nvrtc"])?;
    let nvrtc = Nvrtc::load(options.text("nvrtc"))?;
    let mut failed = Vec::new();
    for place in &PLACES {
        for path in source::with_extension(&place.path(), "cu")? {
            match compile(&nvrtc, &path, &place.options) {
                Ok(said) => println!("{said}"),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        for path in check::orphans(&place.path())? {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            println!("{}: removed, since it has no .cu", shown(&path));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Compiles one file, and tells what was written.
fn compile(nvrtc: &Nvrtc, path: &Path, options: &[&str]) -> anyhow::Result<String> {
    let source = Source::read(path)?;
    let compiled = nvrtc.compile(&source, options)?;
    if !compiled.log.is_empty() {
        eprintln!("{}", compiled.log);
    }
    let (path, text) = (source::ptx(path), dress(&source, options, &compiled.ptx)?);
    fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!("{} ({} KiB)", shown(&path), text.len().div_ceil(1024)))
}

/// Fails unless the committed PTX is what the kernels would be compiled to: a section of CI, which has no compiler.
pub(crate) fn check() -> anyhow::Result<()> {
    let faults: Vec<String> = PLACES
        .iter()
        .filter_map(|place| check::check(&place.path(), &place.options).err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

impl Place {
    fn path(&self) -> PathBuf {
        root().join(self.dir)
    }
}

/// The compiler's PTX under the lines that say where it is from, without its own remarks.
fn dress(source: &Source, options: &[&str], ptx: &str) -> anyhow::Result<String> {
    let name = &source.name;
    let body = ptx.find(VERSION).and_then(|start| ptx.get(start..));
    let body = body.with_context(|| format!("{name}: the compiler's output has no line `{VERSION}`"))?;
    ensure!(body.contains(TARGET), "{name}: the compiler's output has no line `{TARGET}`");
    let (mark, digest) = (check::DIGEST, source.digest(options));
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
        let options = PLACES[0].options;
        let digest = source.digest(&options);
        let expected = format!(
            "// Made by `cargo xtask ptx` from a.cu; do not edit.\n// source sha256: {digest}\n\
             .version 8.4\n.target sm_80\n.address_size 64\n"
        );
        assert_eq!(dress(&source, &options, ptx).unwrap(), expected);
        for newer in [ptx.replace("8.4", "8.5"), ptx.replace("sm_80", "sm_90")] {
            assert!(dress(&source, &options, &newer).unwrap_err().to_string().starts_with("a.cu: "));
        }
    }

    /// What this test would find is what `cargo xtask ci` says, too: here it is among the tests that are run often.
    #[test]
    fn the_committed_ptx_is_that_of_its_sources() {
        check().unwrap();
    }
}
