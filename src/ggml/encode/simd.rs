//! Floats side by side, one sub-block or super-block in each SIMD element: plain arrays that become vector registers
//! under the features of `vector`'s wrappers. Every operation is IEEE-exact, so their number can't change a bit.
//!
//! Two rules keep the code fast. A closure that is called twice is not inlined, and so loses the vector features. A loop
//! over the values of a tile carries a sum, or else the compiler vectorizes it across the values, with gathers.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]
#![expect(clippy::needless_range_loop, reason = "elements go by number: iterators would not become vector code")]

use std::ops::{Add, Deref, DerefMut, Div, Mul, Sub};

/// Adding it leaves a float's integer part, rounded to even, in the low mantissa bits.
const MAGIC: f32 = 12_582_912.0;
/// Bits that `nearest_int` of ggml-quants.c looks at, and the exponent that makes them a float of their value again.
const MANTISSA: u32 = 0x007f_ffff;
const EXPONENT: u32 = 0x4b00_0000;

/// `N` floats.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Simd<const N: usize>(pub(super) [f32; N]);

/// The values of `N` sub-blocks of `S`, where aligned loads find them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile<const N: usize, const S: usize>(pub(super) [Simd<N>; S]);

/// `N` truths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask<const N: usize>([bool; N]);

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl<const N: usize> $trait for Simd<N> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                let mut out = [0.0; N];
                for l in 0..N {
                    out[l] = self.0[l] $op other.0[l];
                }
                Self(out)
            }
        }
    };
}

operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

impl<const N: usize> Simd<N> {
    pub(super) const ZERO: Self = Self([0.0; N]);

    #[inline(always)]
    pub(super) fn splat(value: f32) -> Self {
        Self([value; N])
    }

    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        let mut out = [0.0; N];
        for l in 0..N {
            out[l] = f(self.0[l]);
        }
        Self(out)
    }

    #[inline(always)]
    fn compare(self, other: Self, f: impl Fn(f32, f32) -> bool) -> Mask<N> {
        let mut mask = [false; N];
        for l in 0..N {
            mask[l] = f(self.0[l], other.0[l]);
        }
        Mask(mask)
    }

    #[inline(always)]
    pub(super) fn lt(self, other: Self) -> Mask<N> {
        self.compare(other, |a, b| a < b)
    }

    #[inline(always)]
    pub(super) fn gt(self, other: Self) -> Mask<N> {
        self.compare(other, |a, b| a > b)
    }

    /// Where they differ; NaN differs from everything.
    #[inline(always)]
    pub(super) fn ne(self, other: Self) -> Mask<N> {
        self.compare(other, |a, b| a != b)
    }

    /// `if other < self { other } else { self }`.
    #[inline(always)]
    pub(super) fn min(self, other: Self) -> Self {
        other.lt(self).select(other, self)
    }

    /// `if other > self { other } else { self }`.
    #[inline(always)]
    pub(super) fn max(self, other: Self) -> Self {
        other.gt(self).select(other, self)
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    pub(super) fn neg(self) -> Self {
        self.map(|v| -v)
    }

    #[inline(always)]
    pub(super) fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }

    /// The nearest integer, as [`nearest`] has it, held between two small integers.
    #[inline(always)]
    pub(super) fn round(self, low: f32, high: f32) -> Self {
        let shifted = self.map(|v| f32::from_bits((v + MAGIC).to_bits() & MANTISSA | EXPONENT) - MAGIC);
        shifted.max(Self::splat(low)).min(Self::splat(high))
    }

    /// The nearest integer, as [`nearest`] has it, of at most `high`.
    #[inline(always)]
    pub(super) fn round_below(self, high: f32) -> Self {
        self.round(-4_194_304.0, high)
    }

    /// An integer that [`Self::round_below`] gave, as a `uint8_t` would keep it.
    #[inline(always)]
    pub(super) fn wrap(self) -> Self {
        self.map(|v| f32::from_bits((v + MAGIC).to_bits() & 0xff | EXPONENT) - f32::from_bits(EXPONENT))
    }
}

impl<const N: usize, const S: usize> Tile<N, S> {
    pub(super) const ZERO: Self = Self([Simd::ZERO; S]);

    /// Loads `N` runs of `S` values, one in each SIMD element. Elements without a run get zeros.
    #[inline(always)]
    pub(super) fn load(values: &[f32]) -> Self {
        let mut tile = Self::ZERO;
        for (l, run) in values.chunks_exact(S).take(N).enumerate() {
            for i in 0..S {
                tile[i].0[l] = run[i];
            }
        }
        tile
    }
}

impl<const N: usize, const S: usize> Deref for Tile<N, S> {
    type Target = [Simd<N>; S];

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<const N: usize, const S: usize> DerefMut for Tile<N, S> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<const N: usize> Mask<N> {
    #[inline(always)]
    pub(super) fn and(self, other: Self) -> Self {
        let mut out = [false; N];
        for l in 0..N {
            out[l] = self.0[l] & other.0[l];
        }
        Self(out)
    }

    #[inline(always)]
    pub(super) fn select(self, yes: Simd<N>, no: Simd<N>) -> Simd<N> {
        let mut out = [0.0; N];
        for l in 0..N {
            out[l] = if self.0[l] { yes.0[l] } else { no.0[l] };
        }
        Simd(out)
    }

    #[inline(always)]
    pub(super) fn any(self) -> bool {
        let mut any = false;
        for l in 0..N {
            any |= self.0[l];
        }
        any
    }
}

/// [`nearest`] held between two small integers, plus [`MAGIC`].
#[inline(always)]
fn round_shifted(value: f32, low: f32, high: f32) -> f32 {
    let shifted = f32::from_bits((value + MAGIC).to_bits() & MANTISSA | EXPONENT);
    let shifted = if shifted > low + MAGIC { shifted } else { low + MAGIC };
    if shifted < high + MAGIC { shifted } else { high + MAGIC }
}

/// Rounds to the nearest integer, ties to even, as `nearest_int` of ggml-quants.c: past 2^22 it wraps, and NaN gives 0.
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    ((value + MAGIC).to_bits() & MANTISSA).cast_signed() - 0x0040_0000
}

/// The code of `value`: [`nearest`] held between two small integers, counted from the lower.
#[inline(always)]
pub(super) fn code(value: f32, low: f32, high: f32) -> u8 {
    (round_shifted(value, low, high).to_bits() - (low + MAGIC).to_bits()) as u8
}
