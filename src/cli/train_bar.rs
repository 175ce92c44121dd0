//! The progress of a training run on standard error: a bar with loss, learning rate, tokens a second and what is left;
//! where that is no terminal, a line a record.

use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use qft::train::log::{Eval, Figures, Last, Record, Tick, Train, TrainProgress, duration};

use super::flags::warned;
use super::note;

/// Shows a training run.
#[derive(Default)]
pub(super) struct TrainBar {
    bar: Mutex<Option<ProgressBar>>,
}

/// All but the bar takes 74 columns at most, for runs of up to 9999 steps.
const STYLE: &str = "{prefix:10!} {wide_bar} {pos} of {len} {msg} {eta:>4} left";

impl TrainBar {
    /// The bar of a run of `max_steps` steps, `done` of which are done.
    fn drawn(max_steps: u64, done: u64) -> ProgressBar {
        let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(max_steps).with_style(style).with_prefix("training").with_position(done)
    }

    fn with(&self, change: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            change(bar);
        }
    }

    /// Removes the bar from the screen.
    pub(super) fn clear(&self) {
        self.with(ProgressBar::finish_and_clear);
    }

    /// A line above the bar, or a line.
    fn line(&self, line: &str) {
        match &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }
}

impl TrainProgress for TrainBar {
    fn start(&self, max_steps: u64, done: u64) {
        if !stderr().is_terminal() {
            return;
        }
        let bar = Self::drawn(max_steps, done);
        // Steps that were done before took none of this process's time.
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn step(&self, tick: &Tick) {
        self.with(|bar| {
            bar.set_position(tick.step);
            bar.set_message(figures(tick.loss, tick.learning_rate, tick.tokens_per_second));
        });
    }

    fn record(&self, record: &Record) {
        // The bar shows what a step says, and shows it longer than a line would.
        let shown = matches!(record.figures, Figures::Train(_));
        if !shown || self.bar.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.line(&sentence(record));
        }
    }

    fn phase(&self, name: &str) {
        self.with(|bar| bar.set_prefix(name.to_owned()));
    }

    fn note(&self, line: &str) {
        self.line(&warned(line));
    }
}

/// The figures of a step.
fn figures(loss: f64, rate: f64, tokens_per_second: f64) -> String {
    format!("loss {loss:.4}  lr {rate:.2e}  {tokens_per_second:.0} tokens/s")
}

/// A record as a line.
fn sentence(record: &Record) -> String {
    let at = &record.at;
    let step = format!("step {}/{}", at.step, at.max_steps);
    match &record.figures {
        Figures::Train(Train { loss, grad_norm, learning_rate, tokens_per_second, .. }) => {
            let mut line = format!("{step}  {}", figures(*loss, *learning_rate, *tokens_per_second));
            line.push_str(&format!("  grad norm {grad_norm:.4}  epoch {:.2}", at.epoch));
            if let Some(memory) = at.memory {
                line.push_str(&format!("  {:.1} GiB", memory as f64 / f64::from(1 << 30)));
            }
            if let Some(left) = at.remaining() {
                line.push_str(&format!("  {}, {} left", duration(at.seconds), duration(left)));
            }
            line
        }
        Figures::Eval(Eval { loss, seconds, .. }) => {
            format!("{step}  held-out loss {loss:.4}  in {}", duration(*seconds))
        }
        Figures::Last(Last { loss, seconds, tokens, skipped, .. }) => {
            let skipped = if *skipped > 0 { format!("  {skipped} steps skipped") } else { String::new() };
            format!("{step}  mean loss {loss:.4}  {tokens} tokens  in {}{skipped}", duration(*seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bars::screen::Screen;
    use super::*;
    use qft::train::log::Moment;

    #[test]
    fn lines_say_what_the_bar_would() {
        let at = Moment { epoch: 0.5, step: 20, max_steps: 100, first_step: 0, seconds: 40.0, memory: Some(3 << 29) };
        let train =
            Train { loss: 1.5, grad_norm: 0.25, learning_rate: 2e-4, tokens_per_second: 6140.4, ..Train::default() };
        assert_eq!(
            sentence(&Record { at, figures: Figures::Train(train) }),
            "step 20/100  loss 1.5000  lr 2.00e-4  6140 tokens/s  grad norm 0.2500  epoch 0.50  1.5 GiB  \
             40s, 2m 40s left"
        );
        let eval = Eval { loss: 1.25, seconds: 61.0, ..Eval::default() };
        assert_eq!(
            sentence(&Record { at, figures: Figures::Eval(eval) }),
            "step 20/100  held-out loss 1.2500  in 1m 1s"
        );
        let last = Last { loss: 1.0, seconds: 40.0, tokens: 5000, skipped: 2, ..Last::default() };
        assert_eq!(
            sentence(&Record { at, figures: Figures::Last(last) }),
            "step 20/100  mean loss 1.0000  5000 tokens  in 40s  2 steps skipped"
        );
    }

    #[test]
    fn the_bar_fits_a_terminal() {
        let screen = Screen::new(80);
        let bar = TrainBar::drawn(9999, 1234);
        bar.set_draw_target(screen.target());
        bar.set_message(figures(12.3456, 1.25e-4, 13_646.4));
        bar.tick();
        let lines = screen.lines();
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
        let shown = lines.iter().find(|line| line.contains("loss 12.3456")).unwrap();
        for mention in ["training", "1234 of 9999", "13646 tokens/s", " left"] {
            assert!(shown.contains(mention), "{mention}: {lines:?}");
        }
    }
}
