//! Rows as batches of super-blocks, and what every K type does with one: importance weights and the last rounding.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use super::simd::{Simd, Tile, code};
use super::superblock::LEN;

/// Whole rows to encode, and where to.
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) columns: usize,
    pub(super) importance: Option<&'a [f32]>,
    pub(super) out: &'a mut [u8],
}

/// Up to `N` super-blocks in a row of memory.
pub(super) struct Batch<'a> {
    pub(super) values: &'a [f32],
    /// Place of the first value in the rows.
    start: usize,
    columns: usize,
    importance: &'a [f32],
}

impl Rows<'_> {
    /// Batch `index` of `N` super-blocks of `bytes` bytes, and the bytes to write; `None` after the last.
    #[inline(always)]
    pub(super) fn batch<const N: usize>(&mut self, index: usize, bytes: usize) -> Option<(Batch<'_>, &mut [u8])> {
        let values = self.values.chunks(N * LEN).nth(index)?;
        let out = self.out.chunks_mut(N * bytes).nth(index)?;
        let importance = self.importance.unwrap_or_default();
        Some((Batch { values, start: index * N * LEN, columns: self.columns, importance }, out))
    }
}

impl Batch<'_> {
    /// Number of sub-blocks of `S` values.
    pub(super) fn runs<const S: usize>(&self) -> usize {
        self.values.len() / S
    }

    /// `N` sub-blocks from sub-block `first` on, one in each SIMD element.
    #[inline(always)]
    pub(super) fn load<const N: usize, const S: usize>(&self, first: usize) -> Tile<N, S> {
        Tile::load(&self.values[first * S..])
    }

    /// Importance of the values that [`Self::load`] gives.
    #[inline(always)]
    pub(super) fn load_importance<const N: usize, const S: usize>(&self, first: usize) -> Tile<N, S> {
        let mut out = Tile::<N, S>::ZERO;
        for l in 0..N.min(self.runs::<S>() - first) {
            let column = (self.start + (first + l) * S) % self.columns;
            let run = &self.importance[column..column + S];
            for i in 0..S {
                out[i].0[l] = run[i];
            }
        }
        out
    }

    /// `squares` times the mean square of every super-block, summed in order.
    #[inline(always)]
    pub(super) fn mean_squares<const N: usize>(&self, squares: f32) -> Simd<N> {
        let mut sum = Simd::<N>::ZERO;
        for at in (0..LEN).step_by(32) {
            let mut x = Tile::<N, 32>::ZERO;
            for (l, block) in self.values.chunks_exact(LEN).take(N).enumerate() {
                let run = &block[at..at + 32];
                for i in 0..32 {
                    x[i].0[l] = run[i];
                }
            }
            for i in 0..32 {
                sum = sum + x[i] * x[i];
            }
        }
        Simd::splat(squares) * sum / Simd::splat(LEN as f32)
    }

    /// The weights that importance gives: `qw * sqrt(sigma2 + x^2)`, with `sigma2` of [`Self::mean_squares`]; and their
    /// sums.
    #[inline(always)]
    pub(super) fn weights<const N: usize, const S: usize>(
        &self,
        first: usize,
        x: &Tile<N, S>,
        mean_squares: &Simd<N>,
    ) -> (Tile<N, S>, Simd<N>) {
        let mut sigma2 = Simd::<N>::ZERO;
        for l in 0..N.min(self.runs::<S>() - first) {
            sigma2.0[l] = mean_squares.0[(first + l) * S / LEN];
        }
        let mut w = self.load_importance(first);
        let mut sum = Simd::ZERO;
        for i in 0..S {
            w[i] = w[i] * (sigma2 + x[i] * x[i]).sqrt();
            sum = sum + w[i];
        }
        (w, sum)
    }
}

/// Codes of a sub-block once its scale is stored, `low` being code 0.
#[inline(always)]
pub(super) fn requantize(x: &[f32], scale: f32, min: f32, low: f32, high: f32, codes: &mut [u8]) {
    for (out, x) in codes.iter_mut().zip(x) {
        *out = code((x + min) / scale, low, high);
    }
}
