//! Two things at once, for steps that need nothing of each other. Streaming has workers of its own.

/// Does `a` in a thread of its own while the caller does `b`. A panic of either is the caller's.
pub(crate) fn both<A: Send, B>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let a = scope.spawn(a);
        let b = b();
        (a.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), b)
    })
}
