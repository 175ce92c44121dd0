//! Reading a GGUF header strictly: every rule that gguf.cpp checks, and those that it leaves open: bounds on the
//! alignment and on the memory that keys claim, text that is no UTF-8, names that C code would read as shorter ones.
//! Writing a header is in `layout`.

use std::collections::HashSet;

use super::bad::{BadGguf, Result};
use super::cursor::Cursor;
use super::layout::TensorForm;
use super::pairs::read_metadata;
use super::rules::{self, MAGIC, VERSION};
use super::value::Metadata;
use crate::checkpoint::MAX_TENSORS;
use crate::ggml::TensorType;

/// Fewest bytes of a tensor's entry.
const LEAST_TENSOR: usize = 25;

/// One tensor of a file, as its header declares it and its place was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// Type of its elements.
    pub kind: TensorType,
    /// Lengths of the axes, outermost first: as many as the file gives, in reverse.
    pub shape: Vec<usize>,
    /// First byte of the tensor, counted from the start of the file.
    pub offset: usize,
    /// Its bytes.
    pub len: usize,
}

impl TensorInfo {
    /// What a file says of it, to lay out another file.
    pub fn form(&self) -> TensorForm<'_> {
        TensorForm { name: &self.name, shape: &self.shape, kind: self.kind }
    }

    /// Number of elements. The check of the shape proved that the product does not overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A checked header.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// 2 or 3; they are read alike.
    pub version: u32,
    /// Keys and values, in order.
    pub metadata: Metadata,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// Multiple, in bytes, at which tensors begin.
    pub alignment: usize,
    /// Bytes before the padding that precedes the first tensor.
    pub len: usize,
    /// Where the data begins, counted from the start of the file.
    pub data_start: usize,
}

impl Header {
    /// Reads and checks the header of a whole file.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::of(file);
        if file.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(BadGguf::NotGguf);
        }
        cursor.take(MAGIC.len(), "its first bytes")?;
        let version = cursor.u32("its version")?;
        match version {
            2..=VERSION => {}
            _ if version != 0 && version.trailing_zeros() >= 16 => return Err(BadGguf::BigEndian),
            _ => return Err(BadGguf::Version(version)),
        }
        let tensor_count = cursor.count("tensors")?;
        let key_count = cursor.count("keys")?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        let alignment = rules::alignment(&metadata)?;
        cursor.check_count("tensors", tensor_count, MAX_TENSORS, LEAST_TENSOR)?;
        let mut tensors = read_tensors(&mut cursor, tensor_count)?;
        let len = file.len() - cursor.left();
        let data_start = rules::padded(len, alignment).unwrap_or(file.len());
        if tensors.is_empty() {
            return Ok(Self { version, metadata, tensors, alignment, len, data_start: data_start.min(file.len()) });
        }
        place(&mut tensors, data_start, alignment, file.len())?;
        Ok(Self { version, metadata, tensors, alignment, len, data_start })
    }
}

