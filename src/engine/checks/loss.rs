//! Cross-entropy.

use super::{Probe, Random, assert_close, assert_gradient, dot, wide};

pub(crate) fn check_cross_entropy<E: Probe>(engine: &E, tolerance: f64) {
    const SCALE: f32 = 0.75;
    let (cols, vocabulary) = (32, 104);
    let mut random = Random::new(6);
    let batch = random.batch(&[9, 14], vocabulary);
    let rows = batch.tokens.len();
    let x = random.values(rows * cols, 2.0);
    let head = random.values(vocabulary * cols, 1.0);
    let wide_head = wide(&head);
    let reference = |x: &[f64]| -> Vec<f64> {
        let of = |target: &crate::engine::Target| {
            let row = &x[target.row as usize * cols..][..cols];
            let logits: Vec<f64> = wide_head.chunks(cols).map(|weights| dot(row, weights)).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            f64::from(target.weight) * (sum.ln() - logits[target.token as usize])
        };
        batch.targets.iter().map(of).collect()
    };
    let (on_x, on_head) = (engine.matrix(rows, cols, 0, &x), engine.matrix(vocabulary, cols, 0, &head));
    let on_batch = engine.place(&batch).unwrap();
    let losses = engine.read(&engine.cross_entropy(&on_x, &on_head, &on_batch).unwrap()).unwrap();
    assert_close("cross_entropy", &losses, &reference(&wide(&x)), tolerance);
    let (again, dx) = engine.cross_entropy_back(&on_x, &on_head, &on_batch, SCALE).unwrap();
    assert_eq!(engine.read(&again).unwrap(), losses);
    let dx = engine.values(&dx);
    let loss = |x: &[f64]| f64::from(SCALE) * reference(x).iter().sum::<f64>();
    assert_gradient("cross_entropy, back", &dx, &x, &mut random, tolerance, loss);
    let untouched = (0..rows as u32).filter(|row| batch.targets.iter().all(|target| target.row != *row));
    for row in untouched {
        assert!(dx[row as usize * cols..][..cols].iter().all(|value| *value == 0.0), "row {row} has no target");
    }
    // A run without a target is no error.
    let empty = crate::engine::Batch { targets: Vec::new(), ..batch.clone() };
    let (losses, dx) = engine.cross_entropy_back(&on_x, &on_head, &engine.place(&empty).unwrap(), SCALE).unwrap();
    assert!(engine.read(&losses).unwrap().is_empty());
    assert!(engine.values(&dx).iter().all(|value| *value == 0.0));
}

/// The logits of some rows, in any order and more than once.
pub(crate) fn check_logits<E: Probe>(engine: &E, tolerance: f64) {
    let (rows, cols, vocabulary) = (11, 32, 104);
    let mut random = Random::new(11);
    let (x, head) = (random.values(rows * cols, 2.0), random.values(vocabulary * cols, 1.0));
    let (on_x, on_head) = (engine.matrix(rows, cols, 8, &x), engine.matrix(vocabulary, cols, 0, &head));
    let chosen = [7u32, 0, 10, 7];
    let found = engine.values(&engine.logits(&on_x, &on_head, &chosen).unwrap());
    let (x, head) = (wide(&x), wide(&head));
    let of = |row: &u32| head.chunks(cols).map(|weights| dot(&x[*row as usize * cols..][..cols], weights)).collect();
    assert_close(
        "logits",
        &found,
        &chosen.iter().flat_map(|row| -> Vec<f64> { of(row) }).collect::<Vec<_>>(),
        tolerance,
    );
    assert!(engine.values(&engine.logits(&on_x, &on_head, &[]).unwrap()).is_empty());
    assert!(engine.logits(&on_x, &on_head, &[11]).is_err(), "a row beyond the last");
}
