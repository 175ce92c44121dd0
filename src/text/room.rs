//! A thread with a large stack, and with a limit of time: an untrusted template may nest as deep as its length, or its
//! fuel, lets it, and a stack that overflows ends the process; and some of what it can do takes no fuel. A thread can't be
//! stopped, so that one which takes too long goes on, until the process ends.

use std::cell::RefCell;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use crate::caught::caught;

/// Bytes of stack. Pages that are not touched cost nothing. By test, the deepest template that the bounds of `template`
/// let through takes a quarter of it.
const ROOM: usize = 1 << 30;

type Work = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The thread with a large stack that works for this one. It ends with it.
    static HELPER: RefCell<Option<Sender<Work>>> = const { RefCell::new(None) };
}

/// Why there is no result.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The system has no such thread.
    NoThread(io::Error),
    /// It takes longer than it may.
    TooLong,
    /// It panicked, with these words.
    Panicked(String),
}

/// Does `work` on a thread with a large stack, which may take as long as `limit`.
pub(crate) fn with_room<R: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Trouble> {
    let helper = HELPER.take().map_or_else(start, Ok).map_err(Trouble::NoThread)?;
    let (answer, answered) = channel();
    let work = move || {
        // Nobody hears the answer if it comes too late.
        let _ = answer.send(caught(work));
    };
    // The other end is gone only if the thread was ended from outside, and then no answer comes.
    let _ = helper.send(Box::new(work));
    let result = answered.recv_timeout(limit).map_err(|_| Trouble::TooLong)?;
    HELPER.set(Some(helper));
    result.map_err(Trouble::Panicked)
}

/// Starts a thread that does what it is sent.
fn start() -> io::Result<Sender<Work>> {
    let (send, receive) = channel::<Work>();
    thread::Builder::new().stack_size(ROOM).spawn(move || receive.into_iter().for_each(|work| work()))?;
    Ok(send)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn a_thread_is_used_again_and_left_behind_if_it_takes_too_long() {
        let id = || with_room(LONG, || thread::current().id()).unwrap();
        let first = id();
        assert!(first == id() && first != thread::current().id());
        let (_open, wait) = channel::<()>();
        let stuck = with_room(Duration::from_millis(20), move || wait.recv().is_ok());
        assert!(matches!(stuck, Err(Trouble::TooLong)));
        assert!(first != id(), "the stuck thread is not waited for");
    }

    #[test]
    fn a_panic_is_an_error() {
        let trouble = with_room(LONG, || -> u32 { panic!("of the work") }).unwrap_err();
        assert!(matches!(&trouble, Trouble::Panicked(words) if words == "of the work"), "{trouble:?}");
    }
}
