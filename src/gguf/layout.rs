//! Where every byte of a GGUF file goes, before the first is written: the header as llama.cpp's own writer makes it, and
//! each tensor's place. Cutting a model into parts is in `split`.

use std::collections::HashSet;

use super::rules::{self, MAGIC, VERSION};
use super::types::TensorType;
use super::value::{Array, Metadata, Value, ValueType};
use crate::error::{Error, Result, escaped};

/// What a file says of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorForm<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape, outermost axis first; written in reverse, and otherwise as it is: see [`trimmed`].
    pub shape: &'a [usize],
    /// Its type.
    pub kind: TensorType,
}

/// The places of everything in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// All bytes before the first tensor, with padding.
    pub header: Vec<u8>,
    /// First byte of each tensor, counted from the start of the file.
    pub offsets: Vec<u64>,
    /// Bytes of each tensor, without the zeros that follow to the next multiple of the alignment.
    pub lens: Vec<u64>,
    /// Bytes of the file, the zeros after the last tensor included.
    pub total: u64,
}

/// `shape` as llama.cpp's C writer gives it: without outermost axes of length 1, but with at least one axis.
/// gguf-py keeps them. (`ggml_n_dims` of ggml.c.)
pub fn trimmed(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|length| **length == 1).count();
    match shape {
        [] => &[1],
        _ => &shape[ones.min(shape.len() - 1)..],
    }
}

/// Lays out a file with `metadata` and `tensors`, in their order. `general.alignment` is honoured.
pub fn lay_out(metadata: &Metadata, tensors: &[TensorForm<'_>]) -> Result<Layout> {
    lay_out_strictly(metadata, tensors).map_err(|problem| {
        Error::refused(escaped(&problem), "GGUF can't hold it: change the name, the shape or the type")
    })
}

fn lay_out_strictly(metadata: &Metadata, tensors: &[TensorForm<'_>]) -> Result<Layout, String> {
    let alignment = rules::alignment(metadata)?;
    let mut header = Writer(Vec::new());
    header.0.extend(MAGIC);
    header.u32(VERSION);
    header.u64(tensors.len());
    header.u64(metadata.len());
    for (key, value) in metadata.iter() {
        rules::check_key(key)?;
        header.text(key);
        header.value(value);
    }
    let (mut lens, mut places) = (Vec::with_capacity(tensors.len()), Vec::with_capacity(tensors.len()));
    let mut end = 0usize;
    let mut seen = HashSet::with_capacity(tensors.len());
    for TensorForm { name, shape, kind } in tensors {
        rules::check_name(name)?;
        if !seen.insert(*name) {
            return Err(format!("tensor {name} is given twice"));
        }
        let len = rules::tensor_len(name, shape, *kind)?;
        header.text(name);
        header.u32(shape.len() as u32);
        shape.iter().rev().for_each(|length| header.u64(*length));
        header.u32(kind.id());
        header.u64(end);
        places.push(end);
        lens.push(len as u64);
        let next = rules::padded(len, alignment).and_then(|len| end.checked_add(len));
        end = next.ok_or_else(|| format!("tensor {name}: the file's size overflows"))?;
    }
    let mut header = header.0;
    header.resize(header.len().next_multiple_of(alignment), 0);
    let start = header.len();
    let total = start.checked_add(end).ok_or("the file's size overflows")? as u64;
    let offsets = places.into_iter().map(|place| (start + place) as u64).collect();
    Ok(Layout { header, offsets, lens, total })
}

/// The bytes of a header.
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: usize) {
        self.0.extend((value as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len());
        self.0.extend(text.as_bytes());
    }

    /// The type of a value, and the value.
    fn value(&mut self, value: &Value) {
        macro_rules! number {
            ($kind:ident, $value:expr) => {{
                self.u32(ValueType::$kind as u32);
                self.0.extend($value.to_le_bytes());
            }};
        }
        match value {
            Value::U8(v) => number!(U8, v),
            Value::I8(v) => number!(I8, v),
            Value::U16(v) => number!(U16, v),
            Value::I16(v) => number!(I16, v),
            Value::U32(v) => number!(U32, v),
            Value::I32(v) => number!(I32, v),
            Value::F32(v) => number!(F32, v),
            Value::Bool(v) => number!(Bool, u8::from(*v)),
            Value::String(text) => {
                self.u32(ValueType::String as u32);
                self.text(text);
            }
            Value::Array(array) => {
                self.u32(ValueType::Array as u32);
                self.array(array);
            }
            Value::U64(v) => number!(U64, v),
            Value::I64(v) => number!(I64, v),
            Value::F64(v) => number!(F64, v),
        }
    }

    /// The type of an array's elements, their number, and the elements.
    fn array(&mut self, array: &Array) {
        macro_rules! numbers {
            ($kind:ident, $values:expr) => {{
                self.u32(ValueType::$kind as u32);
                self.u64($values.len());
                $values.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
            }};
        }
        match array {
            Array::U8(values) => numbers!(U8, values),
            Array::I8(values) => numbers!(I8, values),
            Array::U16(values) => numbers!(U16, values),
            Array::I16(values) => numbers!(I16, values),
            Array::U32(values) => numbers!(U32, values),
            Array::I32(values) => numbers!(I32, values),
            Array::F32(values) => numbers!(F32, values),
            Array::U64(values) => numbers!(U64, values),
            Array::I64(values) => numbers!(I64, values),
            Array::F64(values) => numbers!(F64, values),
            Array::Bool(values) => {
                self.u32(ValueType::Bool as u32);
                self.u64(values.len());
                self.0.extend(values.iter().map(|v| u8::from(*v)));
            }
            Array::String(texts) => {
                self.u32(ValueType::String as u32);
                self.u64(texts.len());
                texts.iter().for_each(|text| self.text(text));
            }
        }
    }
}
