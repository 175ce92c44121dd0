//! Progress bars on standard error: one for the job, one for each file that is being written. Silent where it is no
//! terminal. They fit 80 columns, and count bytes as the results do.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use qft::error::escaped;
use qft::progress::Progress;
use qft::size::ByteSize;

/// Shows the progress of a job.
pub(super) struct Bars {
    /// What is done: "merge", "encode `Q4_K_M`".
    job: String,
    multi: MultiProgress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: Option<ProgressBar>,
    parts: Vec<Part>,
}

struct Part {
    name: String,
    bytes: u64,
    bar: Option<ProgressBar>,
}

/// All but the bar takes 70 columns at most.
const TOTAL: &str = "{msg:24!} {wide_bar} {done:>8} of {all:8} {rate:>11} {eta:>4} left";
/// Ends in blanks, so that all bars begin and end in the same columns.
const PART: &str = "{msg:24!} {wide_bar} {done:>8} of {all:8}                      ";

fn bar(length: u64, template: &str, message: String) -> ProgressBar {
    use std::fmt::Write;
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style
        .with_key("done", |state: &ProgressState, out: &mut dyn Write| {
            let _ = write!(out, "{:>8}", ByteSize(state.pos()).to_string());
        })
        .with_key("all", |state: &ProgressState, out: &mut dyn Write| {
            let _ = write!(out, "{:8}", ByteSize(state.len().unwrap_or(0)).to_string());
        })
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            let _ = write!(out, "{:>11}", format!("{}/s", ByteSize(rate(state.per_sec()))));
        });
    ProgressBar::new(length).with_style(style).with_message(message)
}

#[expect(clippy::cast_sign_loss, reason = "a rate is not negative")]
fn rate(per_second: f64) -> u64 {
    per_second as u64
}

impl Bars {
    /// Of `job`, in a word or two.
    pub(super) fn of(job: impl Into<String>) -> Self {
        Self { job: job.into(), multi: MultiProgress::default(), state: Mutex::default() }
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Removes the bars from the screen.
    pub(super) fn clear(&self) {
        let _ = self.multi.clear();
    }
}

impl Progress for Bars {
    fn start(&self, parts: &[(String, u64)]) {
        self.with(|state| {
            if let Some(before) = state.total.take() {
                before.finish_and_clear();
            }
            let total = self.multi.add(bar(parts.iter().map(|(_, bytes)| bytes).sum(), TOTAL, self.job.clone()));
            total.enable_steady_tick(Duration::from_millis(200));
            state.total = Some(total);
            let part = |(name, bytes): &(String, u64)| Part { name: escaped(name), bytes: *bytes, bar: None };
            state.parts = parts.iter().map(part).collect();
        });
    }

    fn advance(&self, part: usize, bytes: u64) {
        self.with(|state| {
            if let Some(total) = &state.total {
                total.inc(bytes);
            }
            // The only part of a job is the job.
            if state.parts.len() > 1
                && let Some(part) = state.parts.get_mut(part)
            {
                let new = || self.multi.add(bar(part.bytes, PART, part.name.clone()));
                part.bar.get_or_insert_with(new).inc(bytes);
            }
        });
    }

    fn finish(&self, part: usize) {
        self.with(|state| {
            if let Some(bar) = state.parts.get_mut(part).and_then(|part| part.bar.take()) {
                bar.finish_and_clear();
            }
        });
    }

    fn phase(&self, name: &str) {
        self.with(|state| {
            if let Some(total) = &state.total {
                total.set_message(format!("{}: {name}", self.job));
            }
        });
    }
}

#[cfg(test)]
pub(super) mod screen {
    //! A terminal that keeps what is written to it.

    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, TermLike};

    /// Of some width.
    #[derive(Debug, Clone)]
    pub(in crate::cli) struct Screen {
        width: u16,
        written: Arc<Mutex<String>>,
    }

    impl Screen {
        pub(in crate::cli) fn new(width: u16) -> Self {
            Self { width, written: Arc::default() }
        }

        pub(in crate::cli) fn target(&self) -> ProgressDrawTarget {
            ProgressDrawTarget::term_like(Box::new(self.clone()))
        }

        /// Every line that was ever drawn, without colours.
        pub(in crate::cli) fn lines(&self) -> Vec<String> {
            let text = self.written.lock().unwrap().clone();
            text.split('\n').filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            self.width
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        // A call is a line: one that is full needs no character to end it.
        fn write_str(&self, text: &str) -> io::Result<()> {
            *self.written.lock().unwrap() += &format!("{text}\n");
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::screen::Screen;
    use super::*;

    #[test]
    fn bars_fit_a_terminal_and_count_as_results_do() {
        for width in [80, 120] {
            let (screen, bars) = (Screen::new(width), Bars::of("encode Q4_K_M"));
            bars.multi.set_draw_target(screen.target());
            let names = ["model-00001-of-00004.safetensors", "model-Q4_K_M.gguf"];
            bars.start(&names.map(|name| (name.to_owned(), 999_949_999)));
            bars.phase("checking finished files");
            bars.advance(0, 269_060_552);
            bars.advance(1, 999_949_999);
            bars.with(|state| {
                state.total.iter().chain(state.parts.iter().filter_map(|p| p.bar.as_ref())).for_each(ProgressBar::tick);
            });
            bars.clear();
            let lines = screen.lines();
            let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
            assert_eq!(widest, usize::from(width), "{lines:#?}");
            for mention in ["encode Q4_K_M: checking ", "269.1 MB of 999.9 MB", "of 2.00 GB ", "/s", " left"] {
                assert!(lines.iter().any(|line| line.contains(mention)), "{mention}: {lines:#?}");
            }
        }
    }
}
