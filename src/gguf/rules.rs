//! What holds of every GGUF file, read or written: the rules of names, shapes and sizes, and qft's own limits. The rules
//! are those of gguf.cpp; the limits are above all that real models need.

use super::value::{Metadata, Value};
use crate::ggml::TensorType;

/// The version that is written. Version 2 differs only in that it says nothing of big-endian files.
pub(super) const VERSION: u32 = 3;
/// The letters that every file begins with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensors where `general.alignment` says nothing.
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
/// The key of another alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Largest alignment that is read: a larger one would only make padding a way to ask for memory.
const MAX_ALIGNMENT: usize = 1 << 20;
/// Most axes of a tensor (`GGML_MAX_DIMS`).
const MAX_AXES: usize = 4;
/// One more than the bytes of a tensor's longest name (`GGML_MAX_NAME`).
const NAME_END: usize = 64;
/// Bytes of the longest key that the format's page allows.
const MAX_KEY: usize = u16::MAX as usize;

/// The alignment that `metadata` sets, in bytes.
pub(super) fn alignment(metadata: &Metadata) -> Result<usize, String> {
    let value = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(value)) => *value as usize,
        Some(_) => return Err(format!("{ALIGNMENT_KEY} is not a u32")),
    };
    if !value.is_power_of_two() {
        return Err(format!("{ALIGNMENT_KEY} is {value}, which is not a power of two"));
    }
    if value > MAX_ALIGNMENT {
        return Err(format!("{ALIGNMENT_KEY} is {value}; at most {MAX_ALIGNMENT} is supported"));
    }
    Ok(value)
}

/// `at` rounded up to a multiple of `alignment`, a power of two; `None` on overflow.
pub(super) fn padded(at: usize, alignment: usize) -> Option<usize> {
    at.checked_next_multiple_of(alignment)
}

/// Refuses a key that C code would read as another one, or as none.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    match key.len() {
        0 => Err("a key is empty".to_owned()),
        1..=MAX_KEY if !key.contains('\0') => Ok(()),
        1..=MAX_KEY => Err(format!("key {key} contains a zero byte")),
        len => Err(format!("a key has {len} bytes; the format allows {MAX_KEY}")),
    }
}

/// Refuses a tensor's name that ggml can't hold.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name.len() {
        0 => Err("a tensor has an empty name".to_owned()),
        len if len >= NAME_END => Err(format!("tensor {name}: its name has {len} bytes; fewer than 64 are allowed")),
        _ if name.contains('\0') => Err(format!("tensor {name}: its name contains a zero byte")),
        _ => Ok(()),
    }
}

/// Refuses more axes than ggml has.
pub(super) fn check_axes(name: &str, axes: usize) -> Result<(), String> {
    if axes > MAX_AXES { Err(format!("tensor {name}: has {axes} axes; {MAX_AXES} are allowed")) } else { Ok(()) }
}

/// Bytes of a tensor of `shape`, outermost axis first. A tensor without axes has one element. Lengths but for those of 0
/// must not overflow whatever the order in which they are multiplied, which is more than gguf.cpp asks.
pub(super) fn tensor_len(name: &str, shape: &[usize], kind: TensorType) -> Result<usize, String> {
    check_axes(name, shape.len())?;
    let overflow = || format!("tensor {name}: its shape {shape:?} overflows");
    let product = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
    let product = product.filter(|n| i64::try_from(*n).is_ok()).ok_or_else(overflow)?;
    let columns = shape.last().copied().unwrap_or(1);
    if !columns.is_multiple_of(kind.block_len()) {
        return Err(format!(
            "tensor {name}: its rows of {columns} are not a multiple of the block size of {kind} ({})",
            kind.block_len()
        ));
    }
    let elements = if shape.contains(&0) { 0 } else { product };
    kind.row_bytes(elements).ok_or_else(overflow)
}
