//! The metadata of a GGUF file as the reverse conversion (to-hf) reads them: a key that is there but of another type
//! than it must be is refused by name. Passing over it would write a model that behaves differently.

use std::path::Path;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result, escaped};
use crate::gguf::{Array, GgufModel, Metadata, Value};

/// What to do about a tokenizer that can't be made from the keys.
pub(super) const TOKENIZER_REMEDY: &str = "name a directory with the model's tokenizer by ⟦tokenizer⟧";
/// What to do about a broken key that no other directory replaces.
const REMEDY: &str = "the file is broken: download or convert the model again";

/// The metadata of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) metadata: &'a Metadata,
    /// The file that they are from.
    path: &'a Path,
}

impl<'a> Keys<'a> {
    /// The metadata of `model`.
    pub(crate) fn of(model: &'a GgufModel) -> Self {
        Self { metadata: &model.metadata, path: model.files.first().map_or(Path::new(""), |file| file.path()) }
    }

    /// The text that `key` has.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// Whether `key` says yes.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// The token's id that `key` has; whether there is such a token is not checked.
    pub(crate) fn id(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "the id of a token", Value::as_u64)
    }

    /// The id that `tokenizer.ggml.<key>` gives, if there is such a token.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u64>> {
        let id = self.id(&format!("tokenizer.ggml.{key}"))?;
        Ok(id.filter(|id| *id < tokens(self.metadata)))
    }

    /// The finite number that `key` has.
    pub(crate) fn number(&self, key: &str) -> Result<Option<Json>> {
        self.typed(key, "a finite number", decimal)
    }

    /// The finite number that `<architecture>.<key>` has.
    pub(crate) fn number_of_architecture(&self, key: &str) -> Result<Option<Json>> {
        self.number(&self.of_architecture(key))
    }

    /// The text that `<architecture>.<key>` has.
    pub(crate) fn text_of_architecture(&self, key: &str) -> Result<Option<&'a str>> {
        self.text(&self.of_architecture(key))
    }

    /// The texts that `key` has.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<&'a [String]>> {
        self.typed(key, "an array of texts", Value::as_strings)
    }

    /// The `len` whole numbers that `key` has.
    pub(crate) fn whole_numbers(&self, key: &str, len: usize) -> Result<Option<&'a [i32]>> {
        self.typed(key, &format!("an array of {len} i32, one for each token"), |value| match value {
            Value::Array(Array::I32(all)) if all.len() == len => Some(&all[..]),
            _ => None,
        })
    }

    /// The `len` numbers that `key` has.
    pub(crate) fn numbers(&self, key: &str, len: usize) -> Result<Option<&'a [f32]>> {
        self.typed(key, &format!("an array of {len} f32, one for each token"), |value| match value {
            Value::Array(Array::F32(all)) if all.len() == len => Some(&all[..]),
            _ => None,
        })
    }

    /// The error of a `key` that is broken. A tokenizer can come from elsewhere; ids of tokens are in config.json too.
    pub(crate) fn broken(&self, key: &str, problem: &str) -> Error {
        let replaced = key.starts_with("tokenizer.") && !key.ends_with("_token_id");
        let remedy = if replaced { TOKENIZER_REMEDY } else { REMEDY };
        Error::malformed(self.path, format!("the key {} {problem}", escaped(key)), remedy)
    }

    fn of_architecture(&self, key: &str) -> String {
        format!("{}.{key}", self.metadata.architecture().unwrap_or_default())
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let wrong = || self.broken(key, &format!("is {}, and must be {wanted}", described(value)));
        read(value).map(Some).ok_or_else(wrong)
    }
}

/// The number of tokens that the file lists.
pub(super) fn tokens(metadata: &Metadata) -> u64 {
    match metadata.get("tokenizer.ggml.tokens") {
        Some(Value::Array(tokens)) => tokens.len() as u64,
        _ => 0,
    }
}

/// A value for a message, however long it is.
fn described(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("an array of {} {}", array.len(), array.element_type().name()),
        Value::String(text) => format!("the text \"{}\"", escaped(text)),
        Value::Bool(flag) => flag.to_string(),
        number => number.as_f64().map_or_else(String::new, |n| format!("the {} {n}", number.value_type().name())),
    }
}

/// A finite number as JSON; an f32 in the fewest digits that read back as it, which is what a config had before a
/// converter rounded it.
fn decimal(value: &Value) -> Option<Json> {
    match value {
        Value::F32(v) => shortest(*v),
        Value::F64(v) => v.is_finite().then(|| json!(v)),
        Value::I8(v) => Some(json!(v)),
        Value::I16(v) => Some(json!(v)),
        Value::I32(v) => Some(json!(v)),
        Value::I64(v) => Some(json!(v)),
        other => other.as_u64().map(|v| json!(v)),
    }
}

/// See [`decimal`].
pub(crate) fn shortest(value: f32) -> Option<Json> {
    value.to_string().parse::<f64>().ok().filter(|v| v.is_finite()).map(|v| json!(v))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Keys of a file called x.gguf.
    pub(crate) fn keys(metadata: &Metadata) -> Keys<'_> {
        Keys { metadata, path: Path::new("x.gguf") }
    }

    #[test]
    fn what_is_missing_is_none_and_what_is_wrong_is_told() {
        let value = |key: &str, value| (key.to_owned(), value);
        let metadata: Metadata = [
            value("text", Value::string("a")),
            value("tokenizer.ids", Value::Array(Array::I32(vec![7, -1]))),
            value("x.bos_token_id", Value::I32(-1)),
            value("nan", Value::F32(f32::NAN)),
            value("low", Value::I8(-3)),
            value("third", Value::F32(0.1)),
        ]
        .into_iter()
        .collect();
        let keys = keys(&metadata);
        assert_eq!((keys.text("text").unwrap(), keys.text("none").unwrap()), (Some("a"), None));
        assert_eq!((keys.flag("none").unwrap(), keys.id("none").unwrap()), (None, None));
        assert_eq!(keys.number("low").unwrap(), Some(json!(-3)));
        assert_eq!(keys.number("third").unwrap(), Some(json!(0.1)));
        assert_eq!(keys.whole_numbers("tokenizer.ids", 2).unwrap(), Some(&[7, -1][..]));
        let said = [
            (keys.flag("text").map(|_| ()), ["x.gguf: the key text is the text \"a\"", "true or false", "download"]),
            (keys.number("nan").map(|_| ()), ["is the f32 NaN", "a finite number", "download"]),
            (keys.id("x.bos_token_id").map(|_| ()), ["is the i32 -1", "the id of a token", "download"]),
            (keys.texts("tokenizer.ids").map(|_| ()), ["is an array of 2 i32", "an array of texts", "⟦tokenizer"]),
            (keys.whole_numbers("tokenizer.ids", 3).map(|_| ()), ["an array of 2 i32", "of 3 i32", "⟦tokenizer"]),
            (keys.numbers("tokenizer.ids", 2).map(|_| ()), ["an array of 2 i32", "of 2 f32", "⟦tokenizer"]),
        ];
        for (result, mentions) in said {
            let said = result.unwrap_err().to_string();
            assert!(mentions.iter().all(|mention| said.contains(mention)), "{said} should mention {mentions:?}");
        }
    }
}
