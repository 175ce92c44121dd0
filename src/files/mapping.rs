//! Read-only memory maps of input files: one of the rooms with `unsafe`. A mapped file that shrinks raises SIGBUS on
//! the next touch; [`report_lost_mappings`] turns that into a message and an exit code.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::open::open_regular;
use crate::error::{Error, Result};

/// Bytes that are unmapped at once.
const RELEASED: usize = 64 << 20;

/// A whole regular file, mapped.
#[derive(Debug)]
pub struct Mapping {
    map: Option<Mmap>,
    path: PathBuf,
    file: File,
    /// Length and time of the last change when it was mapped.
    stamp: (u64, Option<SystemTime>),
}

impl Mapping {
    /// Maps the regular file at `path`. An empty file is an empty slice.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        let stamp = stamp(&file).map_err(Error::io("look at", path))?;
        if len == 0 {
            return Ok(Self { map: None, path: path.to_owned(), file, stamp });
        }
        // SAFETY: the map is private and read-only. Another process can still change or cut the file: changed bytes
        // are plain `u8`s to us, and a cut file raises SIGBUS, which `report_lost_mappings` handles.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self { map: Some(map), path: path.to_owned(), file, stamp })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// The file's path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses if the file was written to since it was mapped: what was read may be neither the old nor the new. A cut
    /// within the last page raises no signal, so this is the only way to see it.
    pub fn check_unchanged(&self) -> Result<()> {
        if stamp(&self.file).map_err(Error::io("look at", &self.path))? == self.stamp {
            return Ok(());
        }
        Err(Error::malformed(
            &self.path,
            "became shorter, or was changed, while it was being read",
            "make sure that no program writes to it, then run again",
        ))
    }

    /// Asks the system to read `range` ahead and to map its pages at once. A hint: failing costs speed only.
    pub fn prefetch(&self, start: usize, len: usize) {
        if let Some(map) = &self.map {
            let advice = if cfg!(target_os = "linux") { Advice::PopulateRead } else { Advice::WillNeed };
            let _ = map.advise_range(advice, start, len);
        }
    }
}

/// Unmaps the pages of `mappings`, which a later touch would map again. Ending a process does the same with one thread,
/// which takes a tenth of a second for a few gigabytes.
pub(crate) fn release(mappings: &[&Mapping], jobs: usize) {
    let starts = |mapping: &Mapping| (0..mapping.bytes().len()).step_by(RELEASED);
    let parts: Vec<(&Mapping, usize)> = mappings.iter().flat_map(|m| starts(m).map(move |start| (*m, start))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((mapping, start)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(map) = &mapping.map else { continue };
            let len = RELEASED.min(map.len() - start);
            // SAFETY: the map is read-only and of a file, so whoever reads it next sees the same bytes of that file.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, *start, len) };
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.min(parts.len()) {
            scope.spawn(work);
        }
        work();
    });
}

fn stamp(file: &File) -> io::Result<(u64, Option<SystemTime>)> {
    let meta = file.metadata()?;
    Ok((meta.len(), meta.modified().ok()))
}

/// Exit code of a process that lost a mapped file under its hands.
pub const LOST_MAPPING_EXIT: i32 = 1;

/// Makes signals about files into errors: see [`report_lost_mappings`]; and a write beyond the limit on file sizes
/// fails instead of ending the process. For the binary: a library has no business with its host's signals.
pub fn prepare_signals() {
    report_lost_mappings();
    #[cfg(unix)]
    // SAFETY: ignoring a signal runs no code.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Installs a SIGBUS handler that says that an input file shrank while it was read, and ends the process with
/// [`LOST_MAPPING_EXIT`].
#[cfg(unix)]
pub fn report_lost_mappings() {
    extern "C" fn handler(_: libc::c_int) {
        const MESSAGE: &[u8] =
            b"\nerror: an input file became shorter while it was being read (or its disk failed)\n  remedy: make sure \
            that no program writes to the input files, then run again\n";
        // SAFETY: write(2) and _exit(2) are async-signal-safe, and MESSAGE is static.
        unsafe {
            libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(LOST_MAPPING_EXIT);
        }
    }
    // SAFETY: an all-zero sigaction is valid; the handler calls async-signal-safe functions only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Nothing to do: other systems report a shrunken file in their own way.
#[cfg(not(unix))]
pub fn report_lost_mappings() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, len: usize| {
            let path = dir.path().join(name);
            std::fs::write(&path, (0..len).map(|i| (i % 251) as u8).collect::<Vec<_>>()).unwrap();
            Mapping::open(&path).unwrap()
        };
        let mappings = [open("large", RELEASED + 5), open("small", 3), open("empty", 0)];
        for jobs in [0, 1, 4] {
            let before = mappings.each_ref().map(|m| m.bytes().to_vec());
            release(&mappings.each_ref(), jobs);
            assert!(mappings.each_ref().map(|m| m.bytes().to_vec()) == before, "{jobs} jobs");
        }
    }
}
