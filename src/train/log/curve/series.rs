//! Points of a line: taken together where they are many, and smoothed.

use super::Point;

/// Most pieces that a line is drawn of; more points are taken together.
pub(super) const MOST: usize = 800;
/// A line of fewer points is not smoothed.
pub(super) const FEWEST: usize = 8;

/// Points that are drawn as one.
pub(super) struct Piece {
    /// Mean of its steps.
    pub(super) step: f64,
    /// Mean of its values.
    pub(super) mean: f64,
    /// The lowest and the highest, in the order in which they came.
    pub(super) ends: [f64; 2],
}

/// The points, taken together so that they are at most [`MOST`].
pub(super) fn pieces(points: &[Point]) -> Vec<Piece> {
    let piece = |points: &[Point]| {
        let n = points.len() as f64;
        let values = || points.iter().map(|(_, value)| *value).enumerate();
        let (low, high) = (values().min_by(|a, b| a.1.total_cmp(&b.1)), values().max_by(|a, b| a.1.total_cmp(&b.1)));
        let ends = match (low, high) {
            (Some(low), Some(high)) if low.0 <= high.0 => [low.1, high.1],
            (Some(low), Some(high)) => [high.1, low.1],
            _ => [0.0; 2],
        };
        let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / n;
        Piece { step: mean(|point| point.0 as f64), mean: mean(|point| point.1), ends }
    };
    points.chunks(points.len().div_ceil(MOST).max(1)).map(piece).collect()
}

/// Lines fitted to the neighbours of each point, weighted by a Gaussian: unlike an average of what came before it does
/// not lag behind, and unlike one of both sides it follows a slope to its end.
pub(super) fn smooth(pieces: &[Piece]) -> Vec<(f64, f64)> {
    if pieces.len() < FEWEST {
        return pieces.iter().map(|piece| (piece.step, piece.mean)).collect();
    }
    let width = (pieces.len() as f64 / 32.0).max(1.5);
    let reach = (3.0 * width).ceil();
    let at = |i: usize| {
        let (mut weights, mut places, mut squares, mut values, mut products) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (j, piece) in pieces.iter().enumerate() {
            let place = j as f64 - i as f64;
            if place.abs() <= reach {
                let weight = (-0.5 * (place / width).powi(2)).exp();
                weights += weight;
                places += weight * place;
                squares += weight * place * place;
                values += weight * piece.mean;
                products += weight * place * piece.mean;
            }
        }
        // The fitted line at place 0; two neighbours at least make the divisor positive.
        (pieces[i].step, (squares * values - places * products) / (weights * squares - places * places))
    };
    (0..pieces.len()).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_ends_and_lines() {
        let line: Vec<Point> = (0..100).map(|i| (i, i as f64 * 2.0)).collect();
        for (step, value) in smooth(&pieces(&line)) {
            assert!((value - step * 2.0).abs() < 1e-9, "{step}: {value}");
        }
        let noise: Vec<Point> = (0..100).map(|i| (i, if i % 2 == 0 { 1.0 } else { -1.0 })).collect();
        assert!(smooth(&pieces(&noise)).iter().all(|(_, value)| value.abs() < 0.3));
    }
}
