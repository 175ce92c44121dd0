//! Cutting a model into parts, where llama-gguf-split cuts it and with the keys that it writes.

use std::ops::Range;

use super::layout::TensorForm;
use super::model::{PartName, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
use super::rules::{self, DEFAULT_ALIGNMENT};
use super::value::{Metadata, Value};
use crate::error::{Error, Result, escaped};

/// One part of a split model.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The part's file name: `STEM-00001-of-00002.gguf`.
    pub name: String,
    /// Its keys: all of the model's in the first, and in each those about the split.
    pub metadata: Metadata,
    /// Which of the model's tensors it holds.
    pub tensors: Range<usize>,
}

/// Cuts a model into parts of at most `max_size` bytes of padded tensors, greedily in order; a larger tensor gets a part
/// of its own. Headers don't count. One part is named and marked as a part as well. (`split_strategy` of gguf-split.cpp,
/// which refuses a first tensor that is too large.)
pub fn split(stem: &str, metadata: &Metadata, tensors: &[TensorForm<'_>], max_size: u64) -> Result<Vec<Part>> {
    const REMEDY: &str = "allow larger parts with ⟦split_max_size⟧";
    let mut starts = vec![0];
    let mut size = 0u64;
    for (i, tensor) in tensors.iter().enumerate() {
        let len = rules::tensor_len(tensor.name, tensor.shape, tensor.kind)
            .and_then(|len| rules::padded(len, DEFAULT_ALIGNMENT).ok_or_else(|| "a tensor's size overflows".to_owned()))
            .map_err(|problem| {
                Error::unsupported(escaped(&problem), "GGUF can't hold it: change the shape or the type")
            })?;
        let next = size.saturating_add(len as u64);
        if next > max_size && i > 0 {
            starts.push(i);
            size = len as u64;
        } else {
            size = next;
        }
    }
    let count = u16::try_from(starts.len())
        .map_err(|_| Error::invalid(format!("{} parts are more than GGUF can count", starts.len()), REMEDY))?;
    let total = i32::try_from(tensors.len())
        .map_err(|_| Error::invalid(format!("{} tensors are more than a split can count", tensors.len()), REMEDY))?;
    let ends = starts.iter().skip(1).copied().chain([tensors.len()]);
    let part = |(number, tensors): (u16, Range<usize>)| {
        let mut metadata = if number == 0 { metadata.clone() } else { Metadata::default() };
        // The count is last, since llama-gguf-split sets it again when it knows it.
        let keys =
            [(SPLIT_NO, Value::U16(number)), (SPLIT_TENSORS, Value::I32(total)), (SPLIT_COUNT, Value::U16(count))];
        for (key, value) in keys {
            metadata.remove(key);
            metadata.set(key, value);
        }
        let name = PartName { stem: stem.to_owned(), index: number.into(), count: count.into() };
        Part { name: name.to_string(), metadata, tensors }
    };
    Ok((0..count).zip(starts.iter().zip(ends).map(|(start, end)| *start..end)).map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::TensorType;

    fn parts(lens: &[usize], max_size: u64) -> Vec<Part> {
        let shapes: Vec<[usize; 1]> = lens.iter().map(|len| [*len]).collect();
        let form = |shape: &'static [usize]| TensorForm { name: "x", shape, kind: TensorType::I8 };
        let forms: Vec<_> = shapes.iter().map(|shape| TensorForm { shape, ..form(&[]) }).collect();
        let metadata = [("split.no", Value::U16(7)), ("a", Value::U8(1))].map(|(key, value)| (key.to_owned(), value));
        split("stem", &metadata.into_iter().collect(), &forms, max_size).unwrap()
    }

    #[test]
    fn padded_tensors_fill_parts_in_order() {
        let cuts =
            |lens: &[usize], max| parts(lens, max).into_iter().map(|part| part.tensors.len()).collect::<Vec<_>>();
        assert_eq!(cuts(&[32, 33, 1, 32], 96), [2, 2]);
        assert_eq!(cuts(&[32, 33, 1, 32], 95), [1, 1, 2]);
        assert_eq!(cuts(&[500, 1, 500, 1], 64), [1, 1, 1, 1], "a large one has its own");
        assert_eq!(cuts(&[], 64), [0]);
        assert_eq!(cuts(&[1, 1], u64::MAX), [2]);
    }

    #[test]
    fn the_first_part_has_all_keys_and_each_says_which_it_is() {
        let parts = parts(&[32, 32], 32);
        assert_eq!(parts[1].name, "stem-00002-of-00002.gguf");
        let keys = |part: &Part| part.metadata.iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(&parts[0]), ["a", SPLIT_NO, SPLIT_TENSORS, SPLIT_COUNT]);
        assert_eq!(keys(&parts[1]), [SPLIT_NO, SPLIT_TENSORS, SPLIT_COUNT]);
        assert_eq!(parts[1].metadata.get(SPLIT_NO), Some(&Value::U16(1)));
    }
}
