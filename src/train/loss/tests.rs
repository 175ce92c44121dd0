//! The whole pass against itself: its gradients against differences of its losses, with dropout, and what must not
//! change them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::losses;
use crate::arch::{Projection, Spec};
use crate::checkpoint::Checkpoint;
use crate::engine::dropout::Dropout;
use crate::engine::{Batch, CpuEngine, Engine};
use crate::model::{Keep, Model, Pass};
use crate::train::data::Sample;
use crate::train::lora::{Layout, LoraSpec};

const HIDDEN: usize = 16;
const VOCABULARY: usize = 40;
const RANK: usize = 3;
const SCALE: f32 = 1.5;

/// About normal numbers of deviation 1, from a fixed seed (splitmix64).
struct Noise(u64);

impl Iterator for Noise {
    type Item = f32;

    fn next(&mut self) -> Option<f32> {
        let uniform = (0..4).map(|_| {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        });
        Some((uniform.sum::<f64>() * 1.73) as f32)
    }
}

/// A two-layer model with grouped heads that are wider than the hidden state, biases and a head of its own; its adapter.
struct Case {
    engine: CpuEngine,
    model: Model<CpuEngine>,
    layout: Layout,
    weights: BTreeMap<String, Vec<f32>>,
    parameters: Vec<f32>,
    dropout: Option<Dropout>,
}

impl Case {
    fn new(magnitudes: bool, adapted: impl Fn(&str) -> bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": 28,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false});
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let mut weights = BTreeMap::new();
        let mut shapes = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], mean: f32, deviation: f32| {
            let noise = Noise(7 + weights.len() as u64).take(shape.iter().product());
            weights.insert(name.clone(), noise.map(|v| mean + deviation * v).collect::<Vec<_>>());
            shapes.insert(name, shape.to_vec());
        };
        add("model.embed_tokens.weight".to_owned(), &[VOCABULARY, HIDDEN], 0.0, 1.0);
        add("lm_head.weight".to_owned(), &[VOCABULARY, HIDDEN], 0.0, 0.4);
        add("model.norm.weight".to_owned(), &[HIDDEN], 1.0, 0.1);
        let sizes = |projection| match projection {
            Projection::Q => [24, HIDDEN],
            Projection::K | Projection::V => [12, HIDDEN],
            Projection::O => [HIDDEN, 24],
            Projection::Gate | Projection::Up => [28, HIDDEN],
            Projection::Down => [HIDDEN, 28],
        };
        for layer in 0..2 {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("model.layers.{layer}.{norm}.weight"), &[HIDDEN], 1.0, 0.1);
            }
            for projection in Projection::ALL {
                let path = projection.path(layer);
                add(format!("{path}.weight"), &sizes(projection), 0.0, 0.3);
                if matches!(projection, Projection::Q | Projection::K | Projection::V) {
                    add(format!("{path}.bias"), &sizes(projection)[..1], 0.0, 0.3);
                }
            }
        }
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = weights
            .iter()
            .map(|(name, values)| {
                (name.clone(), shapes[name].clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();

        let base = Checkpoint::open(dir.path()).unwrap();
        let spec = Spec::read(&base).unwrap();
        let (layout, adapters) = Layout::of(&spec, LoraSpec { rank: RANK, scale: SCALE, magnitudes }, adapted);
        let engine = CpuEngine::new();
        let model = Model::load(&engine, &base, &spec, &adapters, 16, &mut |_| ()).unwrap();
        let mut parameters: Vec<f32> = Noise(99).take(layout.len).map(|v| 0.2 * v).collect();
        model.fill_magnitudes(&engine, &mut parameters).unwrap();
        for (range, mut noise) in layout.modules.iter().filter_map(|m| m.magnitude.clone()).zip((200..).map(Noise)) {
            parameters[range].iter_mut().for_each(|m| *m *= 1.0 + 0.1 * noise.next().unwrap());
        }
        Self { engine, model, layout, weights, parameters, dropout: Dropout::new(0.25, 5, 3) }
    }

    /// The summed loss of these factors.
    fn loss(&mut self, parameters: &[f32], batch: &Batch) -> f64 {
        self.bind(parameters);
        let placed = self.engine.place(batch).unwrap();
        let pass = Pass { model: &self.model, engine: &self.engine, batch: &placed, dropout: self.dropout };
        self.engine.read(&losses(&pass).unwrap()).unwrap().into_iter().map(f64::from).sum()
    }

    /// Losses of the targets, and gradients of their sum.
    fn gradients(&mut self, batch: &Batch, keep: Keep) -> (Vec<f32>, Vec<f32>) {
        self.bind(&self.parameters.clone());
        let placed = self.engine.place(batch).unwrap();
        let pass = Pass { model: &self.model, engine: &self.engine, batch: &placed, dropout: self.dropout };
        let mut gradients = self.engine.vector(&vec![0.0; self.layout.len]).unwrap();
        let losses = super::gradients(&pass, 1.0, keep, &mut gradients).unwrap();
        (self.engine.read(&losses).unwrap(), self.engine.read(&gradients).unwrap())
    }

    fn bind(&mut self, parameters: &[f32]) {
        let parameters = self.engine.vector(parameters).unwrap();
        self.model.bind(&self.engine, &parameters).unwrap();
    }

    /// The factors with `delta` added to the one at `place`. DoRA's gradients take the norms of the adapted rows as
    /// constants (Liu et al., 2024, section 4.3), so magnitudes follow the norms here.
    fn moved(&self, place: usize, delta: f64) -> Vec<f32> {
        let mut parameters = self.parameters.clone();
        parameters[place] = (f64::from(parameters[place]) + delta) as f32;
        for module in &self.layout.modules {
            let Some(magnitude) = &module.magnitude else { continue };
            if !module.a.contains(&place) && !module.b.contains(&place) {
                continue;
            }
            for (row, at) in magnitude.clone().enumerate() {
                let ratio = self.norm(&parameters, module, row) / self.norm(&self.parameters, module, row);
                parameters[at] = (f64::from(parameters[at]) * ratio) as f32;
            }
        }
        parameters
    }

    /// The norm of a row of the adapted weight.
    fn norm(&self, parameters: &[f32], module: &crate::train::lora::Module, row: usize) -> f64 {
        let weight = &self.weights[&format!("{}.weight", module.name)];
        let (a, b) = (&parameters[module.a.clone()], &parameters[module.b.clone()]);
        let value = |column: usize| {
            let product = |i: usize| f64::from(b[row * RANK + i]) * f64::from(a[i * module.inputs + column]);
            f64::from(weight[row * module.inputs + column]) + f64::from(SCALE) * (0..RANK).map(product).sum::<f64>()
        };
        (0..module.inputs).map(|column| value(column).powi(2)).sum::<f64>().sqrt()
    }

    /// Every range of parameters, with what it is.
    fn ranges(&self) -> Vec<(String, Range<usize>)> {
        let of = |module: &crate::train::lora::Module| {
            let parts = [("A", Some(&module.a)), ("B", Some(&module.b)), ("magnitude", module.magnitude.as_ref())];
            parts.map(|(part, range)| Some((format!("{} {part}", module.name), range?.clone())))
        };
        self.layout.modules.iter().flat_map(of).flatten().collect()
    }
}

fn sample(ids: &[u32], prompt: usize) -> Sample {
    let weights = (0..ids.len()).map(|i| if i < prompt { 0.0 } else { 1.0 }).collect();
    Sample { ids: ids.to_vec(), weights }
}

fn samples() -> [Sample; 2] {
    let mut uneven = sample(&[9, 31, 2, 2, 17, 25], 1);
    uneven.weights[3] = 0.5;
    [sample(&[3, 14, 39, 0, 7, 22, 8, 11, 5], 3), uneven]
}

/// Holds gradients against differences of losses: of each factor the largest, and two others.
fn check(mut case: Case) {
    let batch = Batch::new(&samples());
    let (losses, gradients) = case.gradients(&batch, Keep::Attention);
    assert_eq!(losses.len(), batch.targets.len());
    for (name, range) in case.ranges() {
        let own = &gradients[range.clone()];
        let (top, largest) =
            own.iter().map(|g| f64::from(g.abs())).enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert!(largest > 1e-3, "{name}: no gradient");
        for place in [top, own.len() / 3, own.len() - 1] {
            // Five points: the error is of the fourth order in the step.
            let mut at = |steps: f64| {
                let moved = case.moved(range.start + place, steps * 0.02);
                case.loss(&moved, &batch)
            };
            let measured = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * 0.02);
            let error = (measured - f64::from(own[place])).abs() / largest;
            assert!(error < 5e-3, "{name} {place}: {measured} measured, {} computed, {largest} at most", own[place]);
        }
    }
}

