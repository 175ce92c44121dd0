//! Two things at once, for steps that need nothing of each other. Streaming has workers of its own.

/// Does `a` in a thread of its own while the caller does `b`. A panic of either is the caller's.
pub(crate) fn both<A: Send, B>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let a = scope.spawn(a);
        let b = b();
        (a.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), b)
    })
}

#[cfg(test)]
mod tests {
    use super::both;

    #[test]
    fn both_run_and_a_panic_comes_back() {
        assert_eq!(both(|| 1, || 2), (1, 2));
        let caught = std::panic::catch_unwind(|| both(|| panic!("of a"), || 2));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"of a"));
    }
}
