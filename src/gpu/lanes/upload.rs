//! What stays on a GPU while a tensor is being made: the factors of its merge, or the importance of its columns. One
//! of the rooms with `unsafe`.

use std::mem::size_of_val;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::block::{Importance, Trouble};
use super::budget::ALIGN;
use super::card::CudaCard;
use super::resident::{Kept, Resident};
use crate::gpu::runtime::{DeviceMemory, Failure};
use crate::merge::Merge;

/// Numbers of a term in the table of terms: its first row and the one past its last, its rank, the bits of its scale,
/// and where its left and right factors are.
const TERM: usize = 6;

/// Part of the memory that a GPU has for what stays on it, until it is dropped.
pub(super) struct Claim {
    used: Arc<AtomicUsize>,
    len: usize,
}

impl Claim {
    /// Claims `len` of `limit` bytes, of which `used` are taken; `None` if too few are left.
    pub(super) fn new(used: &Arc<AtomicUsize>, len: usize, limit: usize) -> Option<Self> {
        let add = |taken: usize| taken.checked_add(len).filter(|sum| *sum <= limit);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Self { used: Arc::clone(used), len })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// Bytes that stay on a GPU.
struct Held {
    memory: DeviceMemory,
    _claim: Claim,
}

impl Held {
    fn new(card: &CudaCard, len: usize) -> Result<Self, Trouble> {
        let claim = card.claim(len)?;
        let memory = DeviceMemory::pooled(&card.uploads, len)
            .map_err(|failure| if failure.is_out_of_memory() { Trouble::Unsupported } else { failure.into() })?;
        Ok(Self { memory, _claim: claim })
    }

    /// Copies `values`, which must stay where they are until the stream of uploads is waited for, to byte `at`.
    fn write<T: Copy>(&self, card: &CudaCard, at: usize, values: &[T]) -> Result<(), Failure> {
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the places were laid out for these lengths, and callers keep the values until they have waited.
        unsafe { card.uploads.upload(self.memory.address() + at as u64, values) }
    }
}

/// Where what a merge needs lies on a GPU. Addresses are 0 where there is nothing.
pub(super) struct Factors {
    /// Six numbers a term.
    pub(super) terms: u64,
    pub(super) term_count: usize,
    /// DoRA's magnitudes of rows.
    pub(super) magnitude: u64,
    /// DoRA's factors on columns.
    pub(super) column_gains: u64,
    _held: Option<Held>,
}

/// The places of a merge's factors in one allocation, in bytes.
struct Places {
    /// Of each term's left and right factor.
    terms: Vec<(usize, usize)>,
    table: usize,
    magnitude: usize,
    column_gains: usize,
    len: usize,
}

impl Places {
    fn of(merge: &Merge<'_>) -> Option<Self> {
        let parts = merge.parts();
        let mut len = 0usize;
        let mut next = |count: Option<usize>, size: usize| {
            let start = len;
            len = len.checked_add(count?.checked_mul(size)?)?.checked_next_multiple_of(ALIGN)?;
            Some(start)
        };
        let table = next(parts.terms.len().checked_mul(TERM), 8)?;
        let magnitude = next(parts.row_magnitude.map_or(Some(0), |m| Some(m.len())), 4)?;
        let column_gains = next(parts.column_gains.map_or(Some(0), |g| Some(g.len())), 4)?;
        let mut terms = Vec::with_capacity(parts.terms.len());
        for term in parts.terms {
            let left = next(term.rows.len().checked_mul(term.rank), 4)?;
            terms.push((left, next(term.rank.checked_mul(parts.columns), 4)?));
        }
        Some(Self { terms, table, magnitude, column_gains, len })
    }
}

impl Factors {
    /// The factors of `merge` on `card`, which the first lane uploads.
    pub(super) fn of(merge: &Merge<'_>, kept: &Resident, card: &CudaCard) -> Result<Arc<Self>, Trouble> {
        let upload = || Ok(Arc::new(Self::upload(merge, card)?) as Kept);
        kept.get(card.gpu.number(), upload)?.downcast().map_err(|_| Trouble::Unsupported)
    }

    fn upload(merge: &Merge<'_>, card: &CudaCard) -> Result<Self, Trouble> {
        let parts = merge.parts();
        let places = Places::of(merge).ok_or(Trouble::Unsupported)?;
        if places.len == 0 {
            return Ok(Self { terms: 0, term_count: 0, magnitude: 0, column_gains: 0, _held: None });
        }
        let held = Held::new(card, places.len)?;
        let at = |place: usize| held.memory.address() + place as u64;
        let mut table: Vec<[u64; TERM]> = Vec::with_capacity(parts.terms.len());
        let mut write = || -> Result<(), Failure> {
            for (i, (term, (left_at, right_at))) in parts.terms.iter().zip(&places.terms).enumerate() {
                let (left, right) = merge.factors(i);
                let written = held.write(card, *left_at, &left).and_then(|()| held.write(card, *right_at, &right));
                // Waited for whatever came of it, before the factors go.
                card.uploads.wait()?;
                written?;
                let (rows, scale) = (&term.rows, term.scale.to_bits());
                let (start, end, rank) = (rows.start as u64, rows.end as u64, term.rank as u64);
                table.push([start, end, rank, scale.into(), at(*left_at), at(*right_at)]);
            }
            Ok(())
        };
        write()?;
        let written = held
            .write(card, places.table, table.as_flattened())
            .and_then(|()| held.write(card, places.magnitude, parts.row_magnitude.unwrap_or_default()))
            .and_then(|()| held.write(card, places.column_gains, parts.column_gains.unwrap_or_default()));
        card.uploads.wait()?;
        written?;
        Ok(Self {
            terms: at(places.table),
            term_count: parts.terms.len(),
            magnitude: parts.row_magnitude.map_or(0, |_| at(places.magnitude)),
            column_gains: parts.column_gains.map_or(0, |_| at(places.column_gains)),
            _held: Some(held),
        })
    }
}

/// The importance of a tensor's columns on a GPU.
pub(super) struct Weights(Held);

impl Weights {
    /// The weights on `card`, which the first lane uploads.
    pub(super) fn of(importance: &Importance<'_>, card: &CudaCard) -> Result<Arc<Self>, Trouble> {
        let upload = || -> Result<Kept, Trouble> {
            let held = Held::new(card, size_of_val(importance.weights))?;
            let written = held.write(card, 0, importance.weights);
            card.uploads.wait()?;
            written?;
            Ok(Arc::new(Self(held)))
        };
        importance.resident.get(card.gpu.number(), upload)?.downcast().map_err(|_| Trouble::Unsupported)
    }

    /// Where they begin, as the GPU counts.
    pub(super) fn address(&self) -> u64 {
        self.0.memory.address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_stay_within_the_limit() {
        let used = Arc::new(AtomicUsize::new(0));
        let first = Claim::new(&used, 60, 100).unwrap();
        assert!(Claim::new(&used, 41, 100).is_none() && Claim::new(&used, usize::MAX, 100).is_none());
        let second = Claim::new(&used, 40, 100).unwrap();
        assert_eq!(used.load(Ordering::Relaxed), 100);
        drop(first);
        assert!(Claim::new(&used, 60, 100).is_some());
        drop(second);
        assert_eq!(used.load(Ordering::Relaxed), 0);
    }
}
