//! How long the card takes for each kind of operation, by events around them: nothing is waited for until the times are
//! read, and nothing is done unless they were asked for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::card::failed;
use crate::error::Result;

/// See the module.
#[derive(Default)]
pub(super) struct Timer {
    on: Cell<bool>,
    /// Whether an operation is being enqueued, whose parts are not timed by themselves.
    busy: Cell<bool>,
    marks: RefCell<Vec<(&'static str, CudaEvent, CudaEvent)>>,
    seconds: RefCell<BTreeMap<&'static str, f64>>,
}

impl Timer {
    /// Times what follows, from zero.
    pub(super) fn start(&self) {
        self.marks.take();
        self.seconds.take();
        self.on.set(true);
    }

    /// Does `work`, which enqueues an operation of this kind on the stream.
    pub(super) fn time<T>(
        &self,
        stream: &Arc<CudaStream>,
        kind: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
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

    /// Seconds by kind since [`Self::start`]; waits for the card.
    pub(super) fn read(&self, stream: &CudaStream) -> Result<BTreeMap<&'static str, f64>, DriverError> {
        stream.synchronize()?;
        let mut seconds = self.seconds.borrow_mut();
        for (kind, begin, end) in self.marks.borrow_mut().drain(..) {
            *seconds.entry(kind).or_default() += f64::from(begin.elapsed_ms(&end)?) / 1e3;
        }
        Ok(seconds.clone())
    }
}

fn mark(stream: &Arc<CudaStream>) -> Result<CudaEvent, DriverError> {
    let event = stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
    event.record(stream)?;
    Ok(event)
}
