//! What is wrong with a GGUF file that can be read all the same: bytes that belong to nothing, and keys that do not fit
//! one another. What makes a file unreadable is in `read`.

use super::file::GgufFile;
use super::model::GgufModel;
use super::value::{Metadata, Value};

/// Keys of arrays that have an element for each token.
const PER_TOKEN: [&str; 2] = ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"];
const TOKENS: &str = "tokenizer.ggml.tokens";
const EMBEDDING: &str = "token_embd.weight";

/// What is odd about the bytes of `file` that no key and no tensor holds: padding that is not zero or not there, and
/// bytes after the end. Touches the end of every tensor.
pub fn lint_padding(file: &GgufFile) -> Vec<String> {
    let (header, bytes) = (file.header(), file.all_bytes());
    let mut found = Vec::new();
    let mut at = header.len;
    let mut before = "the header";
    let begin = |after: usize| after.next_multiple_of(header.alignment);
    for tensor in &header.tensors {
        if bytes[at..tensor.offset].iter().any(|byte| *byte != 0) {
            found.push(format!("the padding after {before} is not zero"));
        }
        (at, before) = (tensor.offset + tensor.len, &tensor.name);
    }
    let end = begin(at);
    let rest = &bytes[at..];
    if rest[..rest.len().min(end - at)].iter().any(|byte| *byte != 0) {
        found.push(format!("the padding after {before} is not zero"));
    }
    if bytes.len() > end {
        found.push(format!("{} bytes after the end belong to no tensor", bytes.len() - end));
    } else if bytes.len() < end && !header.tensors.is_empty() {
        found.push(format!("the padding after the last tensor lacks {} bytes", end - bytes.len()));
    }
    found
}

/// What is odd about the keys and tensors of `model`, from which a loader would stumble.
pub fn lint_model(model: &GgufModel) -> Vec<String> {
    let GgufModel { metadata, tensors, .. } = model;
    let mut found = Vec::new();
    let is_imatrix = metadata.get("general.type").and_then(Value::as_str) == Some("imatrix");
    if metadata.architecture().is_none() && !is_imatrix {
        found.push("general.architecture is missing, without which llama.cpp loads nothing".to_owned());
    }
    if tensors.is_empty() {
        found.push("there are no tensors".to_owned());
    }
    let Some(tokens) = metadata.get(TOKENS).and_then(len) else { return found };
    for key in PER_TOKEN {
        if let Some(len) = metadata.get(key).and_then(len).filter(|len| *len != tokens) {
            found.push(format!("{key} has {len} elements, and {TOKENS} has {tokens}"));
        }
    }
    let rows = model.tensor(EMBEDDING).and_then(|tensor| tensor.info().shape.first());
    if let Some(rows) = rows.filter(|rows| **rows != tokens) {
        found.push(format!("{EMBEDDING} has {rows} rows, and {TOKENS} has {tokens} elements"));
    }
    found.extend(bad_ids(metadata, tokens));
    found
}

/// Special tokens beyond the vocabulary.
fn bad_ids(metadata: &Metadata, tokens: usize) -> impl Iterator<Item = String> {
    let id = move |(key, value): (&str, &Value)| {
        let name = key.strip_prefix("tokenizer.ggml.")?.strip_suffix("_token_id")?;
        let id = value.as_u64().filter(|id| *id >= tokens as u64)?;
        Some(format!("the {name} token is {id}, and there are {tokens} tokens"))
    };
    metadata.iter().filter_map(id)
}

/// Number of an array's elements.
fn len(value: &Value) -> Option<usize> {
    if let Value::Array(array) = value { Some(array.len()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{TensorForm, TensorType, lay_out};

    /// What lint says of a file with these keys and two tensors, after `change`.
    fn lint(keys: &[(&str, Value)], change: impl Fn(&mut Vec<u8>)) -> Vec<String> {
        let metadata = keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let form = |name| TensorForm { name, shape: &[3], kind: TensorType::F32 };
        let made = lay_out(&metadata, &[form(EMBEDDING), form("b")]).unwrap();
        let mut bytes = made.header;
        bytes.resize(made.total as usize, 0);
        change(&mut bytes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let model = GgufModel::open(file.path()).unwrap();
        let mut found = lint_padding(&model.files[0]);
        found.extend(lint_model(&model));
        found
    }

    #[test]
    fn bytes_that_belong_to_nothing() {
        let keys = [("general.architecture", Value::string("llama"))];
        let of = |change: fn(&mut Vec<u8>)| lint(&keys, change);
        assert_eq!(of(|_| ()), [""; 0]);
        let from_end = |bytes: &mut Vec<u8>, back: usize| {
            let at = bytes.len() - back;
            bytes[at] = 1;
        };
        assert!(lint(&keys, |b| from_end(b, 1))[0].contains("after b is not zero"));
        assert!(lint(&keys, |b| from_end(b, 33))[0].contains("after token_embd.weight is not zero"));
        assert!(lint(&keys, |b| from_end(b, 65))[0].contains("after the header is not zero"));
        assert_eq!(lint(&keys, |b| from_end(b, 21)), [""; 0], "the last byte of a tensor");
        assert!(of(|b| b.truncate(b.len() - 20))[0].contains("lacks 20 bytes"));
        assert!(of(|b| b.extend([0; 3]))[0].contains("3 bytes after the end"));
    }

    #[test]
    fn keys_that_do_not_fit_one_another() {
        let found = lint(
            &[
                (TOKENS, Value::strings(["a", "b"])),
                ("tokenizer.ggml.scores", Value::Array(crate::gguf::Array::F32(vec![0.0]))),
                ("tokenizer.ggml.token_type", Value::Array(crate::gguf::Array::I32(vec![1, 1]))),
                ("tokenizer.ggml.eos_token_id", Value::U32(2)),
                ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ],
            |_| (),
        );
        assert_eq!(found.len(), 4, "{found:?}");
        for (said, expected) in found.iter().zip(["architecture", "scores has 1", "has 3 rows", "eos token is 2"]) {
            assert!(said.contains(expected), "{said}");
        }
    }
}
