//! What quantizing changes in a file's metadata: the same keys in the same order as llama-quantize writes.

use crate::gguf::imatrix::ImatrixInfo;
use crate::gguf::{Array, Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, Value};

/// Version of the block formats, `GGML_QNT_VERSION` in ggml.h.
const QUANTIZATION_VERSION: u32 = 2;

/// Most bytes of a text that llama-quantize gives a key: it keeps them in an array of 128, with a zero.
const TEXT_MAX: usize = 127;

/// The metadata of a quantized file: those of its source with `file_type` (a `general.file_type`) and what the
/// importance matrix was. Keys that are set move to the end, as gguf.cpp's writer does it.
pub fn finish_metadata(metadata: Metadata, file_type: u32, imatrix: Option<&ImatrixInfo>) -> Metadata {
    let mut finished: Metadata = metadata.into_iter().map(|(key, value)| (key, as_c(value))).collect();
    let mut append = |key: &str, value| {
        finished.remove(key);
        finished.set(key, value);
    };
    append("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    append("general.file_type", Value::U32(file_type));
    if let Some(imatrix) = imatrix {
        append("quantize.imatrix.file", Value::string(cut(&imatrix.file)));
        if let Some(dataset) = &imatrix.dataset {
            append("quantize.imatrix.dataset", Value::string(cut(dataset)));
        }
        append("quantize.imatrix.entries_count", Value::U32(imatrix.entries));
        if imatrix.chunks > 0 {
            append("quantize.imatrix.chunks_count", Value::U32(imatrix.chunks));
        }
    }
    // The output is whole, or is split again.
    for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS] {
        finished.remove(key);
    }
    finished
}

/// A value as it passes through C: texts end at a zero.
fn as_c(mut value: Value) -> Value {
    let cut = |text: &mut String| text.truncate(text.find('\0').unwrap_or(text.len()));
    match &mut value {
        Value::String(text) => cut(text),
        Value::Array(Array::String(texts)) => texts.iter_mut().for_each(cut),
        _ => {}
    }
    value
}

/// `text` cut to what fits; a character that would be cut in two goes whole.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_set_move_to_the_end() {
        let source: Metadata = [
            ("general.file_type", Value::U32(32)),
            ("general.architecture", Value::string("llama")),
            ("split.no", Value::U16(0)),
            ("general.quantization_version", Value::U32(2)),
            ("tokenizer.ggml.tokens", Value::strings(["a\0b", "c"])),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect();
        let info = ImatrixInfo { file: "层".repeat(50), dataset: Some("calib.txt".to_owned()), entries: 3, chunks: 0 };
        let finished = finish_metadata(source, 15, Some(&info));
        let keys: Vec<_> = finished.iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            [
                "general.architecture",
                "tokenizer.ggml.tokens",
                "general.quantization_version",
                "general.file_type",
                "quantize.imatrix.file",
                "quantize.imatrix.dataset",
                "quantize.imatrix.entries_count",
            ]
        );
        assert_eq!(finished.get("general.file_type"), Some(&Value::U32(15)));
        assert_eq!(finished.get("tokenizer.ggml.tokens"), Some(&Value::strings(["a", "c"])));
        assert_eq!(finished.get("quantize.imatrix.file"), Some(&Value::string("层".repeat(42))));
    }
}
