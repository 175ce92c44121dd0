//! Opening untrusted input files: regular files only, never waiting on a pipe, small files bounded.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Most bytes of a configuration, an index or a checksum list. The largest index known has under 10 MB.
const MAX_TEXT: u64 = 256 << 20;

/// Opens a regular file for reading, and says how long it is.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe without a writer would block for ever.
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path).map_err(cannot_open(path))?;
    let meta = file.metadata().map_err(Error::io("look at", path))?;
    if meta.is_file() {
        return Ok((file, meta.len()));
    }
    if meta.is_dir() {
        return Err(Error::malformed(path, "not a regular file, but a directory", "name the file"));
    }
    Err(Error::malformed(path, "not a regular file", "give a regular file"))
}

/// Says why `path` can't be opened; made for `map_err`.
pub(crate) fn cannot_open(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |cause| match cause.kind() {
        std::io::ErrorKind::NotFound if path.is_symlink() => Error::link_to_nothing(path),
        _ => Error::io("open", path)(cause),
    }
}

/// Reads a small file.
pub fn read_small(path: &Path) -> Result<Vec<u8>> {
    let (file, len) = open_regular(path)?;
    if len > MAX_TEXT {
        let problem = format!("has {len} bytes; a file of its kind has at most {MAX_TEXT}");
        return Err(Error::malformed(path, problem, "restore the file from its source"));
    }
    let mut bytes = Vec::with_capacity(len as usize + 1);
    file.take(MAX_TEXT).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// Reads a small file of text.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_small(path)?)
        .map_err(|_| Error::malformed(path, "is not UTF-8 text", "restore the file from its source"))
}

/// As [`read_text`]; `None` if there is no such file. A link to nothing is no such absence.
pub fn read_text_if_there(path: &Path) -> Result<Option<String>> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => read_text(path).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert_eq!(read_text_if_there(&path).unwrap(), None);
        std::fs::write(&path, "层").unwrap();
        assert_eq!(read_text(&path).unwrap(), "层");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path).is_err());
        assert!(open_regular(dir.path()).is_err());
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("not a regular file"));
        std::fs::File::create(dir.path().join("big")).unwrap().set_len(MAX_TEXT + 1).unwrap();
        assert!(read_small(&dir.path().join("big")).unwrap_err().to_string().contains("at most"));
    }
}
