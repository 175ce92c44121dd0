//! Checks a release, every digest and every rule of its formats: `cargo run --example verify -- RELEASE`.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use qft::export::Run;
use qft::manifest::{MANIFEST, Manifest};
use qft::verify::verify;

pub(crate) fn run(release: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let found = verify(release, &Run::default())?;
    let mut text = format!("{} digests, {} tensors, {} problems\n", found.digests, found.tensors, found.problems.len());
    for problem in &found.problems {
        text += &format!("{}: {}\n", problem.file, problem.problem);
    }
    if let Ok(manifest) = std::fs::read_to_string(release.join(MANIFEST)) {
        let manifest: Manifest = serde_json::from_str(&manifest)?;
        let changed = manifest.tensors.values().filter(|tensor| !tensor.changes.is_empty()).count();
        text += &format!("qft {} changed {changed} of {} tensors\n", manifest.qft, manifest.tensors.len());
    }
    Ok(text)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [release] = args.as_slice() else { return Err("give RELEASE".into()) };
    print!("{}", run(release)?);
    Ok(())
}
