//! How long a GPU takes for each kind of operation, by events around them: nothing is waited for until the times are
//! read, and nothing is done unless they were asked for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::failure::Failure;
use super::stream::{Event, Stream};

/// See the module.
#[derive(Default)]
pub(crate) struct Timer {
    on: Cell<bool>,
    /// Whether an operation is being enqueued, whose parts are not timed by themselves.
    busy: Cell<bool>,
    marks: RefCell<Vec<(&'static str, Event, Event)>>,
    seconds: RefCell<BTreeMap<&'static str, f64>>,
}

impl Timer {
    /// Times what follows, from zero.
    pub(crate) fn start(&self) {
        self.marks.take();
        self.seconds.take();
        self.on.set(true);
    }

    /// Does `work`, which enqueues an operation of this kind on the stream.
    pub(super) fn time<T, E>(
        &self,
        stream: &Stream,
        kind: &'static str,
        failed: fn(Failure) -> E,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if !self.on.get() || self.busy.replace(true) {
            return work();
        }
        let timed = || {
            let begin = mark(stream).map_err(failed)?;
            let done = work()?;
            self.marks.borrow_mut().push((kind, begin, mark(stream).map_err(failed)?));
            Ok(done)
        };
        let done = timed();
        self.busy.set(false);
        done
    }

    /// Seconds by kind since [`Self::start`]; waits for the GPU.
    pub(super) fn read(&self, stream: &Stream) -> Result<BTreeMap<&'static str, f64>, Failure> {
        stream.wait()?;
        let mut seconds = self.seconds.borrow_mut();
        for (kind, begin, end) in self.marks.borrow_mut().drain(..) {
            *seconds.entry(kind).or_default() += begin.seconds_until(&end)?;
        }
        Ok(seconds.clone())
    }
}

fn mark(stream: &Stream) -> Result<Event, Failure> {
    let event = Event::timed(stream.context())?;
    event.record(stream)?;
    Ok(event)
}
