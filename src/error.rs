//! The library's one error type. Every variant names the file or tensor and a remedy; text that came out of a
//! file is escaped, so that a malicious name can't control the user's terminal.

mod kind;
mod settings;

use std::io;
use std::path::{Path, PathBuf};

pub use kind::ErrorKind;
pub use settings::name_settings;

/// What went wrong, where, and what to do about it; [`Error::kind`] says of which kind it is. Texts mark the settings that
/// they name: see [`name_settings`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {operation} {}: {cause}\n  remedy: {}", shown(path), io_remedy(cause))]
    Io {
        /// What was tried, as a verb: "open", "write".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer. Not called `source`: the message has it already.
        cause: io::Error,
    },
    /// A file breaks the rules of its format.
    #[error("{}: {problem}\n  remedy: {remedy}", shown(path))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which rule it breaks.
        problem: String,
        /// What the reader can do.
        remedy: String,
    },
    /// What was asked can't be done, for a reason of this kind.
    #[error("{problem}\n  remedy: {remedy}")]
    Failed {
        /// The kind.
        kind: ErrorKind,
        /// What can't be done, with the names.
        problem: String,
        /// What the reader can do.
        remedy: String,
    },
    /// A disk has no free space for what is to be written.
    #[error("{problem}\n  remedy: {remedy}")]
    NoSpace {
        /// What does not fit, and where.
        problem: String,
        /// What the reader can do.
        remedy: String,
        /// The bytes that were needed, if they are known.
        needed: Option<u64>,
        /// The bytes that were free, if they are known.
        free: Option<u64>,
    },
    /// A value is NaN or infinite where none may be.
    #[error(
        "tensor {}: the value at row {row}, column {column} is {value}\n  remedy: the model or the adapter holds \
         broken or overflowing values there (for DoRA, a row of zeros), which `qft inspect ⟦stats⟧ PATH` counts: \
         correct them, or train it again",
        escaped(tensor)
    )]
    NotFinite {
        /// The output tensor.
        tensor: String,
        /// Row of the value (the first axis).
        row: u64,
        /// Column of the value (the other axes, flattened).
        column: u64,
        /// The value.
        value: f32,
    },
    /// A finite value does not fit the output type.
    #[error(
        "tensor {}: the value {value} at row {row}, column {column} is outside the range of {dtype}\n  remedy: choose \
         {}{}",
        escaped(tensor),
        if dtype.eq_ignore_ascii_case("bf16") { "f32" } else { "bf16 or f32" },
        if *can_clamp { ", or clamp such values with ⟦allow_overflow⟧" } else { "" }
    )]
    Overflow {
        /// The output tensor.
        tensor: String,
        /// Row of the value (the first axis).
        row: u64,
        /// Column of the value (the other axes, flattened).
        column: u64,
        /// The value before rounding.
        value: f32,
        /// The output type, as the command line names it.
        dtype: &'static str,
        /// Whether such values are clamped where that is asked for.
        can_clamp: bool,
    },
    /// The output is complete and in place, but what came after that failed.
    #[error("{} is complete and in place, but {problem}\n  remedy: {remedy}", shown(out))]
    InPlace {
        /// The output.
        out: PathBuf,
        /// What failed.
        problem: String,
        /// What the reader can do.
        remedy: String,
    },
    /// An output could not be put in place, and what had been moved for it could not be moved back.
    #[error(
        "{} is neither the old one nor the new one: {problem}; and the moved files could not be moved back: {second}; \
         the files that are not in place are in {}\n  remedy: correct the cause that the system names, and run the \
         same command again, which first moves the files back",
        shown(out),
        shown(kept)
    )]
    Halfway {
        /// The output.
        out: PathBuf,
        /// What failed.
        problem: String,
        /// What failed then.
        second: String,
        /// Where what is missing lies.
        kept: PathBuf,
    },
    /// A GPU that was demanded failed.
    #[error("{problem}\n  remedy: run again with ⟦device auto⟧, which continues without the GPU, or with ⟦device cpu⟧")]
    Card {
        /// The GPU, and what its driver said.
        problem: String,
    },
    /// The disk or a GPU failed an export whose finished shards are worth keeping.
    #[error("{cause}\n  {}", interrupted(Some(kept.as_path()), *.finished, *.shards))]
    Stopped {
        /// What failed.
        cause: Box<Error>,
        /// The staging directory.
        kept: PathBuf,
        /// Shards that are complete in it.
        finished: usize,
        /// Shards of the whole export.
        shards: usize,
    },
    /// The run was cancelled from outside (Ctrl-C, SIGTERM).
    #[error("interrupted; {}", interrupted(.kept.as_deref(), *.finished, *.shards))]
    Interrupted {
        /// The staging directory, if it was kept for `--resume`.
        kept: Option<PathBuf>,
        /// Shards that are complete in it.
        finished: usize,
        /// Shards of the whole export.
        shards: usize,
    },
    /// The same, of a process of several that waited for the others.
    #[error("interrupted while {waits}; nothing was trained")]
    Unjoined {
        /// Who waits for what.
        waits: String,
    },
}

