//! Dropout masks of the adapters' inputs, as a function of a value's position: nothing is stored, and a mask is the
//! same when a layer is computed again, on every device. The kernels of `engine/cuda` have the same arithmetic.

/// The masks of one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    threshold: u32,
    scale: f32,
    seed: u64,
    step: u64,
}

/// The mask of one module's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// What is mixed into every place.
    pub key: [u32; 2],
    /// A value is kept where its 16 bits are at least this.
    pub threshold: u32,
}

impl Dropout {
    /// Masks that zero a value with `probability`, which is in 0..1, rounded to a 65536th; `None` where that zeroes
    /// nothing. `step` counts micro-batches over the whole run, and differs from rank to rank.
    pub fn new(probability: f64, seed: u64, step: u64) -> Option<Self> {
        #[expect(clippy::cast_sign_loss, reason = "it is clamped to numbers from 0")]
        let threshold = (probability * 65536.0).round().clamp(0.0, 65535.0) as u32;
        (threshold > 0).then(|| Self { threshold, scale: (1.0 / (1.0 - probability)) as f32, seed, step })
    }

    /// What a kept value is multiplied by: 1 / (1 - p).
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The mask of the module with this number; see [`super::Slot`].
    pub fn mask(&self, module: usize) -> Mask {
        let mixed = finish(finish(finish(self.seed) ^ self.step) ^ module as u64);
        Mask { key: [mixed as u32, (mixed >> 32) as u32], threshold: self.threshold }
    }
}

impl Mask {
    /// Whether the value at `row`, `col` of an input with `cols` columns (an even number) is kept.
    #[inline]
    pub fn keeps(&self, row: usize, col: usize, cols: usize) -> bool {
        let place = (row.wrapping_mul(cols).wrapping_add(col)) as u32;
        let mixed = mix(mix(place >> 1 ^ self.key[0]).wrapping_add(self.key[1]));
        let bits = if place & 1 == 0 { mixed & 0xffff } else { mixed >> 16 };
        bits >= self.threshold
    }
}

/// The finalizer of MurmurHash3, 32 bits (Appleby, public domain).
#[inline]
fn mix(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
    x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
    x ^ x >> 16
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), on the next state.
fn finish(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_zeros_is_the_probability_and_masks_differ() {
        let cols = 64;
        let places = || (0..2000).flat_map(move |row| (0..cols).map(move |col| (row, col)));
        for probability in [0.05, 0.1, 0.5] {
            let dropout = Dropout::new(probability, 42, 7).unwrap();
            let mask = dropout.mask(3);
            let zeros = places().filter(|(row, col)| !mask.keeps(*row, *col, cols)).count() as f64 / 128_000.0;
            assert!((zeros - probability).abs() < 0.005, "{probability}: {zeros}");
            let other = Dropout::new(probability, 42, 8).unwrap().mask(3);
            let differ = places().filter(|(r, c)| mask.keeps(*r, *c, cols) != other.keeps(*r, *c, cols)).count();
            let expected = 2.0 * probability * (1.0 - probability) * 128_000.0;
            assert!((differ as f64 - expected).abs() < expected * 0.1, "{differ} and {expected}");
        }
        assert_eq!(Dropout::new(0.0, 1, 1), None);
    }

    /// Pairs share a hash: they must not share a fate.
    #[test]
    fn neighbours_are_independent() {
        let mask = Dropout::new(0.5, 1, 2).unwrap().mask(0);
        let both = (0..100_000).filter(|i| mask.keeps(*i, 0, 2) && mask.keeps(*i, 1, 2)).count();
        assert!((both as f64 - 25_000.0).abs() < 600.0, "{both}");
    }
}
