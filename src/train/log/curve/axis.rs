//! Axes from round number to round number, and their ticks as text.

/// A range of an axis, from round number to round number.
pub(super) struct Axis {
    /// Distance of two ticks.
    step: f64,
    /// The ticks are these multiples of it.
    first: i64,
    last: i64,
}

impl Axis {
    /// The axis that covers `low` to `high` with some `about` ticks, `least` apart or more.
    pub(super) fn over(low: f64, high: f64, about: f64, least: f64) -> Self {
        let room = if high > low { high - low } else { (high.abs() * 0.1).max(1e-9) };
        let raw = (room / about).max(least);
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0].iter().map(|m| m * power).find(|step| *step >= raw * 0.999).unwrap_or(10.0 * power);
        // A small margin, so that 0.30000000000000004 is 0.3.
        let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
        Self { step, first, last: last.max(first + 1) }
    }

    /// The ticks: where between 0 and 1 and at which number. A broken range has few, never many.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, f64)> {
        let (first, last) = (self.first, self.last.min(self.first.saturating_add(40)));
        (first..=last).map(move |i| ((i - first) as f64 / (self.last - first) as f64, i as f64 * self.step))
    }

    /// Where between 0 and 1 a value lies.
    pub(super) fn place(&self, value: f64) -> f64 {
        (value / self.step - self.first as f64) / (self.last - self.first) as f64
    }

    /// Digits after the point of a tick.
    pub(super) fn digits(&self) -> usize {
        #[expect(clippy::cast_sign_loss, reason = "clamped")]
        let digits = (-(self.step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize;
        digits
    }
}

/// `2e-4`.
pub(super) fn power(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = format!("{value:.4e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    if exponent == "0" { digits.to_owned() } else { format!("{digits}e{exponent}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(low: f64, high: f64, about: f64, least: f64) -> Vec<String> {
        let axis = Axis::over(low, high, about, least);
        axis.ticks().map(|(_, value)| format!("{value:.*}", axis.digits())).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(ticks(0.93, 2.41, 6.0, 0.0), ["0.5", "1.0", "1.5", "2.0", "2.5"]);
        assert_eq!(ticks(0.0, 0.3, 6.0, 0.0), ["0.00", "0.05", "0.10", "0.15", "0.20", "0.25", "0.30"]);
        assert_eq!(ticks(0.0, 3.0, 8.0, 1.0), ["0", "1", "2", "3"]);
        assert_eq!(ticks(0.0, 1250.0, 8.0, 1.0).last().unwrap(), "1400");
        assert_eq!(ticks(2.0, 2.0, 6.0, 0.0), ["2.00", "2.05"]);
        for (low, high) in [(0.0, 0.0), (-1e30, 1e30), (1e-300, 2e-300), (1e15, 1e15 + 1.0), (-3.0, -2.9)] {
            let axis = Axis::over(low, high, 6.0, 0.0);
            assert!((2..=41).contains(&axis.ticks().count()), "{low:e} {high:e}");
            assert!([low, high].iter().all(|v| (-0.01..=1.01).contains(&axis.place(*v))), "{low:e} {high:e}");
        }
    }

    #[test]
    fn rates_are_short() {
        assert_eq!([0.0, 2e-4, 1.5e-5, 5e-5, 1.0, 2.5].map(power), ["0", "2e-4", "1.5e-5", "5e-5", "1", "2.5"]);
    }
}