/// Shorthand for results of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`]; made for `map_err`.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { operation, path: path.to_owned(), cause }
    }

    /// An [`Error::Malformed`].
    pub fn malformed(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into(), remedy: remedy.into() }
    }

    /// Its text without the remedy, and the remedy, if it has one.
    pub fn split(&self) -> (String, Option<String>) {
        let text = self.to_string();
        match text.split_once("\n  remedy: ") {
            Some((problem, remedy)) => (problem.to_owned(), Some(remedy.to_owned())),
            None => (text, None),
        }
    }

    /// For a link in a model whose file was deleted, or was never downloaded.
    pub fn link_to_nothing(path: &Path) -> Self {
        Self::malformed(path, "is a link to nothing", "download the model again, or restore the file that it points to")
    }

    /// Whether it came after something was moved at the destination, and was not moved back.
    pub(crate) fn has_moved(&self) -> bool {
        matches!(self, Self::InPlace { .. } | Self::Halfway { .. })
    }
}

/// What to do about an answer of the operating system.
fn io_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => return "raise the limit on open files (ulimit -n)",
        Some(libc::ELOOP) => return "the link points to itself: remove it, or give another path",
        _ => {}
    }
    match error.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "get the permission, or use another path",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, or give a destination on another disk"
        }
        io::ErrorKind::FileTooLarge => {
            "raise the limit on file sizes (ulimit -f), or write smaller files: ⟦max_shard⟧ for safetensors, \
             ⟦split_max_size⟧ for GGUF"
        }
        io::ErrorKind::ReadOnlyFilesystem => "give a destination on another disk",
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => "check what lies at the path",
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
            "another file is there: remove it, or give another destination"
        }
        io::ErrorKind::ResourceBusy => "unmount what is mounted there, or give a destination that is not a mount point",
        io::ErrorKind::CrossesDevices => "give a destination that is not a mount point",
        io::ErrorKind::InvalidFilename => "give a shorter name",
        _ => "the system gives no other reason; see its log",
    }
}

/// Longest piece of text from a file that a message shows whole.
const SHOWN: usize = 300;

fn interrupted(kept: Option<&Path>, finished: usize, shards: usize) -> String {
    match kept {
        Some(staging) => format!(
            "the destination is unchanged, {finished} of {shards} shards are finished in {}; run the same command with \
             ⟦resume⟧ to continue, or delete that directory",
            shown(staging)
        ),
        None => "the destination is unchanged".to_owned(),
    }
}

/// `text` with control characters and bidirectional overrides escaped, and the middle left out if it is very long: for
/// messages.
pub fn escaped(text: &str) -> String {
    if text.len() > 2 * SHOWN {
        let (head, tail) = (text.floor_char_boundary(SHOWN), text.ceil_char_boundary(text.len() - SHOWN / 3));
        return format!("{}...[{} bytes]...{}", escaped(&text[..head]), tail - head, escaped(&text[tail..]));
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// A path for a command in a message: escaped, and quoted where a shell would take it apart.
pub fn quoted(path: &Path) -> String {
    let text = shown(path);
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+=@:,~".contains(&b)) && !text.is_empty() {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A path as text for messages, escaped.
pub fn shown(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_command_is_one_word() {
        for (path, word) in [("a/b-1", "a/b-1"), ("my base", "'my base'"), ("it's", r"'it'\''s'")] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }

    #[test]
    fn escapes_what_moves_the_cursor_and_keeps_letters() {
        assert_eq!(escaped("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(escaped("层.weight"), "层.weight");
        assert_eq!(escaped("x\u{202e}y"), "x\\u{202e}y");
        let long = escaped(&"层".repeat(1_000_000));
        assert!(long.len() < 600 && long.contains("bytes]"), "{long}");
    }
}
