//! Merges an adapter into its base, and audits the release: `cargo run --example export -- BASE ADAPTER OUT`.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use qft::adapter::Adapter;
use qft::audit::{Audit, Verdict};
use qft::checkpoint::Checkpoint;
use qft::export::{Export, Options, Run};
use qft::size::ByteSize;

pub(crate) fn run(base: &Path, adapter: &Path, out: &Path) -> qft::Result<String> {
    let how = Run::default();
    let options = Options { max_shard: Some(ByteSize(2_000_000_000)), ..Options::default() };
    let adapters = || Adapter::open(adapter, 1.0).map(|adapter| [adapter]);
    let plan = Export::of(Checkpoint::open(base)?).adapters(adapters()?).options(options).plan(out)?;
    let report = plan.run(&how)?;
    let audited = Audit::of(out, Checkpoint::open(base)?).adapters(adapters()?).run(&how)?;
    let verdict = match audited.verdict {
        Verdict::Agrees { .. } => "what base and adapter give".to_owned(),
        other => format!("{other:?}"),
    };
    let (changed, files) = (plan.changed(), report.files.len());
    Ok(format!("{changed} of {} tensors changed, {files} files in {}: {verdict}", plan.tensors(), out.display()))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [base, adapter, out] = args.as_slice() else { return Err("give BASE ADAPTER OUT".into()) };
    println!("{}", run(base, adapter, out)?);
    Ok(())
}
