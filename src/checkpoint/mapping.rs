//! Read-only memory maps of input files: one of the rooms with `unsafe`. A mapped file that shrinks raises SIGBUS on
//! the next touch; [`report_lost_mappings`] turns that into a message and an exit code.

use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};

use super::open::open_regular;
use crate::error::{Error, Result};

/// A whole regular file, mapped.
#[derive(Debug)]
pub struct Mapping {
    map: Option<Mmap>,
    path: PathBuf,
}

impl Mapping {
    /// Maps the regular file at `path`. An empty file is an empty slice.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        if len == 0 {
            return Ok(Self { map: None, path: path.to_owned() });
        }
        // SAFETY: the map is private and read-only. Another process can still change or cut the file: changed bytes
        // are plain `u8`s to us, and a cut file raises SIGBUS, which `report_lost_mappings` handles.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self { map: Some(map), path: path.to_owned() })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// The file's path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the system to read `range` ahead and to map its pages at once. A hint: failing costs speed only.
    pub fn prefetch(&self, start: usize, len: usize) {
        if let Some(map) = &self.map {
            let advice = if cfg!(target_os = "linux") { Advice::PopulateRead } else { Advice::WillNeed };
            let _ = map.advise_range(advice, start, len);
        }
    }
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
            b"\nerror: an input file became shorter while it was being read (or its disk failed); the \
            destination is untouched\n  remedy: make sure that nothing writes to the base or the adapter, then run \
            again\n";
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
