//! Writing a shard's segments to disk: past the page cache where the filesystem allows it, which costs a tenth of the
//! processor time and leaves nothing to sync; through it elsewhere.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::gpu::{ALIGN, HostMemory};

/// What is written at once: a segment of a file, in memory that direct I/O and GPUs take.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) memory: HostMemory,
    len: usize,
}

impl Buffer {
    /// Memory for `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { memory: HostMemory::new(capacity), len: 0 }
    }

    /// The first `len` bytes, to be filled.
    pub(super) fn resize(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        &mut self.memory.bytes_mut()[..len]
    }

    /// The content.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[..self.len]
    }

    /// The content, with what follows it in memory up to an aligned length.
    fn padded(&self) -> &[u8] {
        &self.memory.bytes()[..self.len.next_multiple_of(ALIGN)]
    }
}

/// A file being written.
#[derive(Debug)]
pub(super) struct Sink {
    path: PathBuf,
    file: File,
    len: u64,
    direct: bool,
}

impl Sink {
    /// Creates the file at `path`, which will have `len` bytes, and reserves its space.
    pub(super) fn create(path: PathBuf, len: u64) -> Result<Self> {
        if let Some(file) = open_direct(&path, len) {
            return match reserve(&file, len) {
                Ok(()) => Ok(Self { path, file, len, direct: true }),
                Err(error) => Err(Error::io("reserve the space of", &path)(error)),
            };
        }
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        file.set_len(len).map_err(Error::io("set the length of", &path))?;
        Ok(Self { path, file, len, direct: false })
    }

    /// Writes a segment at `at`, which is a multiple of [`ALIGN`].
    pub(super) fn write(&self, buffer: &Buffer, at: u64) -> Result<()> {
        let bytes = if self.direct { buffer.padded() } else { buffer.bytes() };
        self.file.write_all_at(bytes, at).map_err(Error::io("write", &self.path))
    }

    /// Cuts the padding of the last segment and waits until the disk has everything.
    pub(super) fn finish(&self) -> Result<()> {
        if self.direct {
            self.file.set_len(self.len).map_err(Error::io("write", &self.path))?;
        }
        self.file.sync_all().map_err(Error::io("sync", &self.path))
    }
}

/// Opens a new file for direct writes, if the filesystem takes them: some accept the flag and then refuse the write.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path, len: u64) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(path);
    let file = open.ok().filter(|_| len > 0)?;
    let mut probe = Buffer::new(ALIGN);
    probe.resize(ALIGN).fill(0);
    match file.write_all_at(probe.bytes(), 0) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => None,
        // Another failure, such as a full disk, will come back where it can be reported.
        _ => Some(file),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path, _: u64) -> Option<File> {
    None
}

/// Reserves the file's space, so that a full disk is noticed before the work and direct writes may run side by side.
#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    if in_memory(file) {
        return file.set_len(len);
    }
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, len.next_multiple_of(ALIGN as u64)) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the file lies in memory: reserving its space would allocate every page of it, one after the other, while all
/// else waits.
#[cfg(target_os = "linux")]
fn in_memory(file: &File) -> bool {
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == TMPFS_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways of writing give the file that was asked for, whatever its length.
    #[test]
    fn any_length_in_segments() {
        let dir = tempfile::tempdir().unwrap();
        for len in [8, ALIGN - 1, ALIGN, ALIGN + 1, 3 * ALIGN + 17] {
            let content: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            let path = dir.path().join("x");
            let mut sink = Sink::create(path.clone(), len as u64).unwrap();
            for direct in [sink.direct, false] {
                if sink.direct && !direct {
                    sink = Sink { file: File::create(&path).unwrap(), direct, ..sink };
                }
                for (i, part) in content.chunks(2 * ALIGN).enumerate() {
                    let mut buffer = Buffer::new(2 * ALIGN);
                    buffer.resize(part.len()).copy_from_slice(part);
                    sink.write(&buffer, (i * 2 * ALIGN) as u64).unwrap();
                }
                sink.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == content, "{len} bytes, direct: {direct}");
            }
        }
    }
}
