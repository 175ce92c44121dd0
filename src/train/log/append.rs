//! Appending whole records to a file. What can't be written, since a disk is full, is kept and written before what
//! follows; and no part of it stays in the file, so that a reader rarely sees a partial record.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file that grows by whole records.
#[derive(Debug)]
pub(super) struct Appended<F = File> {
    file: F,
    path: PathBuf,
    /// Bytes of the file, all of whole records.
    len: u64,
    /// Records that are still to be written.
    owed: Vec<u8>,
}

/// A file, or what tests take for one.
pub(super) trait Grows: Write {
    fn len(&self) -> std::io::Result<u64>;
    fn cut(&mut self, len: u64) -> std::io::Result<()>;
    fn sync(&self) -> std::io::Result<()>;
}

impl Grows for File {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn cut(&mut self, len: u64) -> std::io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.sync_all()
    }
}

impl<F: Grows> Appended<F> {
    /// `file`, which is open for appending, and was at `path`.
    pub(super) fn new(file: F, path: &Path) -> Result<Self> {
        let len = file.len().map_err(Error::io("look at", path))?;
        Ok(Self { file, path: path.to_owned(), len, owed: Vec::new() })
    }

    /// Where it is.
    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record. It is with the system when this returns; in an error, it is owed.
    pub(super) fn add(&mut self, record: &[u8]) -> Result<()> {
        self.owed.extend_from_slice(record);
        // One write, so that a reader never meets half a record.
        if let Err(cause) = self.file.write_all(&self.owed) {
            // The same disk may refuse this too; the next record tries again.
            let _ = self.file.cut(self.len);
            return Err(Error::io("write", &self.path)(cause));
        }
        self.len += self.owed.len() as u64;
        self.owed.clear();
        Ok(())
    }

    /// Brings all of it to the disk.
    pub(super) fn finish(&mut self) -> Result<()> {
        if !self.owed.is_empty() {
            self.add(&[])?;
        }
        self.file.sync().map_err(Error::io("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A disk with space for some bytes.
    #[derive(Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(self.room - self.bytes.len());
            self.bytes.extend_from_slice(&bytes[..fits]);
            if fits == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(fits) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Grows for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }

        fn cut(&mut self, len: u64) -> io::Result<()> {
            self.bytes.truncate(usize::try_from(len).unwrap());
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_refuses_follows_when_there_is_room() {
        let mut file = Appended::new(Disk { bytes: b"0\n".to_vec(), room: 7 }, Path::new("log")).unwrap();
        file.add(b"one\n").unwrap();
        let error = file.add(b"two\n").unwrap_err().to_string();
        assert!(error.starts_with("cannot write log: "), "{error}");
        assert_eq!(file.file.bytes, b"0\none\n", "no half a record");
        file.add(b"three\n").unwrap_err();
        assert!(file.finish().is_err());
        file.file.room = 100;
        file.add(b"four\n").unwrap();
        assert_eq!(file.file.bytes, b"0\none\ntwo\nthree\nfour\n");
        file.file.room = file.file.bytes.len();
        file.add(b"five\n").unwrap_err();
        file.file.room = 100;
        file.finish().unwrap();
        assert_eq!(file.file.bytes, b"0\none\ntwo\nthree\nfour\nfive\n");
    }
}