/// The tensors' entries. Their offsets still count from the start of the data.
fn read_tensors(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<TensorInfo>> {
    let mut seen = HashSet::with_capacity(count);
    let mut tensors = Vec::with_capacity(count);
    for i in 0..count {
        let name = cursor.text(&format!("the name of tensor {i}"))?;
        rules::check_name(name)?;
        if !seen.insert(name) {
            return Err(BadGguf::Broken(format!("tensor {name} occurs twice")));
        }
        let what = &format!("the entry of tensor {name}");
        let axes = cursor.u32(what)? as usize;
        rules::check_axes(name, axes)?;
        let mut shape = Vec::with_capacity(axes);
        for _ in 0..axes {
            shape.push(cursor.u64(what)?);
        }
        shape.reverse();
        let id = cursor.u32(what)?;
        let kind = TensorType::from_id(id)
            .ok_or_else(|| BadGguf::Broken(format!("tensor {name}: its type is {id}, which does not exist")))?;
        let len = rules::tensor_len(name, &shape, kind)?;
        let offset = cursor.u64(what)?;
        tensors.push(TensorInfo { name: name.to_owned(), kind, shape, offset, len });
    }
    Ok(tensors)
}

/// Makes offsets count from the start of the file, and checks that the tensors follow one another without a gap and end
/// within the file.
fn place(tensors: &mut [TensorInfo], data_start: usize, alignment: usize, file_len: usize) -> Result<()> {
    let mut expected = 0usize;
    for tensor in tensors {
        let TensorInfo { name, offset, len, .. } = tensor;
        if *offset != expected {
            let problem = format!("tensor {name}: its offset is {offset}, and the tensors before it end at {expected}");
            return Err(BadGguf::Broken(problem));
        }
        let start = data_start.checked_add(*offset);
        let end = start.and_then(|start| start.checked_add(*len)).filter(|end| *end <= file_len);
        let (Some(start), Some(_)) = (start, end) else {
            let problem = format!("tensor {name}: it lies beyond the end of the file: the file is cut off");
            return Err(BadGguf::Broken(problem));
        };
        let next = rules::padded(*len, alignment).and_then(|len| expected.checked_add(len));
        expected = next.ok_or_else(|| BadGguf::Broken(format!("tensor {name}: its size overflows")))?;
        *offset = start;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gguf::{Value, lay_out};

    /// A header of `keys` and `tensors`, each so many and their bytes; and `data` bytes after the padding.
    fn file(keys: (u64, &[u8]), tensors: (u64, &[u8]), data: usize) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([tensors.0, keys.0].map(u64::to_le_bytes).concat());
        bytes.extend([keys.1, tensors.1].concat());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A key of type `kind` with the bytes of its value.
    fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(key), &kind.to_le_bytes()[..], value].concat()
    }

    /// An array's element type, length and elements.
    fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
    }

    /// A tensor's entry, with the axes as the file has them.
    fn tensor(name: &str, axes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let axes_bytes: Vec<u8> = axes.iter().flat_map(|axis| axis.to_le_bytes()).collect();
        let count = (axes.len() as u32).to_le_bytes();
        [&text(name), &count[..], &axes_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
    }

    fn keys(keys: &[Vec<u8>]) -> Vec<u8> {
        file((keys.len() as u64, &keys.concat()), (0, &[]), 0)
    }

    fn tensors(tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
        file((0, &[]), (tensors.len() as u64, &tensors.concat()), data)
    }

    fn problem(bytes: &[u8]) -> String {
        Header::parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn reads_keys_and_tensors_in_order() {
        let pairs = [
            pair("b", 8, &text("层")),
            pair("a", 9, &array(5, 2, &[1, 0, 0, 0, 255, 255, 255, 255])),
            pair("t", 7, &[1]),
        ];
        let both = [tensor("x", &[64, 2, 1], 8, 0), tensor("y", &[], 0, 160), tensor("z", &[32, 0], 2, 192)].concat();
        let bytes = file((3, &pairs.concat()), (3, &both), 196);
        let header = Header::parse(&bytes).unwrap();
        let values: Vec<_> = header.metadata.iter().collect();
        let list = Value::Array(crate::gguf::Array::I32(vec![1, -1]));
        assert_eq!(values, [("b", &Value::string("层")), ("a", &list), ("t", &Value::Bool(true))]);
        let places = header.tensors.iter().map(|t| (t.shape.as_slice(), t.offset - header.data_start, t.len));
        assert_eq!(places.collect::<Vec<_>>(), [(&[1usize, 2, 64][..], 0, 136), (&[], 160, 4), (&[0, 32], 192, 0)]);
        assert_eq!((header.alignment, header.data_start % 32), (32, 0));
    }

    #[test]
    fn version_2_is_read_as_version_3_and_others_say_what_to_do() {
        let mut bytes = keys(&[]);
        bytes[4] = 2;
        assert_eq!(Header::parse(&bytes).unwrap().version, 2);
        let of = |version: u32| {
            let mut bytes = keys(&[]);
            bytes[4..8].copy_from_slice(&version.to_le_bytes());
            Header::parse(&bytes).unwrap_err()
        };
        assert_eq!(of(1), BadGguf::Version(1));
        assert!(of(1).remedy().contains("convert"));
        assert_eq!(of(4), BadGguf::Version(4));
        assert_eq!(of(0), BadGguf::Version(0));
        assert_eq!(of(3 << 24), BadGguf::BigEndian);
    }

    #[test]
    fn alignment_is_a_key_of_its_own_type() {
        let of = |value: u32| keys(&[pair("general.alignment", 4, &value.to_le_bytes())]);
        assert_eq!(Header::parse(&of(1)).unwrap().alignment, 1);
        assert_eq!(Header::parse(&of(64)).unwrap().alignment, 64);
        for (value, expected) in [(0, "power of two"), (13, "power of two"), (1 << 21, "is supported")] {
            assert!(problem(&of(value)).contains(expected), "{value}");
        }
        assert!(problem(&keys(&[pair("general.alignment", 5, &[32, 0, 0, 0])])).contains("u32"));
    }

    #[test]
    fn refuses_broken_keys() {
        let long = u64::MAX.to_le_bytes();
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "GGUF"),
            (b"GGU".to_vec(), "GGUF"),
            (b"GGUF\x03\0".to_vec(), "cut off"),
            (file((u64::MAX, &[]), (0, &[]), 0), "18446744073709551615 keys"),
            (file((60_000, &[]), (0, &[]), 0), "60000 keys"),
            (keys(&[pair("", 0, &[1])]), "empty"),
            (keys(&[pair("a\0b", 0, &[1])]), "zero byte"),
            (keys(&[pair(&"k".repeat(65_536), 0, &[1])]), "65535"),
            (keys(&[pair("a", 0, &[1]), pair("a", 0, &[1])]), "a occurs twice"),
            (keys(&[pair("a", 13, &[1; 20])]), "type 13"),
            (keys(&[pair("a", 7, &[2])]), "boolean of 2"),
            (keys(&[pair("a", 9, &array(7, 2, &[1, 3]))]), "boolean of 3"),
            (
                keys(&[pair("a", 8, &[9, 0, 0, 0, 0, 0, 0, 0, 0xff, 1, 1, 1, 1, 1, 1, 1, 1])]),
                "the value of a is not UTF-8",
            ),
            (keys(&[pair("a", 8, &long)]), "cut off"),
            (keys(&[pair("a", 9, &array(9, 1, &array(0, 1, &[1])))]), "array of arrays"),
            (keys(&[pair("a", 9, &array(13, 1, &[1; 40]))]), "type 13"),
            (keys(&[pair("a", 9, &array(10, u64::MAX / 2, &[1; 40]))]), "cut off"),
            (keys(&[pair("a", 9, &array(8, u64::MAX, &[0; 40]))]), "cut off"),
            (keys(&[pair("a", 9, &array(8, 6, &[0; 24]))]), "cut off"),
        ];
        for (bytes, expected) in cases {
            let said = problem(&bytes);
            assert!(said.contains(expected), "{said:?} should mention {expected:?}");
        }
    }

    #[test]
    fn refuses_broken_tensors() {
        let one = |name: &str, axes: &[u64], kind, offset| tensors(&[tensor(name, axes, kind, offset)], 128);
        let two = |second: Vec<u8>| tensors(&[tensor("a", &[3], 0, 0), second], 128);
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (file((0, &[]), (u64::MAX, &[]), 0), "18446744073709551615 tensors"),
            (file((0, &[]), (400_000, &[]), 0), "400000 tensors"),
            (one("", &[1], 0, 0), "empty name"),
            (one(&"n".repeat(64), &[1], 0, 0), "64 bytes"),
            (one("a\0", &[1], 0, 0), "zero byte"),
            (one("a", &[1; 5], 0, 0), "5 axes"),
            (one("a", &[u64::MAX], 0, 0), "overflows"),
            (one("a", &[1 << 32, 1 << 31], 24, 0), "overflows"),
            (one("a", &[1 << 62], 27, 0), "overflows"),
            (one("a", &[4, (1 << 30) - 1, (1 << 30) + 1], 0, 0), "beyond the end"),
            (one("a", &[33], 2, 0), "a multiple of the block size"),
            (one("a", &[], 2, 0), "a multiple of the block size"),
            (one("a", &[32], 4, 0), "type is 4"),
            (one("a", &[32], 43, 0), "type is 43"),
            (one("a", &[32], u32::MAX, 0), "does not exist"),
            (one("a", &[1], 0, 32), "offset is 32"),
            (one("a", &[1], 0, u64::MAX), "offset"),
            (one("a", &[33], 0, 0), "cut off"),
            (two(tensor("a", &[3], 0, 32)), "twice"),
            (two(tensor("b", &[3], 0, 0)), "end at 32"),
            (two(tensor("b", &[3], 0, 12)), "end at 32"),
            (two(tensor("b", &[3], 0, 64)), "end at 32"),
        ];
        for (bytes, expected) in cases {
            let said = problem(&bytes);
            assert!(said.contains(expected), "{said:?} should mention {expected:?}");
        }
    }

    #[test]
    fn an_axis_of_zero_empties_a_tensor_but_excuses_no_overflow() {
        let of = |axes: &[u64]| Header::parse(&tensors(&[tensor("a", axes, 27, 0)], 0));
        assert_eq!(of(&[1 << 31, 1 << 31, 0]).unwrap().tensors[0].len, 0);
        assert!(of(&[0, 1 << 40, 1 << 40]).is_err());
    }

    #[test]
    fn memory_of_keys_is_bounded() {
        // Empty strings take the least of the file for the most of the memory.
        let count = 12_000_000u64;
        let bytes = keys(&[pair("a", 9, &array(8, count, &vec![0; 8 * count as usize]))]);
        assert!(problem(&bytes).contains("bytes of values"));
    }

    proptest! {
        #[test]
        fn never_panics_and_what_is_read_is_written_alike(
            mut bytes in Just(file(
                (2, &[pair("general.alignment", 4, &[32, 0, 0, 0]), pair("a", 9, &array(8, 2, &[text("x"), text("yz")].concat()))].concat()),
                (2, &[tensor("a", &[64, 2], 8, 0), tensor("b", &[3], 0, 160)].concat()),
                192,
            )),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            prop_assert!(Header::parse(&bytes).is_ok());
            let end = bytes.len().min(cut.index(bytes.len() * 2));
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for bytes in [&bytes[..], &bytes[..end]] {
                if let Ok(header) = Header::parse(bytes) {
                    prop_assert!(header.tensors.iter().all(|t| bytes.get(t.offset..t.offset + t.len).is_some()));
                    let forms: Vec<_> = header.tensors.iter().map(TensorInfo::form).collect();
                    let again = lay_out(&header.metadata, &forms).unwrap().header;
                    prop_assert_eq!(&again[8..header.len], &bytes[8..header.len]);
                }
            }
        }
    }
}
