//! The kinds of errors, which a program can match, and the constructors that say them.

use std::io;

use super::Error;

/// What kind of thing went wrong. The exit code of the command follows from it.
///
/// | kind | when | exit code | may a retry help? |
/// | --- | --- | --- | --- |
/// | `InvalidInput` | a setting, a name or the choice of inputs can't be what was meant | 1 | no |
/// | `Malformed` | a file breaks the rules of its format, or contradicts itself or another one | 1 | no |
/// | `Unsupported` | all is well formed, but qft can't do this with it | 1 | no |
/// | `NotFound` | a file, a model, an adapter or rows of data are not there | 1 | no |
/// | `Exists` | something is in the place of the output | 1 | no |
/// | `Numeric` | a value is NaN, infinite or out of range, or a training diverged | 1 | no |
/// | `Io` | the operating system refused an operation, for none of the other reasons | 1 | no |
/// | `Device` | a GPU is missing or unfit | 1 | no |
/// | `Device`, `lost` | a GPU failed at work | 75 | yes |
/// | `Network` | a server refused, with the HTTP `status` | 1 | no |
/// | `Network` | a host can't be reached, is silent, or answered with 408, 429 or 5xx | 75 | yes |
/// | `Peer` | another process of the run failed, and has said why itself | 1 | its own error says |
/// | `Busy` | another process holds what is needed | 75 | yes |
/// | `OutOfMemory` | memory, of the host or of a GPU, was too small | 75 | yes |
/// | `StorageFull` | a disk has no free space | 75 | yes |
/// | `Interrupted` | the run was cancelled from outside | 130 | the one who cancelled knows |
/// | `Bug` | a promise between two parts of qft was broken | 1 | no |
///
/// [`ErrorKind::is_transient`] is the last column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, a name or the choice of inputs can't be what was meant.
    InvalidInput,
    /// A file breaks the rules of its format, or contradicts itself or another one.
    Malformed,
    /// All is well formed, but qft can't do this with it.
    Unsupported,
    /// A file, a model, an adapter or rows of data are not there.
    NotFound,
    /// Something is in the place of the output.
    Exists,
    /// A value is NaN, infinite or out of range, or a training diverged.
    Numeric,
    /// The operating system refused an operation for another reason than the others here.
    Io,
    /// A GPU can't be used.
    Device {
        /// Whether it failed at work, and may be back; else it is missing or unfit.
        lost: bool,
    },
    /// The network, a server or a process on another host failed.
    Network {
        /// The HTTP status, if a server answered with one.
        status: Option<u16>,
    },
    /// Another process of the same run failed, and has said why itself.
    Peer,
    /// Another process holds what is needed.
    Busy,
    /// Memory was too small.
    OutOfMemory {
        /// The bytes that were needed, if they are known.
        needed: Option<u64>,
        /// The bytes that were free, if they are known.
        free: Option<u64>,
    },
    /// A disk has no free space.
    StorageFull {
        /// The bytes that were needed, if they are known.
        needed: Option<u64>,
        /// The bytes that were free, if they are known.
        free: Option<u64>,
    },
    /// The run was cancelled from outside.
    Interrupted,
    /// A promise between two parts of qft was broken.
    Bug,
}

impl ErrorKind {
    /// Whether the same call may succeed later, with nothing changed but what is around it.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Busy | Self::OutOfMemory { .. } | Self::StorageFull { .. } => true,
            Self::Device { lost } => lost,
            Self::Network { status } => status.is_none_or(|status| matches!(status, 408 | 429 | 500..)),
            _ => false,
        }
    }

    /// The kind of an answer of a server that is no success, by its HTTP status.
    pub fn of_status(status: u16) -> Self {
        if status == 404 { Self::NotFound } else { Self::Network { status: Some(status) } }
    }

    /// The kind of an answer of the operating system.
    pub fn of_io(cause: &io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => Self::Exists,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::StorageFull { needed: None, free: None },
            io::ErrorKind::OutOfMemory => Self::OutOfMemory { needed: None, free: None },
            _ => Self::Io,
        }
    }
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Failed { kind, .. } => *kind,
            Self::Io { cause, .. } => ErrorKind::of_io(cause),
            Self::Malformed { .. } => ErrorKind::Malformed,
            Self::NoSpace { needed, free, .. } => ErrorKind::StorageFull { needed: *needed, free: *free },
            Self::NotFinite { .. } | Self::Overflow { .. } => ErrorKind::Numeric,
            // The state of the output is what matters of these: a retry would find another one.
            Self::InPlace { .. } | Self::Halfway { .. } => ErrorKind::Io,
            Self::Card { .. } => ErrorKind::Device { lost: true },
            Self::Stopped { cause, .. } => cause.kind(),
            Self::Interrupted { .. } | Self::Unjoined { .. } => ErrorKind::Interrupted,
        }
    }

    /// An [`Error::Failed`] of any kind.
    pub fn new(kind: ErrorKind, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Failed { kind, problem: problem.into(), remedy: remedy.into() }
    }

    /// An error of [`ErrorKind::InvalidInput`].
    pub fn invalid(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, problem, remedy)
    }

    /// An error of [`ErrorKind::Malformed`] that more than one file may be to blame for; else see [`Error::malformed`].
    pub fn inconsistent(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed, problem, remedy)
    }

    /// An error of [`ErrorKind::Unsupported`].
    pub fn unsupported(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, problem, remedy)
    }

    /// An error of [`ErrorKind::NotFound`].
    pub fn not_found(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, problem, remedy)
    }

    /// An error of [`ErrorKind::Exists`].
    pub fn exists(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Exists, problem, remedy)
    }

    /// An error of [`ErrorKind::Busy`].
    pub fn busy(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy, problem, remedy)
    }

    /// An error of [`ErrorKind::Network`] without an HTTP status.
    pub fn network(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Network { status: None }, problem, remedy)
    }

    /// An error of [`ErrorKind::Device`], of one that is missing or unfit.
    pub fn device(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Device { lost: false }, problem, remedy)
    }

    /// An error of [`ErrorKind::OutOfMemory`] whose sizes are not known.
    pub fn out_of_memory(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutOfMemory { needed: None, free: None }, problem, remedy)
    }

    /// An error of [`ErrorKind::Bug`].
    pub fn bug(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, problem, remedy)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_may_pass_is_transient() {
        let network = |status| ErrorKind::Network { status }.is_transient();
        assert!([None, Some(408), Some(429), Some(500), Some(503)].into_iter().all(network));
        assert!(![Some(401), Some(404), Some(416)].into_iter().any(network));
        assert!(!ErrorKind::Device { lost: false }.is_transient() && !ErrorKind::Bug.is_transient());
        let card = Error::Card { problem: "fell off the bus".to_owned() };
        assert_eq!(card.kind(), ErrorKind::Device { lost: true });
        let stopped = Error::Stopped { cause: Box::new(card), kept: "x".into(), finished: 1, shards: 2 };
        assert!(stopped.kind().is_transient(), "its cause is told");
    }

    #[test]
    fn an_answer_of_the_system_has_a_kind() {
        let kind = |code| Error::io("open", Path::new("x"))(io::Error::from_raw_os_error(code)).kind();
        assert_eq!(kind(libc::ENOENT), ErrorKind::NotFound);
        assert_eq!(kind(libc::EACCES), ErrorKind::Io);
        assert!(
            kind(libc::ENOSPC).is_transient() && kind(libc::EDQUOT).is_transient() && !kind(libc::EFBIG).is_transient()
        );
    }
}
