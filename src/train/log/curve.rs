//! The loss curve of a run: one SVG without external content, legible on a light and a dark background.

mod axis;
mod series;

use std::fmt::Write;

use serde_json::{Map, Value};

use super::record::STEP;
use crate::markup::Text;
use axis::{Axis, power};
use series::{FEWEST, Piece, pieces, smooth};

/// A value at a step.
pub type Point = (u64, f64);

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve {
    /// Above the curve.
    pub title: String,
    /// Training loss, by step.
    pub train: Vec<Point>,
    /// Held-out loss, by step.
    pub held_out: Vec<Point>,
    /// Learning rate, by step.
    pub rate: Vec<Point>,
}

const STYLE: &str = include_str!("curve.css");

/// Size of the picture, and the place of the axes in it.
const SIZE: (f64, f64) = (960.0, 500.0);
const LEFT: f64 = 64.0;
const RIGHT: f64 = 888.0;
const TOP: f64 = 112.0;
const BOTTOM: f64 = 448.0;

/// More dots than this would cover their line.
const MOST_DOTS: usize = 100;
/// Values beyond are no losses, and their differences would overflow.
const LARGEST: f64 = 1e30;
/// Longest title, in characters.
const TITLE: usize = 80;

/// From values to places in the picture.
struct Frame {
    steps: Axis,
    loss: Axis,
    rate: Axis,
    /// Last step: the axis ends there, round or not.
    end: f64,
}

/// The place of a value, from above.
fn y(axis: &Axis, value: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * axis.place(value)
}

impl Frame {
    fn x(&self, step: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (step / self.end)
    }

    /// A line through points.
    fn path(&self, class: &str, axis: &Axis, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (i, (step, value)) in points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(*step), y(axis, *value));
        }
        format!("<path class=\"{class}\" clip-path=\"url(#plot)\" d=\"{path}\"/>\n")
    }

    /// A point of a loss, with its figures for who points at it.
    fn dot(&self, class: &str, piece: &Piece, text: &mut String) {
        let (step, loss) = (piece.step, piece.mean);
        let _ = writeln!(
            text,
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\">\
             <title>step {step}: {loss:.4}</title></circle>",
            self.x(step),
            y(&self.loss, loss)
        );
    }
}

impl Curve {
    /// The curve of a run with these records (`log_history` of `trainer_state.json`). What is no number is left out.
    pub fn from_history(title: &str, history: &[Map<String, Value>]) -> Self {
        let series = |key: &str| -> Vec<Point> {
            let point = |entry: &Map<String, Value>| Some((entry.get(STEP)?.as_u64()?, entry.get(key)?.as_f64()?));
            history.iter().filter_map(point).filter(|(_, value)| value.abs() < LARGEST).collect()
        };
        Self {
            title: title.to_owned(),
            train: series("loss"),
            held_out: series("eval_loss"),
            rate: series("learning_rate"),
        }
    }

