//! Trains a LoRA on a file of conversations: `cargo run --example train -- MODEL_DIR DATA.jsonl OUT_DIR`.

use std::error::Error;
use std::path::{Path, PathBuf};

use qft::ranks::Alone;
use qft::train::settings::{Settings, Strategy};
use qft::train::{How, Preparing, TrainPlan, run};

/// Trains two steps, and gives the checkpoint's directory and the loss of the last step.
pub fn train(model: &Path, data: &Path, out: &Path) -> qft::Result<(PathBuf, f64)> {
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
    let plan = TrainPlan::new(settings.checked()?, model, &Preparing::default())?;
    println!("{} parameters, {} steps", plan.summary().trained_parameters, plan.summary().max_steps);
    let report = run(plan, &mut How::new(&mut Alone))?;
    Ok((report.checkpoint.unwrap_or(report.run), report.last_loss))
}

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, data, out] = &paths[..] else { return Err("usage: train MODEL_DIR DATA.jsonl OUT_DIR".into()) };
    let (checkpoint, loss) = train(model, data, out)?;
    println!("{}: loss {loss:.4}", checkpoint.display());
    Ok(())
}
