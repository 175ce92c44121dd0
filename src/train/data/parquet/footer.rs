//! How deep a Parquet file's schema nests, read off the footer before the `parquet` crate sees it: it builds the schema
//! by recursion, and an overflow of the stack can't be caught. Thrift's compact protocol, as far as that needs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Deepest nesting of Thrift's own structs and lists. Parquet's footer has fewer than 10.
const MAX_THRIFT: usize = 32;

/// Whether the schema in the footer of `file` nests over `most` levels. No footer, or a broken one, is not deep: the
/// crate will say what is wrong with it.
pub(super) fn is_deeper(file: &mut File, most: usize) -> std::io::Result<bool> {
    let len = file.seek(SeekFrom::End(0))?;
    let mut end = [0; 8];
    if len < 12 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut end)?;
    let [a, b, c, d, magic @ ..] = end;
    let size = u64::from(u32::from_le_bytes([a, b, c, d]));
    if magic != *b"PAR1" || size > len - 8 {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(len - 8 - size))?;
    let mut footer = Vec::new();
    file.take(size).read_to_end(&mut footer)?;
    Ok(Thrift(&footer).schema_is_deeper(most).unwrap_or(false))
}

/// What is left to read. `None` from its functions: the bytes end, or mean nothing.
struct Thrift<'b>(&'b [u8]);

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn pass(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The next field of a struct: its id and type, which is 0 at the end. `last` is the id before.
    fn field(&mut self, last: i64) -> Option<(i64, u8)> {
        let head = self.byte()?;
        if head == 0 {
            return Some((last, 0));
        }
        let id = match head >> 4 {
            0 => unzigzag(self.varint()?),
            delta => last.wrapping_add(i64::from(delta)),
        };
        Some((id, head & 15))
    }

    /// The number of elements of a list, and their type.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Some((count, head & 15))
    }

    /// Passes over a value; `levels` more may nest in it.
    fn skip(&mut self, kind: u8, levels: usize) -> Option<()> {
        let levels = levels.checked_sub(1)?;
        match kind {
            // The booleans of a struct are their types.
            1 | 2 => Some(()),
            3 => self.pass(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.pass(8),
            8 => {
                let len = self.varint()?;
                self.pass(len)
            }
            9 | 10 => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| if kind < 3 { self.pass(1) } else { self.skip(kind, levels) })
            }
            12 => {
                let mut last = 0;
                while let (id, kind @ 1..) = self.field(last)? {
                    self.skip(kind, levels)?;
                    last = id;
                }
                Some(())
            }
            // Maps (11), which the footer has none of, and what isn't Thrift.
            _ => None,
        }
    }

    /// `FileMetaData`: field 2 is the schema.
    fn schema_is_deeper(&mut self, most: usize) -> Option<bool> {
        let mut last = 0;
        while let (id, kind @ 1..) = self.field(last)? {
            if (id, kind) == (2, 9) {
                let (count, 12) = self.list()? else { return None };
                if self.elements_are_deeper(count, most)? {
                    return Some(true);
                }
            } else {
                self.skip(kind, MAX_THRIFT)?;
            }
            last = id;
        }
        Some(false)
    }

    /// `SchemaElement`s in the order of a walk from the root; field 5 is how many children follow.
    fn elements_are_deeper(&mut self, count: u64, most: usize) -> Option<bool> {
        // How many elements are still to come on each level.
        let mut open: Vec<i64> = Vec::new();
        for _ in 0..count {
            let (mut last, mut children) = (0, 0);
            while let (id, kind @ 1..) = self.field(last)? {
                match (id, kind) {
                    (5, 5) => children = unzigzag(self.varint()?),
                    _ => self.skip(kind, MAX_THRIFT)?,
                }
                last = id;
            }
            if let Some(siblings) = open.last_mut() {
                *siblings -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            while open.last().is_some_and(|left| *left <= 0) {
                open.pop();
            }
            if open.len() > most {
                return Some(true);
            }
        }
        Some(false)
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file that is a footer only: a root, `groups` groups one in the other, and a column.
    fn nested(groups: usize) -> File {
        let (group, column) = (b"\x35\x02\x18\x08messages\x15\x02\x00", b"\x15\x0c\x25\x02\x18\x01x\x00");
        let mut footer = b"\x15\x02\x19\xfc".to_vec();
        let mut count = groups + 2;
        while count > 127 {
            footer.push(count as u8 | 128);
            count >>= 7;
        }
        footer.push(count as u8);
        footer.extend(b"\x48\x06schema\x15\x02\x00");
        (0..groups).for_each(|_| footer.extend(group));
        footer.extend(column);
        footer.extend(b"\x16\x00\x19\x0c\x00");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"PAR1").unwrap();
        file.write_all(&footer).unwrap();
        file.write_all(&(footer.len() as u32).to_le_bytes()).unwrap();
        file.write_all(b"PAR1").unwrap();
        file
    }

    #[test]
    fn tells_how_deep_a_schema_is() {
        for (groups, most, deeper) in [(3, 4, false), (3, 3, true), (0, 1, false), (100_000, 64, true)] {
            assert_eq!(is_deeper(&mut nested(groups), most).unwrap(), deeper, "{groups} in {most}");
        }
    }

    #[test]
    fn a_schema_too_deep_for_a_stack_is_refused() {
        let path = std::path::Path::new("deep.parquet");
        let error = super::super::each_row(path, nested(1_000_000), &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("nested deeper than 64"), "{error}");
    }

    #[test]
    fn real_files_are_shallow() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/train_data");
        for (name, depth) in [("chat.snappy.parquet", 4), ("tools.zstd.parquet", 8), ("alpaca.parquet", 1)] {
            let mut file = File::open(dir.join(name)).unwrap();
            assert!(!is_deeper(&mut file, depth).unwrap(), "{name}");
            assert!(is_deeper(&mut file, depth - 1).unwrap(), "{name}");
        }
    }
}
