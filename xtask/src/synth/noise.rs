//! Noise that looks like weights: normal, seeded, and made faster than a disk takes it.

use std::f64::consts::TAU;
use std::sync::OnceLock;

/// Draws that the noise is made of. A draw costs 16 random bits and a look-up.
const DRAWS: usize = 1 << 16;

/// `len` bytes of elements of deviation `deviation`, each encoded by `encode` in `W` bytes.
pub(super) fn bytes<const W: usize>(seed: u64, len: usize, deviation: f32, encode: fn(f32) -> [u8; W]) -> Vec<u8> {
    let table: Vec<[u8; W]> = draws().iter().map(|draw| encode(draw * deviation)).collect();
    let mut random = SplitMix(seed);
    let mut out = vec![0; len];
    for four in out.chunks_mut(4 * W) {
        let mut bits = random.next();
        for element in four.chunks_mut(W) {
            element.copy_from_slice(&table[bits as usize % DRAWS]);
            bits >>= 16;
        }
    }
    out
}

/// Normal draws of deviation 1.
fn draws() -> &'static [f32] {
    static TABLE: OnceLock<Vec<f32>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut random = SplitMix(0);
        // In (0, 1], since the logarithm of zero is no number.
        let mut uniform = move || ((random.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        // The Box-Muller transform.
        (0..DRAWS).map(|_| ((-2.0 * uniform().ln()).sqrt() * (TAU * uniform()).cos()) as f32).collect()
    })
}

/// <https://prng.di.unimi.it/splitmix64.c>
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_its_deviation_and_depends_on_the_seed_alone() {
        let noise = bytes(1, 400_000, 0.02, f32::to_le_bytes);
        let values = noise.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
        assert!((sum / 1e5).abs() < 5e-4, "{sum}");
        assert!(((squares / 1e5).sqrt() - 0.02).abs() < 5e-4, "{squares}");
        assert!(noise == bytes(1, 400_000, 0.02, f32::to_le_bytes));
        assert!(noise != bytes(2, 400_000, 0.02, f32::to_le_bytes));
    }
}
