//! Powers in f32 with the rounding errors of PyTorch, whose vector code calls Sleef's `powf` with an error below 1 ulp
//! (`xpowf` in sleefsimdsp.c): the logarithm and the product are sums of two f32, the exponential a polynomial.

/// Powers at the front of an array that PyTorch computes by vectors: whole pairs of vectors of AVX-512.
const LANES: usize = 32;

/// `base ^ exponent` for each of `exponents`, as PyTorch computes it on a machine with AVX-512: the rest after whole
/// vectors is computed one by one, which rounds correctly. `base` is a normal number above 0.
pub(crate) fn powers(base: f32, exponents: &[f32]) -> Vec<f32> {
    let vectors = exponents.len() / LANES * LANES;
    let by_one = |exponent: f32| f64::from(base).powf(f64::from(exponent)) as f32;
    let power = |(i, exponent): (usize, &f32)| if i < vectors { power(base, *exponent) } else { by_one(*exponent) };
    exponents.iter().enumerate().map(power).collect()
}

fn power(base: f32, exponent: f32) -> f32 {
    logarithm(base).times(exponent).exponential()
}

/// The sum of two f32, the second of which is what the first has lost.
#[derive(Clone, Copy)]
struct Pair(f32, f32);

impl Pair {
    /// The sum of two numbers of any sizes.
    fn sum(a: f32, b: f32) -> Self {
        let high = a + b;
        let part = high - a;
        Self(high, (a - (high - part)) + (b - part))
    }

    /// The sum with a pair that is no larger.
    fn plus_small(self, other: Self) -> Self {
        let high = self.0 + other.0;
        Self(high, self.0 - high + other.0 + self.1 + other.1)
    }

    /// The sum with a pair of any size.
    fn plus(self, other: Self) -> Self {
        let Self(high, low) = Self::sum(self.0, other.0);
        Self(high, low + (self.1 + other.1))
    }

    /// The sum with a number of any size.
    fn plus_number(self, other: f32) -> Self {
        let Self(high, low) = Self::sum(self.0, other);
        Self(high, low + self.1)
    }

    fn times(self, other: f32) -> Self {
        let high = self.0 * other;
        Self(high, self.1.mul_add(other, self.0.mul_add(other, -high)))
    }

    fn times_pair(self, other: Self) -> Self {
        let high = self.0 * other.0;
        let low = self.1.mul_add(other.0, self.0.mul_add(other.0, -high));
        Self(high, self.0.mul_add(other.1, low))
    }

    fn square(self) -> Self {
        let high = self.0 * self.0;
        Self(high, (self.0 + self.0).mul_add(self.1, self.0.mul_add(self.0, -high)))
    }

    fn over(self, other: Self) -> Self {
        let inverse = 1.0 / other.0;
        let high = self.0 * inverse;
        let rest = inverse.mul_add(self.0, -high);
        let error = (-other.1).mul_add(inverse, (-other.0).mul_add(inverse, 1.0));
        Self(high, high.mul_add(error, self.1.mul_add(inverse, rest)))
    }

    /// `e ^ self`.
    fn exponential(self) -> f32 {
        /// The logarithm of 2 in two parts; the first has few enough bits for exact products with small integers.
        const LN_2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
        const TERMS: [f32; 4] = [0.008_365_969, 0.041_671_082, 0.166_665_52, 0.499_999_85];
        let twos = ((self.0 + self.1) * std::f32::consts::LOG2_E).round_ties_even();
        let rest = self.plus_number(twos * -LN_2[0]).plus_number(twos * -LN_2[1]);
        let high = rest.0 + rest.1;
        let rest = Self(high, rest.0 - high + rest.1);
        let series = TERMS.iter().fold(0.001_363_246_5_f32, |sum, term| sum.mul_add(rest.0, *term));
        let tail = rest.plus_small(rest.square().times(series));
        let result = Self(1.0, 0.0).plus_small(tail);
        if self.0 < -104.0 { 0.0 } else { scale(result.0 + result.1, twos as i32) }
    }
}

/// The natural logarithm of a normal number above 0.
fn logarithm(value: f32) -> Pair {
    const LN_2: Pair = Pair(std::f32::consts::LN_2, -1.904_654_3e-9);
    const TERMS: [f32; 2] = [0.285_112_68, 0.400_008];
    const THIRD: Pair = Pair(0.666_666_6, 3.691_838_6e-9);
    let twos = ((value * (1.0 / 0.75)).to_bits() >> 23 & 0xff).cast_signed() - 127;
    let mantissa = scale(value, -twos);
    let ratio = Pair::sum(-1.0, mantissa).over(Pair::sum(1.0, mantissa));
    let square = ratio.square();
    let series = TERMS.iter().fold(0.240_320_35_f32, |sum, term| sum.mul_add(square.0, *term));
    let tail = square.times_pair(ratio).times_pair(square.times(series).plus(THIRD));
    LN_2.times(twos as f32).plus_small(Pair(ratio.0 * 2.0, ratio.1 * 2.0)).plus_small(tail)
}

/// `value * 2 ^ twos`, in two steps, so that the factors are numbers.
fn scale(value: f32, twos: i32) -> f32 {
    let two = |power: i32| f32::from_bits((power + 127).clamp(0, 255).cast_unsigned() << 23);
    value * two(twos / 2) * two(twos - twos / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn powers_have_the_errors_of_pytorch() {
        // Base, exponent, PyTorch's power; a correctly rounded power is the next number in each.
        let cases: [(f32, f32, u32); 4] = [
            (1_000_000.0, 0.578_125, 0x4537_eba2),
            (5_000_000.0, 0.296_875, 0x42c2_e383),
            (150_000.0, 0.3125, 0x4225_cd31),
            (10_000.0, 0.867_187_5, 0x4537_eba2),
        ];
        for (base, exponent, bits) in cases {
            assert_eq!(power(base, exponent).to_bits(), bits, "{base} ^ {exponent}");
            assert_ne!((f64::from(base).powf(f64::from(exponent)) as f32).to_bits(), bits);
        }
        assert_eq!(power(500_000.0, 0.0).to_bits(), 1.0f32.to_bits());
    }

    proptest! {
        #[test]
        fn powers_are_close(base in 1.0_f32..1e9, exponent in 0.0_f32..1.0) {
            let (ours, exact) = (power(base, exponent), f64::from(base).powf(f64::from(exponent)) as f32);
            prop_assert!(ours.to_bits().abs_diff(exact.to_bits()) <= 1, "{ours} {exact}");
        }

        #[test]
        fn the_rest_behind_vectors_is_rounded_correctly(base in 1.0_f32..1e9, len in 0..100_usize) {
            let exponents: Vec<f32> = (0..len).map(|i| i as f32 / len as f32).collect();
            let powers = powers(base, &exponents);
            for i in len / LANES * LANES..len {
                let exact = f64::from(base).powf(f64::from(exponents[i])) as f32;
                prop_assert_eq!(powers[i].to_bits(), exact.to_bits());
            }
        }
    }
}
