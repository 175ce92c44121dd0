//! The old format of importance matrices: entries one after the other, then what they were computed from. Numbers are
//! little-endian, as `common_imatrix_load_legacy` in imatrix-loader.cpp reads them.

use std::path::Path;

use super::{BTreeMap, Error, Imatrix, REMEDY, Result, escaped};

/// What is left of a file.
struct Rest<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    fn problem(&self, problem: impl Into<String>) -> Error {
        Error::malformed(self.path, problem, REMEDY)
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(len)
            .ok_or_else(|| self.problem(format!("is not an importance matrix, or is cut off: {what} is missing")))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn int(&mut self, what: &str) -> Result<i32> {
        let bytes = self.take(4, what)?;
        Ok(bytes.first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk)))
    }

    /// A length: above zero, or at least not below it if `may_be_zero`.
    fn len(&mut self, what: &str, may_be_zero: bool) -> Result<usize> {
        let len = self.int(what)?;
        usize::try_from(len)
            .ok()
            .filter(|len| may_be_zero || *len > 0)
            .ok_or_else(|| self.problem(format!("is not an importance matrix, or is broken: {what} is {len}")))
    }

    /// Text of a given length, which ends before that at a zero.
    fn text(&mut self, len: usize, what: &str) -> Result<String> {
        let bytes = self.take(len, what)?;
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| self.problem(format!("{what} is not UTF-8 text")))
    }
}

/// Parses a file.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Imatrix> {
    let mut rest = Rest { path, bytes };
    let mut weights = BTreeMap::new();
    for _ in 0..rest.len("the number of entries", false)? {
        let len = rest.len("the length of a name", true)?;
        let name = rest.text(len, "a name")?;
        let calls = rest.int("the number of calls")?;
        let len = rest.len("the number of values", false)?;
        // An i32 times 4 fits a usize.
        let values = rest.take(len * 4, "a value")?;
        // The file has means times the number of calls.
        let calls = if calls > 0 { calls as f32 } else { 1.0 };
        let values = values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes) / calls).collect();
        if weights.contains_key(&name) {
            return Err(rest.problem(format!("has two entries for {}", escaped(&name))));
        }
        weights.insert(name, values);
    }
    let (mut chunks, mut datasets) = (0, Vec::new());
    if !rest.bytes.is_empty() {
        chunks = u32::try_from(rest.int("the number of chunks")?).unwrap_or(0);
    }
    if !rest.bytes.is_empty() {
        let len = rest.int("the length of the dataset's name")?;
        match usize::try_from(len) {
            Ok(len) if len > 0 => datasets.push(rest.text(len, "the dataset's name")?),
            _ => {}
        }
    }
    Ok(Imatrix { path: path.to_owned(), weights, datasets, chunks })
}