    /// The picture; nothing if there is no loss to draw.
    pub fn svg(&self) -> Option<String> {
        let frame = self.frame()?;
        let (width, height) = SIZE;
        let summary = self.summary();
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
             <title>{title}: loss</title>\n<desc>{summary}</desc>\n<style>\n{STYLE}</style>\n\
             <clipPath id=\"plot\"><rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/></clipPath>\n\
             <rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"40\">{title}</text>\n\
             <text class=\"quiet\" x=\"{LEFT}\" y=\"62\">{summary}</text>\n",
            RIGHT - LEFT,
            BOTTOM - TOP,
            title = Text(&short(&self.title)),
        );
        self.legend(&mut text);
        self.axes(&frame, &mut text);
        let rate: Vec<(f64, f64)> = pieces(&self.rate).iter().map(|piece| (piece.step, piece.mean)).collect();
        text.push_str(&frame.path("rate", &frame.rate, &rate));
        self.train_lines(&frame, &mut text);
        let held_out = pieces(&self.held_out);
        if held_out.len() > 1 {
            let line: Vec<(f64, f64)> = held_out.iter().map(|piece| (piece.step, piece.mean)).collect();
            text.push_str(&frame.path("held", &frame.loss, &line));
        }
        for piece in held_out.iter().filter(|_| held_out.len() <= MOST_DOTS) {
            frame.dot("dot", piece, &mut text);
        }
        text.push_str("</svg>\n");
        Some(text)
    }

    /// Scales that hold everything, but for single spikes of the training loss: their line leaves the picture.
    fn frame(&self) -> Option<Frame> {
        let mut high: Vec<f64> = self.train.iter().map(|(_, value)| *value).collect();
        high.sort_by(f64::total_cmp);
        let usual = high.get((high.len() * 99 / 100).min(high.len().saturating_sub(1))).copied();
        let smooth = smooth(&pieces(&self.train));
        let shown = smooth.iter().map(|(_, value)| *value).chain(self.held_out.iter().map(|(_, value)| *value));
        let top = shown.clone().chain(usual).fold(None, |top: Option<f64>, v| Some(top.map_or(v, |top| top.max(v))))?;
        let bottom = shown.chain(high.first().copied()).fold(top, f64::min);
        let steps = [&self.train, &self.held_out, &self.rate].into_iter().flatten().map(|(step, _)| *step);
        let end = steps.max().unwrap_or(0).max(1) as f64;
        let rate = self.rate.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        Some(Frame {
            steps: Axis::over(0.0, end, 8.0, 1.0),
            loss: Axis::over(bottom, top, 6.0, 0.0),
            rate: Axis::over(0.0, if rate > 0.0 { rate } else { 1.0 }, 4.0, 0.0),
            end,
        })
    }

    fn axes(&self, frame: &Frame, text: &mut String) {
        let digits = frame.loss.digits();
        for (place, value) in frame.loss.ticks() {
            let y = BOTTOM - (BOTTOM - TOP) * place;
            let _ = writeln!(
                text,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
                 <text class=\"tick right\" x=\"{}\" y=\"{:.1}\">{value:.digits$}</text>",
                LEFT - 10.0,
                y + 4.0
            );
        }
        for (_, step) in frame.steps.ticks().filter(|(_, step)| *step <= frame.end) {
            let x = frame.x(step);
            let _ = writeln!(
                text,
                "<path class=\"axis\" d=\"M{x:.1} {BOTTOM}v5\"/>\
                 <text class=\"tick middle\" x=\"{x:.1}\" y=\"{}\">{step}</text>",
                BOTTOM + 20.0
            );
        }
        let _ = writeln!(
            text,
            "<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>\
             <text class=\"tick middle\" x=\"{}\" y=\"{}\">optimizer step</text>",
            f64::midpoint(LEFT, RIGHT),
            BOTTOM + 40.0
        );
        if self.rate.is_empty() {
            return;
        }
        for (place, rate) in frame.rate.ticks() {
            let y = BOTTOM - (BOTTOM - TOP) * place + 4.0;
            let _ = writeln!(text, "<text class=\"faint\" x=\"{}\" y=\"{y:.1}\">{}</text>", RIGHT + 10.0, power(rate));
        }
    }

    /// The training loss as it was, and smoothed.
    fn train_lines(&self, frame: &Frame, text: &mut String) {
        let pieces = pieces(&self.train);
        if let [piece] = pieces.as_slice() {
            return frame.dot("one", piece, text);
        }
        if pieces.len() >= FEWEST {
            let mut raw: Vec<(f64, f64)> = pieces.iter().flat_map(|p| p.ends.map(|end| (p.step, end))).collect();
            raw.dedup();
            text.push_str(&frame.path("raw", &frame.loss, &raw));
        }
        text.push_str(&frame.path("smooth", &frame.loss, &smooth(&pieces)));
    }

    fn legend(&self, text: &mut String) {
        let smoothed = self.train.len() >= FEWEST;
        let items = [
            ("raw", "training loss", smoothed),
            ("smooth", if smoothed { "smoothed" } else { "training loss" }, !self.train.is_empty()),
            ("held", "held-out loss", !self.held_out.is_empty()),
            ("rate", "learning rate (right)", !self.rate.is_empty()),
        ];
        let mut x = LEFT;
        for (class, name, _) in items.iter().filter(|(_, _, there)| *there) {
            let _ = write!(text, "<path class=\"{class}\" d=\"M{x:.1} 86h22\"/>");
            if *class == "held" {
                let _ = write!(text, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"86\" r=\"4\"/>", x + 11.0);
            }
            let _ = writeln!(text, "<text class=\"quiet\" x=\"{:.1}\" y=\"90\">{name}</text>", x + 29.0);
            // As wide as the letters are in most fonts.
            x += 53.0 + 6.4 * name.len() as f64;
        }
    }

    /// The figures in a line.
    fn summary(&self) -> String {
        let mut facts = Vec::new();
        let last = [&self.train, &self.held_out].into_iter().flatten().map(|(step, _)| *step).max().unwrap_or(0);
        facts.push(if last == 1 { "1 step".to_owned() } else { format!("{last} steps") });
        let smooth = smooth(&pieces(&self.train));
        match (smooth.first(), smooth.last()) {
            (Some((_, from)), Some((_, to))) if smooth.len() > 1 => {
                facts.push(format!("training loss {from:.3} to {to:.3}"));
            }
            (Some((_, only)), _) => facts.push(format!("training loss {only:.3}")),
            _ => {}
        }
        let best = self.held_out.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        match (self.held_out.last(), best) {
            (Some(last), Some(best)) if last == best => facts.push(format!("held-out loss {:.3}, the best", last.1)),
            (Some(last), Some(best)) => {
                facts.push(format!("held-out loss {:.3}, best {:.3} at step {}", last.1, best.1, best.0));
            }
            _ => {}
        }
        facts.join(" \u{b7} ")
    }
}

