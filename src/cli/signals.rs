//! Ctrl-C, SIGTERM and SIGHUP: the first one asks the job to stop, the second ends the process at once. What is ignored
//! when the process begins stays ignored: `nohup qft train` goes on when its terminal closes.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{EXIT_INTERRUPTED, note};

/// Set by the first signal.
pub(super) static CANCEL: AtomicBool = AtomicBool::new(false);

/// Set with it, and by what else makes a preparation vain.
pub(super) static STOP: AtomicBool = AtomicBool::new(false);
/// Set while nobody looks at [`CANCEL`].
static UNASKED: AtomicBool = AtomicBool::new(false);

/// Does work that can't be asked to stop, such as a download: the first signal ends the process at once.
pub(super) fn unasked<T>(work: impl FnOnce() -> T) -> T {
    UNASKED.store(true, Ordering::SeqCst);
    let done = work();
    UNASKED.store(false, Ordering::SeqCst);
    done
}

/// From here on, signals ask the job to stop. Called after downloads, or these are [`unasked`].
pub(super) fn handle_signals() {
    let ignored = fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    match Signals::new(wanted) {
        Ok(signals) => {
            std::thread::spawn(|| wait_for(signals));
        }
        Err(error) => note(&format!("warning: Ctrl-C will not clean up: {error}")),
    }
}

fn wait_for(mut signals: Signals) {
    for _ in signals.forever() {
        STOP.store(true, Ordering::SeqCst);
        if CANCEL.swap(true, Ordering::SeqCst) || UNASKED.load(Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
        note("\nstopping; press Ctrl-C again to stop at once");
    }
}

/// The signals that a process ignores, of the text of its `/proc/PID/status`: bit `n - 1` is signal `n`.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_mask() {
        assert_eq!(ignored("Name:\tqft\nSigBlk:\t0000000000000004\nSigIgn:\t0000000000001003\n"), 0x1003);
        assert_eq!((ignored(""), ignored("SigIgn:\tx\n")), (0, 0));
    }
}
