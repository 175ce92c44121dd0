//! Taking numbers and text off the front of a header, never more than the file has and never more memory than qft allows.

use super::bad::{BadGguf, Result};

/// Most memory, in bytes, that the values of all keys may take. A vocabulary of 256,000 tokens takes some 30 MB.
const MAX_VALUES: usize = 512 << 20;

/// The bytes that are yet to be read, and the memory that may yet be claimed.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    budget: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn of(file: &'a [u8]) -> Self {
        Self { rest: file, budget: MAX_VALUES }
    }

    /// Bytes that are yet to be read.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| BadGguf::CutOff(what.to_owned()))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| BadGguf::CutOff(what.to_owned()))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<usize> {
        self.array(what).map(|bytes| u64::from_le_bytes(bytes) as usize)
    }

    pub(super) fn count(&mut self, what: &str) -> Result<usize> {
        self.u64(&format!("the number of its {what}"))
    }

    /// Refuses more things than `most`, or than the file can hold if each takes `least` bytes.
    pub(super) fn check_count(&self, what: &str, count: usize, most: usize, least: usize) -> Result<()> {
        if count > most {
            return Err(BadGguf::Broken(format!("declares {count} {what}; at most {most} are read")));
        }
        if count * least > self.rest.len() {
            return Err(BadGguf::Broken(format!("declares {count} {what}, but is too short for them: it is cut off")));
        }
        Ok(())
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| BadGguf::Broken(format!("{what} is not UTF-8 text")))
    }

    /// Claims memory for values.
    pub(super) fn claim(&mut self, bytes: usize) -> Result<()> {
        let left = self.budget.checked_sub(bytes);
        self.budget =
            left.ok_or_else(|| BadGguf::Broken(format!("its keys hold more than {MAX_VALUES} bytes of values")))?;
        Ok(())
    }
}
