//! Makes a GGUF file of a model's directory, and says how good it is:
//! `cargo run --example encode -- MODEL q4_k_m OUT.gguf [PRE]`, where PRE names a pre-tokenizer that is not recognized.

#![allow(clippy::print_stdout)]

use std::path::Path;

use qft::checkpoint::Checkpoint;
use qft::export::{Export, GgufOptions, Options, QualityReport, Run, percent};
use qft::gguf::mixture::FileType;

pub(crate) fn run(model: &Path, mixture: FileType, out: &Path, pre: Option<String>) -> qft::Result<String> {
    let gguf = GgufOptions { measure: true, pre, ..GgufOptions::of(&[mixture]) };
    let plan = Export::of(Checkpoint::open(model)?).options(Options::file(gguf)).plan(out)?;
    let report = plan.run(&Run::default())?;
    let mut text = String::new();
    for output in QualityReport::new(&plan.gguf, &report.quality).outputs {
        let total = output.total();
        let error = total.figures.map_or("none".to_owned(), |figures| percent(figures.relative));
        text += &format!("{}: {:.2} bits per weight, relative error {error}\n", output.file, total.bits_per_weight);
    }
    Ok(text)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, mixture, out, pre @ ..] = args.as_slice() else { return Err("give MODEL TYPE OUT.gguf [PRE]".into()) };
    print!("{}", run(model.as_ref(), mixture.parse()?, out.as_ref(), pre.first().cloned())?);
    Ok(())
}
