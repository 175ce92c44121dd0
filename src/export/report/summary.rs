//! What the figures of several tensors add up to.

use super::QualityRow;
use crate::manifest::{Figures, Summary};

impl Summary {
    /// The sums over `rows`.
    pub(super) fn of<'a>(name: impl Into<String>, rows: impl IntoIterator<Item = &'a QualityRow>) -> Self {
        let mut sums =
            Self { name: name.into(), tensors: 0, exact: 0, weights: 0, bytes: 0, bits_per_weight: 0.0, figures: None };
        let (mut measured, mut error, mut values) = (0.0, 0.0, 0.0);
        let (mut max_error, mut cosine) = (0.0f64, 1.0f64);
        for row in rows {
            sums.tensors += 1;
            sums.weights = sums.weights.saturating_add(row.weights());
            sums.bytes = sums.bytes.saturating_add(row.bytes);
            let Some(q) = row.quality else {
                sums.exact += 1;
                continue;
            };
            let weights = row.weights() as f64;
            measured += weights;
            error += q.rmse * q.rmse * weights;
            values += q.rms * q.rms * weights;
            max_error = max_error.max(q.max_error);
            cosine = cosine.min(q.cosine);
        }
        sums.bits_per_weight = if sums.weights == 0 { 0.0 } else { sums.bytes as f64 * 8.0 / sums.weights as f64 };
        sums.figures = (sums.exact < sums.tensors).then(|| Figures {
            rmse: if measured == 0.0 { 0.0 } else { (error / measured).sqrt() },
            relative: if error == 0.0 { 0.0 } else { (error / values).sqrt() },
            max_error,
            cosine,
        });
        sums
    }
}