#[test]
fn gradients_of_every_factor_are_those_of_the_loss() {
    check(Case::new(false, |_| true));
}

#[test]
fn gradients_of_dora_are_those_of_the_loss_at_fixed_norms() {
    check(Case::new(true, |_| true));
}

#[test]
fn some_modules_may_be_adapted_alone() {
    let case = Case::new(false, |path| path.ends_with("v_proj"));
    assert_eq!(case.layout.modules.len(), 2);
    check(case);
    check(Case::new(true, |path| path.ends_with("1.mlp.down_proj") || path.ends_with("0.self_attn.k_proj")));
}

#[test]
fn what_is_kept_changes_no_bit() {
    for magnitudes in [false, true] {
        let mut case = Case::new(magnitudes, |_| true);
        let batch = Batch::new(&samples());
        let kept = case.gradients(&batch, Keep::All);
        assert!(kept == case.gradients(&batch, Keep::Attention) && kept == case.gradients(&batch, Keep::Inputs));
        // The pass without gradients has the same losses; other masks have others.
        let sum: f64 = kept.0.iter().map(|loss| f64::from(*loss)).sum();
        let parameters = case.parameters.clone();
        assert_eq!(case.loss(&parameters, &batch).to_bits(), sum.to_bits());
        case.dropout = Dropout::new(0.25, 5, 4);
        assert!(kept != case.gradients(&batch, Keep::All));
    }
}

#[test]
fn segments_do_not_see_each_other() {
    let mut case = Case::new(false, |_| true);
    // Masks are of places in the micro-batch, so that only without them a segment can be held against itself.
    case.dropout = None;
    let both = case.gradients(&Batch::new(&samples()), Keep::All);
    let [first, second] = samples().map(|sample| case.gradients(&Batch::new([&sample]), Keep::All));
    let close = |a: f32, b: f32, size: f32| (a - b).abs() <= 1e-5 * size;
    let losses: Vec<f32> = first.0.into_iter().chain(second.0).collect();
    assert_eq!(both.0.len(), losses.len());
    assert!(both.0.iter().zip(&losses).all(|(a, b)| close(*a, *b, 4.0)), "{:?} {losses:?}", both.0);
    let sums: Vec<f32> = first.1.iter().zip(&second.1).map(|(a, b)| a + b).collect();
    let largest = sums.iter().fold(0.0f32, |largest, sum| largest.max(sum.abs()));
    assert!(both.1.iter().zip(&sums).all(|(a, b)| close(*a, *b, largest)));
}
