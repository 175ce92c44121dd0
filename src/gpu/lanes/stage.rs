//! Staging: which of the base's bytes a block of a merge needs, and putting them where a GPU copies them from, in the
//! output's order of rows.

use std::ops::Range;

use super::block::{Trouble, source_row};
use crate::merge::Parts;

/// Elements that lie together so that 16-byte loads of any float begin between them.
pub(super) const GROUP: usize = 8;

/// Elements of the output whose base values are on the GPU, side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staged {
    /// The element that the GPU's memory begins with. Those before `elements` are not there: they only keep alignment.
    pub(super) first: usize,
    /// The elements that are there.
    pub(super) elements: Range<usize>,
}

impl Staged {
    /// What `elements`, which are not empty, need: themselves, or whole rows where each row has a norm.
    pub(super) fn of(parts: &Parts<'_>, elements: &Range<usize>) -> Self {
        let columns = parts.columns.max(1);
        let elements = match parts.row_magnitude {
            None => elements.clone(),
            Some(_) => elements.start / columns * columns..elements.end.div_ceil(columns) * columns,
        };
        Self { first: elements.start / GROUP * GROUP, elements }
    }

    /// The rows that `elements` have a part of.
    pub(super) fn rows(&self, columns: usize) -> Range<usize> {
        self.elements.start / columns.max(1)..self.elements.end.div_ceil(columns.max(1))
    }

    /// Bytes on the GPU.
    pub(super) fn len(&self, size: usize) -> usize {
        (self.elements.end - self.first) * size
    }
}

/// Copies the base's values of `staged` to the front of `into`, row by row where `heads` reorder rows or rows are
/// overwritten.
pub(super) fn stage(parts: &Parts<'_>, heads: Option<usize>, staged: &Staged, into: &mut [u8]) -> Result<(), Trouble> {
    let (size, columns) = (parts.base_float.size(), parts.columns.max(1));
    // Decoding is the processor's.
    if parts.is_decoded {
        return Err(Trouble::Unsupported);
    }
    let Range { start, end } = staged.elements;
    let place = |element: usize| (element - staged.first) * size;
    if heads.is_none() && parts.overwritten.is_empty() {
        let bytes = parts.base.get(start * size..end * size).ok_or(Trouble::Unsupported)?;
        into[place(start)..place(end)].copy_from_slice(bytes);
        return Ok(());
    }
    for row in staged.rows(columns) {
        let within = start.max(row * columns) - row * columns..end.min((row + 1) * columns) - row * columns;
        let source = heads.map_or(row, |heads| source_row(row, parts.rows, heads));
        let bytes = match parts.overwritten.get(&source) {
            // Only a row of another type needs the processor; it widens each by its own.
            Some(_) if parts.overwritten_float != parts.base_float => return Err(Trouble::Value),
            Some(bytes) => bytes.get(within.start * size..within.end * size),
            None => parts.base.get((source * columns + within.start) * size..(source * columns + within.end) * size),
        };
        let out = place(row * columns + within.start)..place(row * columns + within.end);
        into[out].copy_from_slice(bytes.ok_or(Trouble::Unsupported)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::merge::{Factor, Float, Layout, Merge, NormAxis, Overflow, Vector};

    const ROWS: usize = 6;
    const COLUMNS: usize = 5;

    fn bytes(from: usize, count: usize) -> Vec<u8> {
        (from..from + count).flat_map(|i| (i as u16).to_le_bytes()).collect()
    }

    fn cast(base: &[u8]) -> Merge<'_> {
        Merge::cast(base, Float::Bf16, Float::Bf16, COLUMNS, Overflow::Refuse, Vector::detect())
    }

    fn staged(merge: &Merge<'_>, heads: Option<usize>, elements: Range<usize>) -> Result<Vec<u16>, Trouble> {
        let parts = merge.parts();
        let staged = Staged::of(&parts, &elements);
        assert!(staged.first.is_multiple_of(GROUP) && staged.first <= staged.elements.start);
        let mut into = vec![0xff; staged.len(2)];
        stage(&parts, heads, &staged, &mut into)?;
        let into = &into[(staged.elements.start - staged.first) * 2..];
        Ok(into.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect())
    }

    #[test]
    fn elements_of_any_range_are_copied() {
        let base = bytes(0, ROWS * COLUMNS);
        for range in [0..30, 1..2, 9..23, 29..30] {
            let expected: Vec<u16> = (range.start as u16..range.end as u16).collect();
            assert_eq!(staged(&cast(&base), None, range).unwrap(), expected);
        }
        assert!(matches!(staged(&cast(&base), None, 20..31), Err(Trouble::Unsupported)));
    }

    #[test]
    fn rows_come_in_the_order_of_the_output() {
        let base = bytes(0, ROWS * COLUMNS);
        // Two heads of three rows would be odd; one head of six interleaves its halves: 0 3 1 4 2 5.
        let rows = [0u16, 3, 1, 4, 2, 5];
        let all: Vec<u16> = rows.iter().flat_map(|row| row * 5..row * 5 + 5).collect();
        for range in [0..30, 3..4, 7..19] {
            assert_eq!(staged(&cast(&base), Some(1), range.clone()).unwrap(), all[range], "by heads");
        }
    }

    #[test]
    fn overwritten_rows_stand_in() {
        let (base, row) = (bytes(0, ROWS * COLUMNS), bytes(100, COLUMNS));
        let rows = BTreeMap::from([(3, &row[..])]);
        let merge = cast(&base).overwrite(rows.clone(), Float::Bf16);
        assert_eq!(staged(&merge, None, 13..22).unwrap(), [13, 14, 100, 101, 102, 103, 104, 20, 21]);
        // The row moves with the heads, as the base's would have.
        assert_eq!(staged(&merge, Some(1), 4..11).unwrap(), [4, 100, 101, 102, 103, 104, 5]);
        let wide = bytes(100, 2 * COLUMNS);
        let merge = cast(&base).overwrite(BTreeMap::from([(3, &wide[..])]), Float::F32);
        assert!(matches!(staged(&merge, None, 13..22), Err(Trouble::Value)));
        assert_eq!(staged(&merge, None, 0..3).unwrap(), [0, 1, 2], "no such row is among these");
    }

    #[test]
    fn norms_of_rows_need_whole_rows() {
        let (base, ones) = (bytes(0, ROWS * COLUMNS), vec![0x3f80_u16; ROWS]);
        let ones: Vec<u8> = ones.iter().flat_map(|v| v.to_le_bytes()).collect();
        let layout = Layout { offset: 0, row_stride: 0, column_stride: 1 };
        let magnitude = Factor::new(&ones, Float::Bf16, layout, 1, ROWS).unwrap();
        let merge = cast(&base).scale_to(&magnitude, NormAxis::Row);
        let reach = Staged::of(&merge.parts(), &(7..11));
        assert_eq!(reach, Staged { first: 0, elements: 5..15 });
        assert_eq!((reach.rows(COLUMNS), reach.len(2)), (1..3, 30));
        assert_eq!(staged(&merge, None, 7..11).unwrap(), (5..15).collect::<Vec<u16>>());
    }
}
