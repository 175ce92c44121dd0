//! What can go wrong with another rank: told to the rest, so that all name the same one, and to the user.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::wire::{Frame, Kind};
use crate::error::Error;

/// How to go on from what the ranks have saved: another beginning must not be asked for as well.
pub(super) const AGAIN: &str =
    "start all ranks again with --resume_from_checkpoint true, without --adapters and --resume_only_model";

/// What went wrong with which rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    rank: usize,
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

    /// `rank` sent something else than this rank expects; or it tells of another's trouble.
    pub(super) fn unexpected(rank: usize, found: &Frame, expected: &Frame) -> Self {
        if found.kind == Some(Kind::GivenUp) {
            return Self::told(found, rank);
        }
        let what = format!("it is at {}, this rank at {}", found.shown(), expected.shown());
        Self { rank, cause: Cause::OutOfStep(what), seen_by: None }
    }

    /// Tells other ranks.
    pub(super) fn frame(&self) -> Frame {
        let cause = match self.cause {
            Cause::Closed => 0,
            Cause::Silent => 1,
            Cause::OutOfStep(_) => 2,
            Cause::Lost(_) => 3,
        };
        Frame { kind: Some(Kind::GivenUp), number: self.rank as u32, len: cause }
    }

    fn told(frame: &Frame, by: usize) -> Self {
        let cause = match frame.len {
            0 => Cause::Closed,
            1 => Cause::Silent,
            2 => Cause::OutOfStep("it does something else than the others".to_owned()),
            _ => Cause::Lost("its connection failed".to_owned()),
        };
        Self { rank: frame.number as usize, cause, seen_by: Some(by) }
    }

    /// Tells the user; `patience` is how long answers were waited for.
    pub(super) fn error(&self, patience: Duration) -> Error {
        let Self { rank, cause, seen_by } = self;
        let seen = seen_by.map(|by| format!(" (as rank {by} saw)")).unwrap_or_default();
        let again = format!("then {AGAIN}");
        let (problem, remedy) = match cause {
            Cause::Closed => ("has ended".to_owned(), format!("see why in its last message; {again}")),
            Cause::Silent => (
                format!("has said nothing for {} s", patience.as_secs_f32()),
                format!("see whether its process hangs or its host is out of reach; {again}"),
            ),
            Cause::Lost(error) => (format!("was lost: {error}"), format!("see to the network; {again}")),
            Cause::OutOfStep(what) => (
                format!("is out of step: {what}"),
                "start all ranks with the same qft and the same command; if they were, please report this".to_owned(),
            ),
        };
        Error::refused(format!("the ranks can't go on: rank {rank} {problem}{seen}"), remedy)
    }
}
