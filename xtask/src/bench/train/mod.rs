//! `cargo xtask bench train`: LoRA training on a GPU against transformers with PEFT, on one machine in one run. What is
//! promised is in `report`.

mod entrant;
mod report;
mod rows;

use std::path::Path;

use anyhow::ensure;

use self::entrant::{Entrant, WARM_UP};
use super::data::Data;
use super::{GET_PEER, Words, check_python, check_python_on_card, data_dir, machine, qft};
use crate::options::Options;

const OPTIONS: &[&str] = &["layers", "rows", "length", "steps", "runs", "dir", "python", "qft", "tokenizer", "device"];

const QFT: &str = "qft train";
const QFT_NO_DROPOUT: &str = "qft train, no dropout";
const PEFT: &str = "transformers + PEFT";
const PEER_SCRIPT: &str = include_str!("peft_train.py");
const CPU: &str = "cpu";
const CUDA: &str = "cuda";

/// The line of a training run; words in capitals stand for paths, programs and numbers. The rows are cut to their length,
/// and nothing is saved before the end.
const TRAIN: &str = "QFT train --model BASE --dataset DATASET --output_dir OUT --add_version false --train_type lora \
                     --packing true --max_length LENGTH --truncation_strategy right \
                     --per_device_train_batch_size ROWS --gradient_accumulation_steps 1 --lora_rank 8 --lora_alpha 32 \
                     --lora_dropout DROPOUT --learning_rate 1e-4 --max_steps STEPS --save_strategy no \
                     --save_only_model true --logging_steps 1 --report_to none --device DEVICE --timings --json";
const PEER: &str = "PYTHON -c SCRIPT BASE ROWS LENGTH STEPS DROPOUT DEVICE";

/// What each run trains on.
struct Shape {
    /// Of a step.
    rows: usize,
    /// Tokens of a row.
    length: usize,
    steps: usize,
}

impl Shape {
    /// Of a whole run.
    fn tokens(&self) -> u64 {
        (self.rows * self.length * self.steps) as u64
    }
}

/// Makes the data, trains in every way and prints a Markdown table, where time went, and what was promised.
pub(crate) fn train(args: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(args, OPTIONS)?;
    let device = options.text("device").unwrap_or(CUDA);
    let shape = Shape {
        rows: options.count("rows", 8)?,
        length: options.count("length", 3072)?,
        steps: options.count("steps", 10)?,
    };
    ensure!(shape.steps > WARM_UP, "--steps must be more than {WARM_UP}: the first ones are not counted");
    let rounds = options.count("runs", 1)?;
    let dir = data_dir(&options);
    let python = options.text("python");
    python.map_or(Ok(()), if device == CPU { check_python } else { check_python_on_card })?;
    let qft = qft(&options)?;
    // The processor is there to try this out.
    let data =
        if device == CPU { Data::prepare_tiny(&dir)? } else { Data::prepare(&dir, options.count("layers", 28)?)? };
    data.put_tokenizer(options.text("tokenizer").map(Path::new))?;
    rows::put_template(&data)?;
    let dataset = data.out.with_file_name("rows.jsonl");
    rows::write(&dataset, shape.rows * shape.steps, shape.length)?;
    let machine = format!("{}\n{}", machine::describe(&dir)?, machine::cards());
    data.read_once()?;
    let words = words(&data, &dataset, &qft, python, &shape, device);
    let mut entrants = entrants(&words, python.is_some());
    compete(&mut entrants, rounds, &data)?;
    let Shape { rows, length, steps } = shape;
    let model = if device == CPU { "Model: a tiny one, to try this out".to_owned() } else { data.describe() };
    println!("\n{machine}\n{model}");
    println!("Training: {rows} rows of {length} tokens a step, {steps} steps, {WARM_UP} of them not counted\n");
    println!("{}", report::table(&entrants));
    println!("{}", report::breakdowns(&entrants));
    println!("{}", report::targets(&entrants, &shape, device != CPU && data.is_whole()));
    if python.is_none() {
        println!("{PEFT} was left out; to compare with it: {GET_PEER}");
    }
    Ok(())
}

fn words(data: &Data, dataset: &Path, qft: &Path, python: Option<&str>, shape: &Shape, device: &str) -> Words {
    Words(vec![
        ("BASE", vec![data.base.clone().into()]),
        ("DATASET", vec![dataset.into()]),
        ("OUT", vec![data.out.clone().into()]),
        ("QFT", vec![qft.into()]),
        ("PYTHON", vec![python.unwrap_or_default().into()]),
        ("SCRIPT", vec![PEER_SCRIPT.into()]),
        ("ROWS", vec![shape.rows.to_string().into()]),
        ("LENGTH", vec![shape.length.to_string().into()]),
        ("STEPS", vec![shape.steps.to_string().into()]),
        ("DEVICE", vec![device.into()]),
    ])
}

/// All ways to train; the peer only where there is a Python for it.
fn entrants(words: &Words, with_peer: bool) -> Vec<Entrant> {
    let entrant = |(name, line, dropout): (&'static str, &str, &str)| {
        Entrant::new(name, words, &line.replace("DROPOUT", dropout))
    };
    let all = [(QFT, TRAIN, "0.1"), (PEFT, PEER, "0.1"), (QFT_NO_DROPOUT, TRAIN, "0")];
    all.into_iter().filter(|(name, ..)| with_peer || *name != PEFT).map(entrant).collect()
}

/// Runs all in turn, so often.
fn compete(entrants: &mut [Entrant], rounds: usize, data: &Data) -> anyhow::Result<()> {
    for round in 1..=rounds {
        for entrant in entrants.iter_mut() {
            let name = entrant.name;
            let run = entrant.run(&data.out)?;
            let rate = run.rate();
            println!("round {round}: {name:<22} {rate:>7.0} tokens/s, {:.1} s besides, on {}", run.besides, run.device);
        }
    }
    Ok(())
}
