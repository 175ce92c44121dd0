//! The errors of encoded values: sums that add up in any grouping of blocks, and the
//! figures that users read.

use serde::{Deserialize, Serialize};

/// Sums over some values and their decoded counterparts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ErrorSums {
    count: u64,
    /// Of squared errors, squared values, squared decoded values, and products of the two.
    error: f64,
    values: f64,
    decoded: f64,
    products: f64,
    largest: f32,
}

/// Sums that a chunk is made of, so that the loop becomes vector code.
const LANES: usize = 16;

impl ErrorSums {
    /// The sums over `values` and `decoded`, which are as many.
    pub fn of(values: &[f32], decoded: &[f32]) -> Self {
        let mut sums = Self { count: values.len() as u64, ..Self::default() };
        let mut largest = [0f32; LANES];
        for (x, y) in values.chunks(256).zip(decoded.chunks(256)) {
            let [mut error, mut xx, mut yy, mut xy] = [[0f32; LANES]; 4];
            let mut lane = |i: usize, x: f32, y: f32| {
                let e = x - y;
                error[i] += e * e;
                xx[i] += x * x;
                yy[i] += y * y;
                xy[i] += x * y;
                largest[i] = if e.abs() > largest[i] { e.abs() } else { largest[i] };
            };
            let (x, x_rest) = x.as_chunks::<LANES>();
            let (y, y_rest) = y.as_chunks::<LANES>();
            for (x, y) in x.iter().zip(y) {
                (0..LANES).for_each(|i| lane(i, x[i], y[i]));
            }
            x_rest.iter().zip(y_rest).enumerate().for_each(|(i, (x, y))| lane(i, *x, *y));
            let sum = |lanes: &[f32; LANES]| lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
            sums.error += sum(&error);
            sums.values += sum(&xx);
            sums.decoded += sum(&yy);
            sums.products += sum(&xy);
        }
        sums.largest = largest.into_iter().fold(0.0, f32::max);
        sums
    }

    /// Sums that were taken elsewhere: of squared errors, squared values, squared decoded values, and products of the
    /// two, over `count` values, and the largest error.
    pub(crate) fn from_parts(count: u64, sums: [f64; 4], largest: f32) -> Self {
        let [error, values, decoded, products] = sums;
        Self { count, error, values, decoded, products, largest }
    }

    /// The sums over both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            error: self.error + other.error,
            values: self.values + other.values,
            decoded: self.decoded + other.decoded,
            products: self.products + other.products,
            largest: self.largest.max(other.largest),
        }
    }

    /// Whether there were no values.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The figures.
    pub fn quality(&self) -> Quality {
        let norms = (self.values * self.decoded).sqrt();
        let root_of_mean = |sum: f64| if self.count == 0 { 0.0 } else { (sum / self.count as f64).sqrt() };
        Quality {
            rmse: root_of_mean(self.error),
            rms: root_of_mean(self.values),
            max_error: f64::from(self.largest),
            cosine: match () {
                () if norms > 0.0 => (self.products / norms).clamp(-1.0, 1.0),
                () if self.error == 0.0 => 1.0,
                () => 0.0,
            },
        }
    }
}

/// How good an encoding is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Root of the mean square of the values themselves: what `rmse` is to be measured by.
    pub rms: f64,
    /// Largest absolute error.
    pub max_error: f64,
    /// Cosine of the angle between the values and their decoded counterparts; 1 is best.
    pub cosine: f64,
}

impl Quality {
    /// The error in relation to the values: `rmse / rms`, and 0 where both are 0.
    pub fn relative(&self) -> f64 {
        if self.rmse == 0.0 { 0.0 } else { self.rmse / self.rms }
    }

    /// Whether all figures are finite: values that are not leave none that mean anything.
    pub fn is_finite(&self) -> bool {
        [self.rmse, self.rms, self.max_error, self.cosine].iter().all(|v| v.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "the figures are exact")]
    fn figures_of_known_values() {
        let (x, y) = ([3.0, 4.0, 0.0, 1.0], [3.0, 3.0, 0.0, -1.0]);
        let q = ErrorSums::of(&x, &y).quality();
        assert_eq!((q.rmse, q.max_error), ((5.0f64 / 4.0).sqrt(), 2.0));
        assert!((q.cosine - 20.0 / (26.0f64 * 19.0).sqrt()).abs() < 1e-12);
        let exact = ErrorSums::of(&[0.0; 5], &[0.0; 5]).quality();
        assert_eq!(exact, Quality { rmse: 0.0, rms: 0.0, max_error: 0.0, cosine: 1.0 });
        assert_eq!((exact.relative(), q.rms), (0.0, (26.0f64 / 4.0).sqrt()));
        assert!((q.relative() - (5.0f64 / 26.0).sqrt()).abs() < 1e-12);
        assert!(!ErrorSums::of(&[f32::NAN; 3], &[0.0; 3]).quality().is_finite());
        assert_eq!(ErrorSums::of(&[1.0], &[0.0]).quality().cosine, 0.0);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "a maximum is exact")]
    fn parts_add_up() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let y: Vec<f32> = x.iter().map(|v| (v * 8.0).round() / 8.0).collect();
        let whole = ErrorSums::of(&x, &y).quality();
        let parts = ErrorSums::of(&x[..300], &y[..300]).and(ErrorSums::of(&x[300..], &y[300..])).quality();
        assert!((whole.rmse / parts.rmse - 1.0).abs() < 1e-6 && whole.max_error == parts.max_error);
    }
}
