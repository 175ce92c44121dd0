//! Progress bars on standard error: one in total, one a shard that is being written. Silent where it is no terminal.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use qft::error::escaped;
use qft::progress::Progress;

/// Shows the progress of a job.
#[derive(Default)]
pub(super) struct Bars {
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

const TOTAL: &str = "{msg:34} {bar:30} {bytes:>10} of {total_bytes:10} {bytes_per_sec:>12} {eta:>4} left";
const PART: &str = "{msg:34} {bar:30} {bytes:>10} of {total_bytes:10}";

fn bar(length: u64, template: &str, message: String) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_message(message)
}

impl Bars {
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
            let total = self.multi.add(bar(parts.iter().map(|(_, bytes)| bytes).sum(), TOTAL, "total".to_owned()));
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
            if let Some(part) = state.parts.get_mut(part) {
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
                total.set_message(name.to_owned());
            }
        });
    }
}
