//! What can go wrong with another rank, or with this one: told to the rest, so that all name the same one, and to the
//! user.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::wire::{Frame, LastWords};
use crate::error::{self, Error, escaped};

/// How to go on from what the ranks have saved: another beginning must not be asked for as well.
pub(super) const AGAIN: &str = "start all ranks again (if a checkpoint was written: with \
                                ⟦resume_from_checkpoint true⟧, without ⟦adapters⟧ and ⟦resume_only_model⟧)";
/// Why a rank goes that was stopped from outside.
pub(super) const INTERRUPTED: &str = "it was interrupted";
/// Why a rank goes that ends in a panic.
pub(super) const PANICKED: &str = "it panicked, which is a bug in qft";

/// How far the ranks have come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing is trained yet.
    Meeting,
    Training,
}

/// What went wrong with which rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) rank: usize,
    cause: Cause,
    /// Which rank saw it, if not this one.
    seen_by: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    Closed,
    Silent,
    Lost(String),
    OutOfStep(String),
    /// It says so itself, and why.
    Failed(String),
}

impl Trouble {
    /// A connection with `rank` failed.
    pub(super) fn of(rank: usize, error: &io::Error) -> Self {
        use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        let cause = match error.kind() {
            UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected => Cause::Closed,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Cause::Silent,
            _ => Cause::Lost(error.to_string()),
        };
        Self { rank, cause, seen_by: None }
    }

    /// `rank`, which is this one, can't go on.
    pub(super) fn failed(rank: usize, why: &str) -> Self {
        Self { rank, cause: Cause::Failed(why.to_owned()), seen_by: None }
    }

    /// Whether the rank itself says so.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self.cause, Cause::Failed(_))
    }

    /// Whether all that is known is that it hung up.
    pub(super) fn is_closed(&self) -> bool {
        self.cause == Cause::Closed && self.seen_by.is_none()
    }

    /// `rank` sent something else than this rank expects.
    pub(super) fn unexpected(rank: usize, found: &Frame, expected: &Frame) -> Self {
        let what = format!("it is at {}, this rank at {}", found.shown(), expected.shown());
        Self { rank, cause: Cause::OutOfStep(what), seen_by: None }
    }

    /// Tells other ranks.
    pub(super) fn words(&self) -> LastWords {
        let (code, text) = match &self.cause {
            Cause::Closed => (0, ""),
            Cause::Silent => (1, ""),
            Cause::OutOfStep(_) => (2, ""),
            Cause::Lost(text) => (3, text.as_str()),
            Cause::Failed(text) => (4, text.as_str()),
        };
        LastWords { rank: self.rank as u32, code, text: text.to_owned() }
    }

    /// What rank `by` told.
    pub(super) fn told(words: &LastWords, by: usize) -> Self {
        let text = escaped(&words.text);
        let cause = match words.code {
            0 => Cause::Closed,
            1 => Cause::Silent,
            2 => Cause::OutOfStep("it does another operation than the others".to_owned()),
            4 => Cause::Failed(text),
            _ => Cause::Lost(if text.is_empty() { "its connection failed".to_owned() } else { text }),
        };
        let rank = words.rank as usize;
        Self { rank, cause, seen_by: Some(by).filter(|by| *by != rank) }
    }

    /// Tells the user; `patience` is how long answers were waited for.
    pub(super) fn error(&self, patience: Duration, stage: Stage) -> Error {
        let Self { rank, cause, seen_by } = self;
        let seen = seen_by.map(|by| format!(" (as rank {by} saw)")).unwrap_or_default();
        let (cannot, again) = match stage {
            Stage::Meeting => ("begin", "start all ranks again"),
            Stage::Training => ("go on", AGAIN),
        };
        let (problem, remedy) = match cause {
            Cause::Closed => ("has ended".to_owned(), format!("see why in its last message; then {again}")),
            Cause::Silent => (
                format!("has sent nothing for {} s", patience.as_secs_f32()),
                format!("check whether its process hangs or its host is unreachable; then {again}"),
            ),
            Cause::Lost(error) => (format!("was lost: {error}"), format!("check the network; then {again}")),
            Cause::OutOfStep(what) => (
                format!("is out of step: {what}"),
                "start all ranks with the same qft and the same command; if they were, please report this".to_owned(),
            ),
            Cause::Failed(why) => {
                (format!("has failed: {why}"), format!("follow the remedy of its own message; then {again}"))
            }
        };
        let kind = match cause {
            Cause::Closed | Cause::Silent | Cause::Lost(_) => error::ErrorKind::Network { status: None },
            Cause::OutOfStep(_) => error::ErrorKind::InvalidInput,
            Cause::Failed(_) => error::ErrorKind::Peer,
        };
        Error::new(kind, format!("the ranks can't {cannot}: rank {rank} {problem}{seen}"), remedy)
    }
}
