//! Trains a LoRA on a file of conversations: `cargo run --example train -- MODEL DATA.jsonl OUT`.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use qft::ranks::Alone;
use qft::train::settings::{Settings, Strategy};
use qft::train::{self, How, Preparing, TrainPlan, TrainReport};

pub(crate) fn run(model: &Path, data: &Path, out: &Path) -> qft::Result<TrainReport> {
    let settings = Settings {
        model: model.display().to_string(),
        dataset: vec![data.display().to_string()],
        output_dir: Some(out.to_owned()),
        lora_rank: 8,
        max_steps: Some(2),
        save_strategy: Strategy::Epoch,
        device: "cpu".to_owned(),
        ..Settings::default()
    };
    let plan = TrainPlan::new(settings, model, &Preparing::default())?;
    train::run(plan, &mut How::new(&mut Alone))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, data, out] = args.as_slice() else { return Err("give MODEL DATA.jsonl OUT".into()) };
    let report = run(model, data, out)?;
    println!("{} steps, loss {:.4}: {}", report.steps[0], report.last_loss, report.run.display());
    Ok(())
}
