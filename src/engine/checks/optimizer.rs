//! Vectors and AdamW, which are in f32 on every engine.

use super::{Probe, Random, assert_close, dot, wide};
use crate::engine::AdamW;

pub(crate) fn check_vectors<E: Probe>(engine: &E) {
    let values = Random::new(7).values(100_003, 3.0);
    let mut vector = engine.vector(&values).unwrap();
    assert_eq!(engine.read(&vector).unwrap(), values);
    let (found, expected) = (engine.sum_of_squares(&vector).unwrap(), dot(&wide(&values), &wide(&values)));
    assert!((found / expected - 1.0).abs() < 1e-6, "{found}, not {expected}");
    engine.zero(&mut vector).unwrap();
    assert!(engine.read(&vector).unwrap().iter().all(|value| *value == 0.0));
    engine.write(&mut vector, &values).unwrap();
    assert_eq!(engine.read(&vector).unwrap(), values);
}

/// Three steps against the formulas of the paper in f64.
pub(crate) fn check_adamw<E: Probe>(engine: &E) {
    const LEN: usize = 1001;
    let mut random = Random::new(8);
    let start = random.values(LEN, 1.0);
    let mut expected = [wide(&start), vec![0.0; LEN], vec![0.0; LEN]];
    let mut on = [&start, &vec![0.0; LEN], &vec![0.0; LEN]].map(|values| engine.vector(values).unwrap());
    for number in 1..=3 {
        let gradients = random.values(LEN, 0.1);
        let step = AdamW { rate: 1e-2, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, decay: 0.1, step: number, clip: 0.5 };
        let [parameters, first, second] = &mut on;
        engine.adamw(parameters, &engine.vector(&gradients).unwrap(), first, second, &step).unwrap();
        let [parameters, first, second] = &mut expected;
        let power = |beta: f64| 1.0 - beta.powi(number as i32);
        for i in 0..LEN {
            let gradient = f64::from(gradients[i]) * step.clip;
            first[i] = step.beta1 * first[i] + (1.0 - step.beta1) * gradient;
            second[i] = step.beta2 * second[i] + (1.0 - step.beta2) * gradient * gradient;
            let update = first[i] / power(step.beta1) / ((second[i] / power(step.beta2)).sqrt() + step.epsilon);
            parameters[i] -= step.rate * step.decay * parameters[i] + step.rate * update;
        }
    }
    for (what, (found, expected)) in ["parameters", "first", "second"].iter().zip(on.iter().zip(&expected)) {
        assert_close(what, &engine.read(found).unwrap(), expected, 1e-6);
    }
}
