//! The model without adapters: logits compared with the loss on the same hidden states.

use std::fs;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::{Model, Pass};
use crate::arch::{Projection, Spec};
use crate::checkpoint::Checkpoint;
use crate::engine::{Batch, CpuEngine, Engine, Forward, Sequence};

const HIDDEN: usize = 16;
const VOCABULARY: usize = 40;

/// A one-layer model whose weights are a fixed sequence of numbers.
fn base() -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("model.layers.0.input_layernorm.weight".to_owned(), vec![HIDDEN]),
        ("model.layers.0.post_attention_layernorm.weight".to_owned(), vec![HIDDEN]),
    ];
    for projection in Projection::ALL {
        let shape = match projection {
            Projection::Q | Projection::Gate | Projection::Up => [24, HIDDEN],
            Projection::K | Projection::V => [12, HIDDEN],
            Projection::O | Projection::Down => [HIDDEN, 24],
        };
        shapes.push((format!("{}.weight", projection.path(0)), shape.to_vec()));
    }
    let value = |at: usize| ((at * 7919 + 13) % 1009) as f32 / 504.0 - 1.0;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .zip(1..)
        .map(|((name, shape), salt)| {
            let values = (0..shape.iter().product()).map(|at: usize| value(at + salt * 331));
            (name, shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    Checkpoint::open(dir.path()).unwrap()
}

fn batch() -> Batch {
    let first = Sequence { tokens: &[3, 14, 39, 0, 7], weights: &[0.0, 0.0, 1.0, 1.0, 0.5] };
    Batch::new([first, Sequence { tokens: &[9, 31, 2], weights: &[0.0, 1.0, 2.0] }])
}

#[test]
fn logits_agree_with_the_loss() {
    let (base, engine) = (base(), CpuEngine::new());
    let spec = Spec::read(&base).unwrap();
    let model = Model::load(&engine, &base, &spec, &[], 8, &mut |_| ()).unwrap();
    let (batch, placed) = (batch(), engine.place(&batch()).unwrap());
    let pass = Pass { model: &model, engine: &engine, batch: &placed, dropout: None };
    let rows: Vec<u32> = batch.targets.iter().map(|target| target.row).collect();
    let logits = engine.read_matrix(&pass.logits(&rows).unwrap()).unwrap();
    let losses = engine.cross_entropy(&pass.hidden().unwrap(), model.head(), &placed).unwrap();
    assert_eq!((logits.len(), losses.len()), (5 * VOCABULARY, 5));
    for ((logits, target), loss) in logits.chunks(VOCABULARY).zip(&batch.targets).zip(losses) {
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let expected = f64::from(target.weight) * (sum.ln() - f64::from(logits[target.token as usize]));
        assert!(expected > 0.1 && (f64::from(loss) / expected - 1.0).abs() < 1e-5, "{loss}, not {expected}");
    }
}

#[test]
fn segments_have_the_logits_that_they_have_alone() {
    let (base, engine) = (base(), CpuEngine::new());
    let spec = Spec::read(&base).unwrap();
    let model = Model::load(&engine, &base, &spec, &[], 8, &mut |_| ()).unwrap();
    let logits = |batch: &Batch, rows: &[u32]| {
        let placed = engine.place(batch).unwrap();
        let pass = Pass { model: &model, engine: &engine, batch: &placed, dropout: None };
        engine.read_matrix(&pass.logits(rows).unwrap()).unwrap()
    };
    let both = logits(&batch(), &[7]);
    let alone = logits(&Batch::new([Sequence { tokens: &[9, 31, 2], weights: &[] }]), &[2]);
    assert!(both.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5), "{both:?} {alone:?}");
    let other = logits(&Batch::new([Sequence { tokens: &[8, 31, 2], weights: &[] }]), &[2]);
    assert!(other.iter().zip(&alone).any(|(a, b)| (a - b).abs() > 1e-2), "earlier tokens change nothing");
}
