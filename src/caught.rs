//! Panics of libraries on untrusted input: caught, and returned as errors. qft's own code must not panic.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use crate::error::escaped;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives, or with what words it panicked.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    result.map_err(|panic| escaped(&words(&*panic)))
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason".to_owned())
}

/// From here on, nothing is printed of a panic that becomes an error. For the start of a program: it sets the panic hook.
pub fn keep_quiet() {
    let hook = take_hook();
    set_hook(Box::new(move |panic| {
        if !CATCHING.get() {
            hook(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_panic_are_the_error() {
        let text = || -> u32 { panic!("at \x1b {}", 1) };
        assert_eq!(caught(text), Err("at \\u{1b} 1".to_owned()));
        assert_eq!(caught(|| -> u32 { panic!("plain") }), Err("plain".to_owned()));
        assert_eq!(caught(|| caught(|| -> u32 { panic!("inner") }).is_err()), Ok(true));
        assert!(!CATCHING.get());
    }
}
