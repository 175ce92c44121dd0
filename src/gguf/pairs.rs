//! Reading the key-value section. Text must be UTF-8, arrays hold no arrays, and booleans are 0 or 1.

use std::collections::HashSet;

use super::bad::{BadGguf, Result};
use super::cursor::Cursor;
use super::rules;
use super::value::{Array, Metadata, Value, ValueType};

/// Most keys of a file; real ones have under a hundred.
const MAX_KEYS: usize = 65_536;
/// Fewest bytes of a key with its value.
const LEAST_PAIR: usize = 14;
/// Bytes of memory that a string takes beside its text.
const STRING_COST: usize = 48;

/// Reads `count` keys with their values.
pub(super) fn read_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Metadata> {
    cursor.check_count("keys", count, MAX_KEYS, LEAST_PAIR)?;
    let mut seen = HashSet::with_capacity(count);
    let mut pairs = Vec::with_capacity(count);
    for i in 0..count {
        let key = cursor.text(&format!("key {i}"))?;
        rules::check_key(key)?;
        if !seen.insert(key) {
            return Err(BadGguf::Broken(format!("key {key} occurs twice")));
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
        ValueType::Array => {
            return Err(BadGguf::Broken(format!("key {key} is an array of arrays, which is unsupported")));
        }
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
    if count > cursor.left() / 8 {
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
