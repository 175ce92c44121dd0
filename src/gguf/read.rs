//! Reading a GGUF header strictly: every rule that gguf.cpp checks, and those that it leaves open: bounds on the
//! alignment and on the memory that keys claim, text that is no UTF-8, names that C code would read as shorter ones.
//! Writing a header is in `layout`.

use std::collections::HashSet;

use super::rules::{self, MAGIC, VERSION};
use super::types::TensorType;
use super::value::{Array, Metadata, Value, ValueType};
use crate::checkpoint::MAX_TENSORS;

/// Most keys of a file; real ones have under a hundred.
const MAX_KEYS: usize = 65_536;
/// Most memory, in bytes, that the values of all keys may take. A vocabulary of 256,000 tokens takes some 30 MB.
const MAX_VALUES: usize = 512 << 20;
/// Bytes of memory that a string takes beside its text.
const STRING_COST: usize = 48;
/// Fewest bytes of a key with its value.
const LEAST_PAIR: usize = 14;
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

/// Why a file is no GGUF file that qft reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadGguf {
    /// Another kind of file.
    #[error("does not begin with the letters GGUF: it is another kind of file")]
    NotGguf,
    /// The numbers' bytes are reversed.
    #[error("is a big-endian GGUF file")]
    BigEndian,
    /// A version that is too old, or not yet known.
    #[error("is GGUF version {0}; versions 2 and 3 are read")]
    Version(u32),
    /// The file ends too early.
    #[error("ends within {0}: it is cut off")]
    CutOff(String),
    /// A rule is broken.
    #[error("{0}")]
    Broken(String),
}

impl BadGguf {
    /// What the reader can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotGguf => "give a file that llama.cpp's tools or qft wrote",
            Self::BigEndian => "make a little-endian file with llama.cpp's gguf_convert_endian.py",
            Self::Version(0 | 1) => "convert the model again with a current llama.cpp",
            Self::Version(_) => "use a newer qft, or convert the model again",
            Self::CutOff(_) | Self::Broken(_) => "download or convert the file again: it is damaged or hostile",
        }
    }
}

impl From<String> for BadGguf {
    fn from(problem: String) -> Self {
        Self::Broken(problem)
    }
}

type Result<T> = std::result::Result<T, BadGguf>;

impl Header {
    /// Reads and checks the header of a whole file.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { rest: file, budget: MAX_VALUES };
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
        cursor.check_count("keys", key_count, MAX_KEYS, LEAST_PAIR)?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        let alignment = rules::alignment(&metadata)?;
        cursor.check_count("tensors", tensor_count, MAX_TENSORS, LEAST_TENSOR)?;
        let mut tensors = read_tensors(&mut cursor, tensor_count)?;
        let len = file.len() - cursor.rest.len();
        let data_start = rules::padded(len, alignment).unwrap_or(file.len());
        if tensors.is_empty() {
            return Ok(Self { version, metadata, tensors, alignment, len, data_start: data_start.min(file.len()) });
        }
        place(&mut tensors, data_start, alignment, file.len())?;
        Ok(Self { version, metadata, tensors, alignment, len, data_start })
    }
}

/// The bytes that are yet to be read, and the memory that may yet be claimed.
struct Cursor<'a> {
    rest: &'a [u8],
    budget: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| BadGguf::CutOff(what.to_owned()))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| BadGguf::CutOff(what.to_owned()))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<usize> {
        self.array(what).map(|bytes| u64::from_le_bytes(bytes) as usize)
    }

    fn count(&mut self, what: &str) -> Result<usize> {
        self.u64(&format!("the number of its {what}"))
    }

    /// Refuses more things than `most`, or than the file can hold if each takes `least` bytes.
    fn check_count(&self, what: &str, count: usize, most: usize, least: usize) -> Result<()> {
        if count > most {
            return Err(BadGguf::Broken(format!("declares {count} {what}; no more than {most} are read")));
        }
        if count * least > self.rest.len() {
            return Err(BadGguf::Broken(format!("declares {count} {what}, but is too short for them: it is cut off")));
        }
        Ok(())
    }

    fn text(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| BadGguf::Broken(format!("{what} is no UTF-8 text")))
    }

    /// Claims memory for values.
    fn claim(&mut self, bytes: usize) -> Result<()> {
        let left = self.budget.checked_sub(bytes);
        self.budget =
            left.ok_or_else(|| BadGguf::Broken(format!("its keys hold more than {MAX_VALUES} bytes of values")))?;
        Ok(())
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Metadata> {
    let mut seen = HashSet::with_capacity(count);
    let mut pairs = Vec::with_capacity(count);
    for i in 0..count {
        let key = cursor.text(&format!("key {i}"))?;
        rules::check_key(key)?;
        if !seen.insert(key) {
            return Err(BadGguf::Broken(format!("key {key} is given twice")));
        }
        cursor.claim(key.len() + STRING_COST)?;
        let value = read_value(cursor, key)?;
        pairs.push((key.to_owned(), value));
    }
    Ok(Metadata::from_unique(pairs))
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value> {
    let of = &format!("the value of {key}");
    let kind = value_type(cursor, key)?;
    Ok(match kind {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(of)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(of)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(of)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(of)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(of)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(of)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(of)?)),
        ValueType::Bool => Value::Bool(boolean(cursor.array::<1>(of)?[0], key)?),
        ValueType::String => {
            let text = cursor.text(of)?;
            cursor.claim(text.len() + STRING_COST)?;
            Value::string(text)
        }
        ValueType::Array => Value::Array(read_array(cursor, key)?),
        ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(of)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(of)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(of)?)),
    })
}

