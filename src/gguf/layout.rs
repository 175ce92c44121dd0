//! Where every byte of a GGUF file goes, before the first is written: the header as llama.cpp's own writer makes it, and
//! each tensor's place. Cutting a model into parts is in `split`.

use std::collections::HashSet;

use super::rules::{self, MAGIC, VERSION};
use super::value::{Array, Metadata, Value, ValueType};
use crate::error::{Error, Result, escaped};
use crate::ggml::TensorType;

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
        Error::unsupported(escaped(&problem), "GGUF can't hold it: change the name, the shape or the type")
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
            return Err(format!("tensor {name} occurs twice"));
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::gguf::Header;

    type Tensor = (Vec<usize>, TensorType);

    /// Headers for these tensors, which are named by their place.
    fn laid_out(metadata: &Metadata, tensors: &[Tensor]) -> Result<Layout> {
        let names: Vec<String> = (0..tensors.len()).map(|i| format!("blk.{i}.weight")).collect();
        let forms: Vec<_> =
            names.iter().zip(tensors).map(|(name, (shape, kind))| TensorForm { name, shape, kind: *kind }).collect();
        lay_out(metadata, &forms)
    }

    fn metadata(pairs: Vec<(&str, Value)>) -> Metadata {
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    #[test]
    fn writes_what_the_format_says_byte_for_byte() {
        let keys = metadata(vec![("general.alignment", Value::U32(8)), ("b", Value::Bool(true))]);
        let made = laid_out(&keys, &[(vec![2, 32], TensorType::Q4_0), (vec![1], TensorType::F16)]).unwrap();
        let mut expected = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x11\0\0\0\0\0\0\0general.alignment\x04\0\0\0\x08\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0b\x07\0\0\0\x01");
        expected.extend(b"\x0c\0\0\0\0\0\0\0blk.0.weight\x02\0\0\0\x20\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        expected.extend(b"\x02\0\0\0\0\0\0\0\0\0\0\0");
        expected.extend(b"\x0c\0\0\0\0\0\0\0blk.1.weight\x01\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x28\0\0\0\0\0\0\0");
        expected.resize(expected.len().next_multiple_of(8), 0);
        assert_eq!(made.header, expected);
        let start = expected.len() as u64;
        assert_eq!((made.offsets, made.lens, made.total), (vec![start, start + 40], vec![36, 2], start + 48));
    }

    #[test]
    fn refuses_what_no_reader_takes() {
        let none = Metadata::default();
        let named = |name: &str| {
            lay_out(&Metadata::default(), &[TensorForm { name, shape: &[1], kind: TensorType::F32 }; 1]).is_err()
        };
        assert!(named(&"n".repeat(64)) && named("") && named("a\0") && !named(&"n".repeat(63)));
        for (shape, kind) in [
            (vec![1; 5], TensorType::F32),
            (vec![33], TensorType::Q8_0),
            (vec![1 << 62], TensorType::F32),
            (vec![usize::MAX, 2], TensorType::I8),
        ] {
            assert!(laid_out(&none, &[(shape, kind)]).is_err());
        }
        let huge = (vec![i64::MAX as usize], TensorType::I8);
        assert!(laid_out(&none, &[huge.clone(), huge.clone(), huge]).is_err(), "the sum overflows");
        for value in [Value::U32(12), Value::U32(0), Value::U32(1 << 30), Value::I32(32)] {
            assert!(laid_out(&metadata(vec![("general.alignment", value)]), &[]).is_err());
        }
        let twice = [TensorForm { name: "a", shape: &[1], kind: TensorType::F32 }; 2];
        assert!(lay_out(&none, &twice).is_err());
    }

    #[test]
    fn trims_as_ggml_counts_axes() {
        assert_eq!(trimmed(&[]), [1]);
        assert_eq!(trimmed(&[1]), [1]);
        assert_eq!(trimmed(&[1, 1, 5]), [5]);
        assert_eq!(trimmed(&[1, 3, 1]), [3, 1]);
        assert_eq!(trimmed(&[0, 5]), [0, 5]);
    }

    fn any_array() -> impl Strategy<Value = Array> {
        prop_oneof![
            vec(any::<u8>(), 0..5).prop_map(Array::U8),
            vec(any::<i8>(), 0..5).prop_map(Array::I8),
            vec(any::<u16>(), 0..5).prop_map(Array::U16),
            vec(any::<i16>(), 0..5).prop_map(Array::I16),
            vec(any::<u32>(), 0..5).prop_map(Array::U32),
            vec(any::<i32>(), 0..5).prop_map(Array::I32),
            vec(any::<f32>(), 0..5).prop_map(Array::F32),
            vec(any::<bool>(), 0..5).prop_map(Array::Bool),
            vec(any::<String>(), 0..5).prop_map(Array::String),
            vec(any::<u64>(), 0..5).prop_map(Array::U64),
            vec(any::<i64>(), 0..5).prop_map(Array::I64),
            vec(any::<f64>(), 0..5).prop_map(Array::F64),
        ]
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<u8>().prop_map(Value::U8),
            any::<i8>().prop_map(Value::I8),
            any::<u16>().prop_map(Value::U16),
            any::<i16>().prop_map(Value::I16),
            any::<u32>().prop_map(Value::U32),
            any::<i32>().prop_map(Value::I32),
            any::<f32>().prop_map(Value::F32),
            any::<bool>().prop_map(Value::Bool),
            any::<String>().prop_map(Value::String),
            any_array().prop_map(Value::Array),
            any::<u64>().prop_map(Value::U64),
            any::<i64>().prop_map(Value::I64),
            any::<f64>().prop_map(Value::F64),
        ]
    }

    /// Shapes of up to four axes whose rows are whole blocks.
    fn any_tensor() -> impl Strategy<Value = Tensor> {
        let kinds: Vec<TensorType> = TensorType::all().collect();
        (proptest::sample::select(kinds), 0usize..4, vec(0usize..4, 0..4)).prop_map(|(kind, blocks, mut shape)| {
            shape.push(blocks * kind.block_len());
            (shape, kind)
        })
    }

    proptest! {
        #[test]
        fn what_is_laid_out_is_read_back(
            pairs in vec(("[a-z.]{1,9}", any_value()), 0..6),
            power in proptest::option::of(0u32..10),
            tensors in vec(any_tensor(), 0..6),
        ) {
            let mut metadata: Metadata = pairs.into_iter().collect();
            if let Some(power) = power {
                metadata.set("general.alignment", Value::U32(1 << power));
            }
            let made = laid_out(&metadata, &tensors).unwrap();
            let mut file = made.header.clone();
            file.resize(made.total as usize, 0xab);
            let read = Header::parse(&file).unwrap();
            prop_assert_eq!(&read.metadata, &metadata);
            prop_assert_eq!(read.alignment, power.map_or(32, |power| 1 << power));
            prop_assert_eq!(read.data_start, made.header.len());
            prop_assert_eq!(read.tensors.len(), tensors.len());
            for (i, (read, (shape, kind))) in read.tensors.iter().zip(&tensors).enumerate() {
                let place = (read.offset as u64, read.len as u64);
                prop_assert_eq!((&read.shape, read.kind, place), (shape, *kind, (made.offsets[i], made.lens[i])));
            }
            let end = made.offsets.last().zip(made.lens.last()).map_or(made.header.len() as u64, |(at, len)| at + len);
            prop_assert!(Header::parse(&file[..end as usize]).is_ok(), "the last padding may be absent");
            if made.lens.last().is_some_and(|len| *len > 0) {
                prop_assert!(Header::parse(&file[..end as usize - 1]).is_err(), "the data may not");
            }
        }
    }
}
