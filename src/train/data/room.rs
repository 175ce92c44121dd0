//! A thread with room: a template that a stranger wrote may nest as deep as its length, or its fuel, lets it, and a stack
//! that overflows ends the process.

use std::cell::Cell;
use std::io;
use std::panic::resume_unwind;
use std::thread;

/// Bytes of stack. Pages that are not touched cost nothing. By test, the deepest template that the bounds of `template`
/// let through takes a quarter of it.
const ROOM: usize = 1 << 30;

thread_local! {
    static HAS_ROOM: Cell<bool> = const { Cell::new(false) };
}

/// Does `work` on a thread with room: on this one, if it has that. An error is the system's, which has no such thread.
pub(super) fn with_room<R: Send>(work: impl FnOnce() -> R + Send) -> io::Result<R> {
    if HAS_ROOM.get() {
        return Ok(work());
    }
    let roomy = || {
        HAS_ROOM.set(true);
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(ROOM).spawn_scoped(scope, roomy)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