fn value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType> {
    let id = cursor.u32(&format!("the type of {key}"))?;
    ValueType::from_id(id).ok_or_else(|| BadGguf::Broken(format!("key {key} has type {id}, which does not exist")))
}

/// Any other number than 0 and 1 is invalid, says the format's page.
fn boolean(byte: u8, key: &str) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadGguf::Broken(format!("key {key} has a boolean of {byte}"))),
    }
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array> {
    let kind = value_type(cursor, key)?;
    let count = cursor.u64(&format!("the length of {key}"))?;
    /// The bytes of all elements, in chunks.
    macro_rules! numbers {
        ($type:ty) => {{
            const SIZE: usize = size_of::<$type>();
            let bytes = elements(cursor, key, count, SIZE)?;
            bytes.as_chunks::<SIZE>().0.iter().map(|bytes| <$type>::from_le_bytes(*bytes)).collect()
        }};
    }
    Ok(match kind {
        ValueType::U8 => Array::U8(numbers!(u8)),
        ValueType::I8 => Array::I8(numbers!(i8)),
        ValueType::U16 => Array::U16(numbers!(u16)),
        ValueType::I16 => Array::I16(numbers!(i16)),
        ValueType::U32 => Array::U32(numbers!(u32)),
        ValueType::I32 => Array::I32(numbers!(i32)),
        ValueType::F32 => Array::F32(numbers!(f32)),
        ValueType::U64 => Array::U64(numbers!(u64)),
        ValueType::I64 => Array::I64(numbers!(i64)),
        ValueType::F64 => Array::F64(numbers!(f64)),
        ValueType::Bool => {
            let bytes = elements(cursor, key, count, 1)?;
            Array::Bool(bytes.iter().map(|byte| boolean(*byte, key)).collect::<Result<_>>()?)
        }
        ValueType::String => Array::String(read_strings(cursor, key, count)?),
        ValueType::Array => return Err(BadGguf::Broken(format!("key {key} is an array of arrays, which is not read"))),
    })
}

/// The bytes of `count` elements of `size` bytes, after claiming as much memory.
fn elements<'a>(cursor: &mut Cursor<'a>, key: &str, count: usize, size: usize) -> Result<&'a [u8]> {
    let what = format!("the {count} elements of {key}");
    let len = count.checked_mul(size).ok_or_else(|| BadGguf::CutOff(what.clone()))?;
    let bytes = cursor.take(len, &what)?;
    cursor.claim(len)?;
    Ok(bytes)
}

fn read_strings(cursor: &mut Cursor<'_>, key: &str, count: usize) -> Result<Vec<String>> {
    let what = format!("the {count} elements of {key}");
    // Each has a length of eight bytes, so no more memory is claimed than the file's length times a constant.
    if count > cursor.rest.len() / 8 {
        return Err(BadGguf::CutOff(what));
    }
    cursor.claim(count.saturating_mul(STRING_COST))?;
    let mut texts = Vec::with_capacity(count);
    for _ in 0..count {
        let text = cursor.text(&what)?;
        cursor.claim(text.len())?;
        texts.push(text.to_owned());
    }
    Ok(texts)
}

/// The tensors' entries. Their offsets still count from the start of the data.
fn read_tensors(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<TensorInfo>> {
    let mut seen = HashSet::with_capacity(count);
    let mut tensors = Vec::with_capacity(count);
    for i in 0..count {
        let name = cursor.text(&format!("the name of tensor {i}"))?;
        rules::check_name(name)?;
        if !seen.insert(name) {
            return Err(BadGguf::Broken(format!("tensor {name} is given twice")));
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
