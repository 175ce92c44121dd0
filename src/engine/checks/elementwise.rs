//! Embeddings, RMSNorm, SwiGLU.

use super::{Probe, Random, assert_close, assert_gradient, dot, wide};

const ROWS: usize = 13;

pub(crate) fn check_embedding<E: Probe>(engine: &E) {
    let (mut random, cols, vocabulary) = (Random::new(1), 24, 41);
    let table = random.values(vocabulary * cols, 1.0);
    let batch = random.batch(&[5, 1, 7], vocabulary);
    let on = engine.matrix(vocabulary, cols, 0, &table);
    let found = engine.values(&engine.embed(&on, &engine.place(&batch).unwrap()).unwrap());
    let rows = batch.tokens.iter().flat_map(|token| &table[*token as usize * cols..][..cols]);
    assert_eq!(found, rows.copied().collect::<Vec<_>>());
    assert_eq!(engine.values(&engine.zeros_like(&on).unwrap()), vec![0.0; vocabulary * cols]);
}

pub(crate) fn check_normalization<E: Probe>(engine: &E, tolerance: f64) {
    const EPSILON: f32 = 1e-3;
    for (cols, padding) in [(40, 0), (40, 8), (2056, 16)] {
        let mut random = Random::new(2);
        let x = random.values(ROWS * cols, 0.3);
        let [dy, onto] = [(); 2].map(|()| random.values(ROWS * cols, 1.0));
        let weight = random.values(cols, 2.0);
        let weights = wide(&weight);
        let reference = |x: &[f64]| -> Vec<f64> {
            x.chunks(cols)
                .flat_map(|row| {
                    let root = 1.0 / (dot(row, row) / cols as f64 + f64::from(EPSILON)).sqrt();
                    row.iter().zip(&weights).map(move |(x, weight)| x * root * weight).collect::<Vec<_>>()
                })
                .collect()
        };
        let [on_x, on_dy, on_onto] = [&x, &dy, &onto].map(|values| engine.matrix(ROWS, cols, 0, values));
        let weight = engine.vector(&weight).unwrap();
        let (y, inverse) = engine.normalize(&on_x, &weight, EPSILON, padding).unwrap();
        assert_close("normalize", &engine.values(&y), &reference(&wide(&x)), tolerance);
        let dx = engine.values(&engine.normalize_back(&on_dy, &on_x, &weight, &inverse, on_onto).unwrap());
        let (dy, onto) = (wide(&dy), wide(&onto));
        assert_gradient("normalize_back", &dx, &x, &mut random, tolerance, |x| dot(&dy, &reference(x)) + dot(&onto, x));
    }
}

pub(crate) fn check_gate<E: Probe>(engine: &E, tolerance: f64) {
    for (cols, padding) in [(24, 0), (24, 8), (1032, 16)] {
        let mut random = Random::new(3);
        let gate_up = random.values(ROWS * 2 * cols, 6.0);
        let dy = random.values(ROWS * cols, 1.0);
        let reference = |gate_up: &[f64]| -> Vec<f64> {
            let active = |gate: f64, up: f64| gate / (1.0 + (-gate).exp()) * up;
            let rows = gate_up.chunks(2 * cols).map(|row| row.split_at(cols));
            rows.flat_map(|(gate, up)| gate.iter().zip(up).map(|(gate, up)| active(*gate, *up)).collect::<Vec<_>>())
                .collect()
        };
        let on = engine.matrix(ROWS, 2 * cols, 0, &gate_up);
        let y = engine.gate(&on, padding).unwrap();
        assert_close("gate", &engine.values(&y), &reference(&wide(&gate_up)), tolerance);
        let back = engine.gate_back(&engine.matrix(ROWS, cols, 0, &dy), on).unwrap();
        let dy = wide(&dy);
        let loss = |x: &[f64]| dot(&dy, &reference(x));
        assert_gradient("gate_back", &engine.values(&back), &gate_up, &mut random, tolerance, loss);
    }
}
