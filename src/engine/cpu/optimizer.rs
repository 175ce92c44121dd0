//! AdamW, and the norm of gradients, on vectors.

use super::elementwise::dot;
use crate::engine::AdamW;

/// Values that are worked on at once.
const CHUNK: usize = 1 << 12;

/// In a fixed order: chunk by chunk.
pub(super) fn sum_of_squares(vector: &[f32]) -> f64 {
    vector.chunks(CHUNK).map(|chunk| dot(chunk, chunk)).sum()
}

/// As `_single_tensor_adamw` of torch/optim/adam.py: factors in f64, rounded to f32 where they meet values.
pub(super) fn adamw(parameters: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32], step: &AdamW) {
    let power = |beta: f64| beta.powi(i32::try_from(step.step).unwrap_or(i32::MAX));
    let keep = (1.0 - step.rate * step.decay) as f32;
    let (clip, epsilon) = (step.clip as f32, step.epsilon as f32);
    let new_first = (1.0 - step.beta1) as f32;
    let (keep_second, new_second) = (step.beta2 as f32, (1.0 - step.beta2) as f32);
    let rate = (-step.rate / (1.0 - power(step.beta1))) as f32;
    let correction = (1.0 - power(step.beta2)).sqrt() as f32;
    let moments = first.iter_mut().zip(second);
    for ((value, gradient), (first, second)) in parameters.iter_mut().zip(gradients).zip(moments) {
        let gradient = gradient * clip;
        *value *= keep;
        *first += new_first * (gradient - *first);
        *second = *second * keep_second + new_second * gradient * gradient;
        *value += rate * *first / (second.sqrt() / correction + epsilon);
    }
}
