//! Training held against PEFT: the losses of twenty steps, and every gradient of the first, of the cases that
//! fixtures/make_train.py made.

use std::path::{Path, PathBuf};

use qft::arch::Spec;
use qft::checkpoint::{Checkpoint, SafetensorsFile};
use qft::engine::Batch;
use qft::engine::CpuEngine;
use qft::model::{Keep, Model};
use qft::ranks::Alone;
use qft::train::data::Sample;
use qft::train::guard::{Guard, GuardCounts};
use qft::train::lora::{Layout, LoraSpec};
use qft::train::trainer::{Recipe, State, Trainer};
use serde_json::Value;

struct Case {
    dir: PathBuf,
    settings: Value,
}

impl Case {
    fn open(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/train/peft").join(name);
        let settings = serde_json::from_str(&std::fs::read_to_string(dir.join("case.json")).unwrap()).unwrap();
        Self { dir, settings }
    }

    fn number(&self, key: &str) -> f64 {
        self.settings[key].as_f64().unwrap()
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        self.settings[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn batches(&self) -> Vec<Batch> {
        self.settings["batches"].as_array().unwrap().iter().map(batch).collect()
    }

    /// The values of a file of PEFT's, laid out as the layout says.
    fn values(&self, file: &str, layout: &Layout) -> Vec<f32> {
        let file = SafetensorsFile::open(&self.dir.join(file)).unwrap();
        let mut values = vec![f32::NAN; layout.len];
        for module in &layout.modules {
            let mut parts = vec![("lora_A.weight", module.a.clone()), ("lora_B.weight", module.b.clone())];
            parts.extend(module.magnitude.clone().map(|range| ("lora_magnitude_vector", range)));
            for (part, range) in parts {
                let name = format!("base_model.model.{}.{part}", module.name);
                let tensor = file.tensors().find(|tensor| tensor.name() == name).unwrap_or_else(|| panic!("{name}"));
                let floats = tensor.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                values[range].copy_from_slice(&floats.collect::<Vec<_>>());
            }
        }
        assert!(values.iter().all(|value| !value.is_nan()));
        values
    }
}

fn batch(value: &Value) -> Batch {
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
    let prompts: Vec<u32> = numbers(&value["prompt"]);
    let rows = value["tokens"].as_array().unwrap().iter().zip(prompts).map(|(ids, prompt)| {
        let ids: Vec<u32> = numbers(ids);
        let weights = (0..ids.len() as u32).map(|i| if i < prompt { 0.0 } else { 1.0 }).collect();
        Sample { ids, weights }
    });
    Batch::new(&rows.collect::<Vec<_>>())
}

/// The largest error of each module's gradients, relative to their norm.
fn worst(ours: &[f32], theirs: &[f32], layout: &Layout) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let parts = layout.modules.iter().flat_map(|m| [Some(&m.a), Some(&m.b), m.magnitude.as_ref()]).flatten();
    let errors = parts.map(|range| {
        let pairs = || ours[range.clone()].iter().zip(&theirs[range.clone()]);
        let error = norm(&mut pairs().map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let size = norm(&mut pairs().map(|(_, b)| f64::from(*b)));
        assert!(size > 0.0, "a gradient is zero");
        error / size
    });
    errors.fold(0.0, f64::max)
}

fn check(name: &str) {
    let case = Case::open(name);
    let base = Checkpoint::open(&case.dir.join("base")).unwrap();
    let spec = Spec::read(&base).unwrap();
    let lora = LoraSpec {
        rank: case.number("rank") as usize,
        scale: case.number("scale") as f32,
        magnitudes: case.settings["dora"].as_bool().unwrap(),
    };
    let targets: Vec<&str> = case.settings["targets"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    let adapted = |path: &str| targets.iter().any(|target| path.ends_with(target));
    for keep in [Keep::Attention, Keep::Inputs, Keep::All] {
        let (layout, adapters) = Layout::of(&spec, lora, adapted);
        let engine = CpuEngine::new();
        let model = Model::load(&engine, &base, &spec, &adapters, 64, &mut |_| {}).unwrap();
        let state = State::new(case.values("adapter/adapter_model.safetensors", &layout));
        let betas = case.numbers("betas");
        let recipe = Recipe {
            dropout: 0.0,
            seed: 0,
            beta1: betas[0],
            beta2: betas[1],
            epsilon: case.number("epsilon"),
            decay: case.number("decay"),
            keep,
        };
        let mut trainer = Trainer::new(&engine, model, layout, recipe, &state).unwrap();
        let mut guard = Guard::new(case.number("clip"), GuardCounts::default());
        let (losses, norms) = (case.numbers("losses"), case.numbers("norms"));
        let mut furthest: f64 = 0.0;
        for (step, batch) in case.batches().into_iter().enumerate() {
            let done = trainer.step(&[batch], case.number("rate"), &mut guard, &mut Alone).unwrap();
            if step == 0 {
                let theirs = case.values("gradients.safetensors", trainer.layout());
                let error = worst(&trainer.gradients().unwrap(), &theirs, trainer.layout());
                assert!(error < 1e-4, "{name}: gradients differ by {error:e}");
                println!("{name}, {keep:?}: gradients differ by {error:.1e}");
            }
            let error = (done.loss / losses[step] - 1.0).abs().max((done.grad_norm / norms[step] - 1.0).abs() / 10.0);
            assert!(error < 1e-4, "{name}: step {step}: loss {} is not {}", done.loss, losses[step]);
            furthest = furthest.max(error);
        }
        println!("{name}, {keep:?}: losses of 20 steps differ by {furthest:.1e}");
    }
}

#[test]
fn qwen2_trains_as_with_peft() {
    check("qwen2");
}

#[test]
fn llama_with_tied_embeddings_and_rslora_trains_as_with_peft() {
    check("llama");
}

#[test]
fn dora_trains_as_with_peft() {
    check("dora");
}
