//! The safetensors header, read strictly: every rule of the format, and those that the reference reader (safetensors
//! 0.8) leaves unchecked: duplicate names, leading white space, unknown fields, misaligned tensors.
//! Format: <https://github.com/huggingface/safetensors#format>. Writing a header is in `export::shard`.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// A dtype as safetensors spells it.
pub(crate) fn dtype_name(dtype: Dtype) -> String {
    serde_json::json!(dtype).as_str().unwrap_or_default().to_owned()
}

/// Longest header that any reader of the format accepts.
pub const MAX_HEADER_LEN: u64 = 100_000_000;

/// Most tensors that qft reads from one file; bounds the memory that a header can claim.
pub const MAX_TENSORS: usize = 500_000;

/// Most axes of a tensor: what `NumPy` allows.
const MAX_AXES: usize = 64;

/// One tensor of a file, as its header declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// Type of an element.
    pub dtype: Dtype,
    /// Lengths of the axes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte of the tensor, counted from the start of the file.
    pub start: usize,
    /// One past its last byte, counted from the start of the file.
    pub end: usize,
}

/// A checked header.
#[derive(Debug, Clone)]
pub struct Header {
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The free-form `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Bytes before the first tensor: the length field and the JSON.
    pub len: usize,
    /// Departures from the format's recommendations that do no harm to a reader, for the lint of `qft verify`.
    pub lint: Vec<String>,
}

/// Why a file is no safetensors file that qft reads.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadHeader(String);

impl Header {
    /// Reads and checks the header of a whole file.
    pub fn parse(file: &[u8]) -> Result<Self, BadHeader> {
        let (length, rest) =
            file.split_first_chunk::<8>().ok_or_else(|| bad("shorter than the 8 bytes of its header's length"))?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_LEN {
            return Err(bad(format!("declares a header of {length} bytes; the format allows {MAX_HEADER_LEN}")));
        }
        let length = length as usize;
        let json = rest.get(..length).ok_or_else(|| {
            bad(format!("declares a header of {length} bytes, but only {} follow: it is cut off", rest.len()))
        })?;
        if json.first() != Some(&b'{') {
            return Err(bad("the header does not begin with '{'"));
        }
        let json = std::str::from_utf8(json).map_err(|e| bad(format!("the header is not UTF-8: {e}")))?;
        let raw: RawHeader = serde_json::from_str(json).map_err(|e| bad(format!("the header: {e}")))?;
        let len = 8 + length;
        let tensors = check(raw.tensors, len, file.len())?;
        let mut lint = Vec::new();
        if !length.is_multiple_of(8) {
            lint.push(format!("the header's length, {length}, is not a multiple of 8"));
        }
        for tensor in &tensors {
            let align = tensor.dtype.bitsize().div_ceil(8);
            if !tensor.start.is_multiple_of(align) {
                lint.push(format!("tensor {} is not aligned to its {align}-byte elements", tensor.name));
            }
        }
        Ok(Self { tensors, metadata: raw.metadata.unwrap_or_default(), len, lint })
    }
}

fn bad(problem: impl Into<String>) -> BadHeader {
    BadHeader(problem.into())
}

/// Sorts by offset and checks sizes, gaps, overlaps and the end of the file.
fn check(raw: Vec<(String, RawTensor)>, header_len: usize, file_len: usize) -> Result<Vec<TensorInfo>, BadHeader> {
    let mut tensors = Vec::with_capacity(raw.len());
    for (name, RawTensor { dtype, shape, data_offsets: [begin, end] }) in raw {
        let of = |problem: &str| bad(format!("tensor {name}: {problem}"));
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize())).ok_or_else(|| of("its shape overflows"))?;
        if bits % 8 != 0 {
            return Err(of("its bits do not fill whole bytes"));
        }
        let size = end.checked_sub(begin).ok_or_else(|| of("it ends before it begins"))?;
        if size != bits / 8 {
            return Err(of(&format!("{size} bytes are given, its shape and type need {}", bits / 8)));
        }
        let place = |offset: usize| offset.checked_add(header_len).filter(|at| *at <= file_len);
        let (Some(start), Some(end)) = (place(begin), place(end)) else {
            return Err(of("it lies beyond the end of the file: the file is cut off"));
        };
        tensors.push(TensorInfo { name, dtype, shape, start, end });
    }
    let mut names: Vec<&str> = tensors.iter().map(|t: &TensorInfo| t.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.iter().zip(names.iter().skip(1)).find_map(|(a, b)| (a == b).then_some(a)) {
        return Err(bad(format!("tensor {twice} occurs twice")));
    }
    tensors.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
    let mut at = header_len;
    for tensor in &tensors {
        if tensor.start < at {
            return Err(bad(format!("tensor {} overlaps the one before it", tensor.name)));
        }
        if tensor.start > at {
            return Err(bad(format!("{} bytes before tensor {} belong to no tensor", tensor.start - at, tensor.name)));
        }
        at = tensor.end;
    }
    if at != file_len {
        return Err(bad(format!("{} bytes after the last tensor belong to no tensor", file_len - at)));
    }
    Ok(tensors)
}

struct RawTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawTensorVisitor)
    }
}

/// Reads an object only: what serde derives would take a list as well, which no other reader does.
struct RawTensorVisitor;

impl<'de> Visitor<'de> for RawTensorVisitor {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
        use serde::de::Error;
        let (mut dtype, mut shape, mut data_offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value::<Shape>()?).is_some(),
                "data_offsets" => data_offsets.replace(map.next_value()?).is_some(),
                _ => return Err(A::Error::custom(format!("unknown field {key:.100}"))),
            };
            if twice {
                return Err(A::Error::custom(format!("{key} occurs twice")));
            }
        }
        match (dtype, shape, data_offsets) {
            (Some(dtype), Some(Shape(shape)), Some(data_offsets)) => Ok(RawTensor { dtype, shape, data_offsets }),
            _ => Err(A::Error::custom("a tensor lacks dtype, shape or data_offsets")),
        }
    }
}

/// Lengths of at most [`MAX_AXES`] axes.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of lengths")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        use serde::de::Error;
        let mut shape = Vec::new();
        while let Some(length) = list.next_element()? {
            if shape.len() == MAX_AXES {
                return Err(A::Error::custom(format!("a tensor has more than {MAX_AXES} axes")));
            }
            shape.push(length);
        }
        Ok(Shape(shape))
    }
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: Option<BTreeMap<String, String>>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

/// Reads the object key by key, since a map type would let the last of two equal names win.
struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        use serde::de::Error;
        let mut header = RawHeader::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if header.metadata.replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom("__metadata__ occurs twice"));
                }
                continue;
            }
            if name.is_empty() {
                return Err(A::Error::custom("a tensor has an empty name"));
            }
            if header.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors in one file")));
            }
            header.tensors.push((name, map.next_value()?));
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn problem(bytes: &[u8]) -> String {
        Header::parse(bytes).map_or_else(|e| e.to_string(), |h| format!("accepted {h:?}"))
    }

    #[test]
    fn reads_scalars_empty_tensors_and_metadata() {
        let json = format!(
            r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}"#,
            entry("b", "F32", "[]", 4, 8),
            entry("a", "BF16", "[2,1]", 0, 4),
            entry("none", "F32", "[0,5]", 4, 4)
        );
        let header = Header::parse(&file(&json, 8)).unwrap();
        let names: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.end - t.start)).collect();
        assert_eq!(names, [("a", 4), ("none", 0), ("b", 4)]);
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(header.tensors[0].start, header.len);
    }

    #[test]
    fn refuses_what_the_format_forbids() {
        let one = |entries: &[String]| format!("{{{}}}", entries.join(","));
        let a = |begin, end| entry("a", "U8", &format!("[{}]", end - begin), begin, end);
        let b = |begin, end| entry("b", "U8", &format!("[{}]", end - begin), begin, end);
        let cases: [(Vec<u8>, &str); 22] = [
            (vec![], "8 bytes"),
            (vec![1, 0, 0, 0, 0, 0, 0], "8 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "allows"),
            (100_000_001u64.to_le_bytes().to_vec(), "allows"),
            (90_000_000u64.to_le_bytes().to_vec(), "cut off"),
            (file(&one(&[a(0, 4), b(2, 6)]), 6), "overlaps"),
            (file(&one(&[a(0, 4), b(0, 4)]), 4), "overlaps"),
            (file(&one(&[a(0, 4), b(5, 6)]), 6), "belong to no tensor"),
            (file(&one(&[a(1, 4)]), 4), "belong to no tensor"),
            (file(&one(&[a(0, 4)]), 5), "after the last tensor"),
            (file(&one(&[a(0, 4)]), 3), "cut off"),
            (file(&one(&[a(0, 4), a(0, 4)]), 4), "twice"),
            (file(&one(&[entry("a", "U8", "[3]", 0, 4)]), 4), "need 3"),
            (file(&one(&[entry("a", "F4", "[3]", 0, 2)]), 2), "whole bytes"),
            (file(&one(&[entry("a", "F99", "[1]", 0, 4)]), 4), "unknown variant"),
            (file(&one(&[entry("a", "U8", "[18446744073709551615,3]", 0, 4)]), 4), "overflows"),
            (file(&one(&[entry("a", "F64", "[4611686018427387904]", 0, 0)]), 0), "overflows"),
            (file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#, 1), "ends before"),
            (file(r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1), "invalid value"),
            (file(r#" {"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1), "begin with"),
            (file(r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1), "empty name"),
            (file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "twice"),
        ];
        for (bytes, expected) in cases {
            let said = problem(&bytes);
            assert!(said.contains(expected), "{said:?} should mention {expected:?}");
        }
        for bytes in [file("{\"a\":", 0), file("[]", 0), file("{} x", 0), file("{\"__metadata__\":{\"a\":1}}", 0)] {
            assert!(Header::parse(&bytes).is_err());
        }
        let mut latin = file("{}", 0);
        latin[9] = 0xff;
        assert!(problem(&latin).contains("UTF-8"));
    }

    #[test]
    fn lints_what_is_only_bad_style() {
        let header = Header::parse(&file(&format!("{{{}}}", entry("a", "F32", "[1]", 0, 4)), 4)).unwrap();
        assert_eq!(header.lint.len(), 2, "{:?}", header.lint);
        assert!(Header::parse(&file("{}      ", 0)).unwrap().lint.is_empty());
    }

    proptest! {
        /// Whatever qft accepts, the reference reader accepts too.
        #[test]
        fn is_no_laxer_than_the_reference(
            mut bytes in Just(file(&format!("{{{},{}}}", entry("a", "U8", "[2]", 0, 2), entry("b", "BF16", "[1]", 2, 4)), 4)),
            at in 8usize..140,
            value: u8,
        ) {
            let at = at % bytes.len();
            bytes[at] = value;
            if Header::parse(&bytes).is_ok() {
                prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::parse(&bytes);
        }
    }
}