/// A title that fits.
fn short(title: &str) -> String {
    match title.char_indices().nth(TITLE) {
        Some((end, _)) => format!("{}\u{2026}", &title[..end]),
        None => title.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64, every: u64) -> Curve {
        let logged = || (1..=steps / every).map(move |i| i * every);
        let loss =
            |step: u64| 1.0 + 1.5 * (-(step as f64) / 300.0).exp() + 0.05 * ((step * 7919 % 101) as f64 / 50.0 - 1.0);
        Curve {
            title: "v0-20250101-120000".to_owned(),
            train: logged().map(|step| (step, loss(step))).collect(),
            held_out: logged().step_by(10).map(|step| (step, 1.1 + 1.4 * (-(step as f64) / 300.0).exp())).collect(),
            rate: logged().map(|step| (step, 2e-4 * (1.0 - step as f64 / steps as f64))).collect(),
        }
    }

    /// The numbers of a path's places.
    fn places(svg: &str, class: &str) -> Vec<(f64, f64)> {
        let start = svg.rfind(&format!("<path class=\"{class}\" clip-path")).unwrap();
        let path = svg[start..].split_once(" d=\"").unwrap().1.split_once('"').unwrap().0;
        let place = |text: &str| {
            let (x, y) = text.split_once(' ').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        path.split(['M', 'L']).skip(1).map(place).collect()
    }

    #[test]
    fn the_curve_is_where_its_values_are() {
        let curve = run(1000, 10);
        let svg = curve.svg().unwrap();
        for (class, points) in [("raw", 100), ("smooth", 100), ("held", 10), ("rate", 100)] {
            let places = places(&svg, class);
            assert_eq!(places.len(), points, "{class}");
            assert!(places.iter().all(|(x, _)| (LEFT..=RIGHT).contains(x)), "{class}");
            // All of them fall, so their places rise in number.
            assert!(places[0].1 < places[points - 1].1 && places[0].0 < places[points - 1].0, "{class}");
        }
        assert_eq!(places(&svg, "rate")[99], (RIGHT, BOTTOM));
        let expected = LEFT + (RIGHT - LEFT) * 0.01;
        assert!((places(&svg, "smooth")[0].0 - expected).abs() < 0.06);
        assert_eq!(svg.matches("class=\"dot\"").count(), 10 + 1, "the points and the legend's");
        assert!(
            svg.contains(">1000</text>")
                && svg.contains(">2e-4</text>")
                && svg.contains("<title>step 10: 2.4541</title>")
        );
        assert!(svg.contains("1000 steps") && svg.contains("held-out loss 1.167, the best"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_long_run_makes_no_long_file() {
        let curve = run(1_000_000, 10);
        let svg = curve.svg().unwrap();
        assert!(svg.len() < 80_000, "{}", svg.len());
        let lowest = curve.train.iter().map(|(_, value)| *value).fold(f64::MAX, f64::min);
        let ends = pieces(&curve.train).iter().flat_map(|piece| piece.ends).fold(f64::MAX, f64::min);
        assert!((lowest - ends).abs() < f64::EPSILON, "extremes are kept");
    }

    #[test]
    fn what_is_not_finite_or_hostile_breaks_nothing() {
        let entry = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let history: Vec<_> = [
            r#"{"loss": null, "step": 1}"#,
            r#"{"loss": "2", "step": 2}"#,
            r#"{"loss": 1e300, "step": 3}"#,
            r#"{"loss": 2.5, "step": 18446744073709551615}"#,
            r#"{"loss": 2.0, "step": -4}"#,
            r#"{"loss": 2.0}"#,
            r#"{"eval_loss": -1e29, "step": 0}"#,
            r#"{"learning_rate": -1.0, "step": 5}"#,
        ]
        .map(entry)
        .into();
        let curve = Curve::from_history("</title><script>\u{1b}&\u{ffff}", &history);
        assert_eq!((curve.train.len(), curve.held_out.len(), curve.rate.len()), (1, 1, 1));
        let svg = curve.svg().unwrap();
        assert!(svg.contains("&lt;/title&gt;&lt;script&gt;\\u{1b}&amp;\u{fffd}: loss</title>"), "{svg}");
        assert!(svg.len() < 20_000 && !svg.contains("NaN"), "{svg}");
        assert_eq!(Curve::from_history("", &history[..3]).svg(), None);
        assert_eq!(short(&"层".repeat(81)).chars().count(), 81);
    }

    #[test]
    fn short_runs_have_curves_too() {
        for n in 1..12 {
            let curve = Curve { rate: Vec::new(), held_out: Vec::new(), ..run(n, 1) };
            let svg = curve.svg().unwrap();
            assert_eq!(svg.contains("\"raw\" clip-path"), n >= FEWEST as u64, "{n}");
            assert!(svg.contains("\"one\"") == (n == 1) && !svg.contains("NaN"), "{n}");
        }
    }

    #[test]
    fn a_single_spike_does_not_flatten_the_rest() {
        let mut curve = run(2000, 10);
        curve.train[100].1 = 5000.0;
        let top = |curve: &Curve| curve.frame().unwrap().loss.ticks().last().unwrap().1;
        assert!(top(&curve) < 2000.0);
        curve.train[100].1 = 3.0;
        assert!(top(&curve) < 3.5);
    }
}
