//! Bytes of a GGUF file that belong to nothing. What makes a file unreadable is in `read`; what its keys and tensors must
//! keep to is in `release`.

use super::file::GgufFile;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::TensorType;
    use crate::gguf::{TensorForm, Value, lay_out};

    /// What lint says of a file with two tensors, after `change`.
    fn lint(change: impl Fn(&mut Vec<u8>)) -> Vec<String> {
        let metadata = [("general.architecture".to_owned(), Value::string("llama"))].into_iter().collect();
        let form = |name| TensorForm { name, shape: &[3], kind: TensorType::F32 };
        let made = lay_out(&metadata, &[form("a"), form("b")]).unwrap();
        let mut bytes = made.header;
        bytes.resize(made.total as usize, 0);
        change(&mut bytes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        lint_padding(&GgufFile::open(file.path()).unwrap())
    }

    #[test]
    fn bytes_that_belong_to_nothing() {
        assert_eq!(lint(|_| ()), [""; 0]);
        let from_end = |bytes: &mut Vec<u8>, back: usize| {
            let at = bytes.len() - back;
            bytes[at] = 1;
        };
        assert!(lint(|b| from_end(b, 1))[0].contains("after b is not zero"));
        assert!(lint(|b| from_end(b, 33))[0].contains("after a is not zero"));
        assert!(lint(|b| from_end(b, 65))[0].contains("after the header is not zero"));
        assert_eq!(lint(|b| from_end(b, 21)), [""; 0], "the last byte of a tensor");
        assert!(lint(|b| b.truncate(b.len() - 20))[0].contains("lacks 20 bytes"));
        assert!(lint(|b| b.extend([0; 3]))[0].contains("3 bytes after the end"));
    }
}
