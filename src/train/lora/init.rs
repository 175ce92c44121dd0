//! Initial values of the factors: `A` as in PEFT, `B` zero, so that the adapted model equals the base.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::layout::Layout;

/// The first values of all parameters: `A` uniform in ±1/sqrt(inputs) (`kaiming_uniform_` with a = sqrt(5), as PEFT's
/// `reset_lora_parameters`), `B` zero. A module's draws depend on the seed and on its number alone. Magnitudes are left
/// zero: they are the norms of the base's rows, which `model` fills in.
pub fn initial(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; layout.len];
    for (number, module) in layout.modules.iter().enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number as u64);
        let bound = 1.0 / (module.inputs as f64).sqrt();
        for value in &mut values[module.a.clone()] {
            // 53 random bits, in 0..1.
            let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            *value = ((2.0 * unit - 1.0) * bound) as f32;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::lora::LoraSpec;

    #[test]
    fn a_is_uniform_and_b_is_zero() {
        let mut layout = Layout::new(LoraSpec { rank: 8, scale: 4.0, magnitudes: false });
        layout.stack(1024, &[("q".to_owned(), 16, true), ("k".to_owned(), 16, true)]);
        let values = initial(&layout, 42);
        let [q, k] = &layout.modules[..] else { panic!() };
        let a = &values[q.a.clone()];
        let bound = 1.0 / 32.0;
        assert!(a.iter().all(|v| v.abs() <= bound) && a.iter().any(|v| v.abs() > 0.95 * bound));
        let variance = a.iter().map(|v| f64::from(v * v)).sum::<f64>() / a.len() as f64;
        assert!((variance / (f64::from(bound).powi(2) / 3.0) - 1.0).abs() < 0.05, "{variance}");
        assert!(values[q.b.clone()].iter().all(|v| *v == 0.0));
        assert!(a != &values[k.a.clone()] && values == initial(&layout, 42) && values != initial(&layout, 43));
    }
}
