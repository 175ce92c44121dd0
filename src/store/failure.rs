//! Why a file could not be fetched, by cause, and what a reader can do about each.

use std::io;
use std::path::{Path, PathBuf};

use super::nearly;
use crate::error::{Error, ErrorKind, escaped, shown};

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// 401 or 403: a token is missing or has no access.
    #[error("HTTP {0}: the model is gated or private, or there is none of that name, nor a directory")]
    Denied(u16),
    /// 404.
    #[error("HTTP 404: there is no such model, revision or file, nor a directory of that name")]
    NotFound,
    /// 429.
    #[error("HTTP 429: the Hub wants a pause")]
    Throttled,
    /// 5xx, and 408.
    #[error("HTTP {0}: the Hub has a problem of its own")]
    Server(u16),
    /// Any other answer than the file.
    #[error("request error: http status: {0}")]
    Status(u16),
    /// No connection, or one that failed before an answer came.
    #[error("request error: {0}")]
    Request(#[from] Box<ureq::Error>),
    /// The connection broke off or stalled amid the file.
    #[error("the connection broke off: {0}")]
    Cut(io::Error),
    /// An answer that no Hub gives.
    #[error("{0}")]
    Answer(String),
    /// The file is longer or shorter than listed.
    #[error("it came with {got} bytes, not the {listed} listed")]
    Size {
        /// How many came, at least.
        got: u64,
        /// How many there should be.
        listed: u64,
        /// Whether some of them were there before.
        continued: bool,
    },
    /// The file's SHA-256 is not the one that the Hub names it by.
    #[error("its SHA-256 is {got}, not {listed}")]
    Digest {
        /// That of what came.
        got: String,
        /// That which the Hub says.
        listed: String,
        /// Whether a part of the file was there before.
        continued: bool,
    },
    /// The cache can't be written.
    #[error("cannot write {}: {cause}", shown(path))]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Another process has the lock.
    #[error("another process is downloading it")]
    Locked,
}

impl Failure {
    /// The cause that stands behind an HTTP status that is no success.
    pub(super) fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Denied(status),
            404 => Self::NotFound,
            429 => Self::Throttled,
            408 | 500..=599 => Self::Server(status),
            _ => Self::Status(status),
        }
    }

    /// A [`Self::Disk`]; made for `map_err`.
    pub(super) fn disk(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Disk { path: path.to_owned(), cause }
    }

    /// Its kind, from which programs tell whether a later run may succeed.
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied(status) | Self::Server(status) | Self::Status(status) => ErrorKind::of_status(*status),
            Self::NotFound => ErrorKind::of_status(404),
            Self::Throttled => ErrorKind::of_status(429),
            Self::Request(_) | Self::Cut(_) | Self::Size { .. } | Self::Digest { .. } => {
                ErrorKind::Network { status: None }
            }
            Self::Answer(_) => ErrorKind::InvalidInput,
            Self::Disk { cause, .. } => ErrorKind::of_io(cause),
            Self::Locked => ErrorKind::Busy,
        }
    }

    /// Whether the same request may succeed soon.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Server(_) | Self::Cut(_) => true,
            Self::Request(error) => match error.as_ref() {
                ureq::Error::Timeout(_) => true,
                ureq::Error::Io(e) => matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::BrokenPipe
                        | io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::TimedOut
                ),
                _ => false,
            },
            // What was there before may be to blame. It was removed.
            Self::Size { continued, .. } | Self::Digest { continued, .. } => *continued,
            _ => false,
        }
    }
}

/// What was asked of whom, for the text of an error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// A file, or something else.
    pub(super) what: &'a str,
    /// The id without its revision.
    pub(super) name: &'a str,
    /// The Hub's address.
    pub(super) endpoint: &'a str,
    /// The cache.
    pub(super) cache: &'a Path,
}

impl Asked<'_> {
    /// The error that tells `failure` and the way out.
    pub(super) fn failed(self, failure: &Failure) -> Error {
        const AGAIN: &str = "run the command again: finished files are kept, and a partial one is continued";
        let Asked { what, name, endpoint, cache } = self;
        let remedy = match failure {
            Failure::Denied(_) => format!(
                "check the id, accept the licence at {endpoint}/{name}, and set HF_TOKEN to a token that may read it"
            ),
            Failure::NotFound => {
                format!("check the id and the revision at {endpoint}/{name}, or give a directory")
            }
            Failure::Throttled => format!("wait some minutes, or set HF_TOKEN to be allowed more, then {AGAIN}"),
            Failure::Server(_) => format!("wait some minutes, then {AGAIN}"),
            Failure::Cut(_) => format!("check the network (HTTPS_PROXY), then {AGAIN}"),
            Failure::Size { .. } | Failure::Digest { .. } => {
                "run the command again; the damaged file was removed from the cache".to_owned()
            }
            Failure::Answer(_) => "check HF_ENDPOINT: it must be a Hugging Face Hub or a mirror of it".to_owned(),
            Failure::Disk { path, cause } => return unwritable(cache, path, cause),
            Failure::Locked => format!("wait until that is done, then {AGAIN}"),
            Failure::Request(_) | Failure::Status(_) => format!(
                "there is no directory {name} here{}: check the path, if one was meant; else check the network (HF_ENDPOINT, \
                 HTTPS_PROXY) and the space in {}, then {AGAIN}",
                nearly(Path::new(name)),
                shown(cache)
            ),
        };
        let reason = escaped(&failure.to_string());
        Error::new(failure.kind(), format!("cannot download {what} of {name} from {endpoint}: {reason}"), remedy)
    }
}

/// Explains why `path` in the cache can't be written.
pub(super) fn unwritable(cache: &Path, path: &Path, error: &io::Error) -> Error {
    Error::new(
        ErrorKind::of_io(error),
        format!("cannot write {}: {error}", shown(path)),
        format!("make {} writable and free some space there, or set HF_HOME to another directory", shown(cache)),
    )
}
