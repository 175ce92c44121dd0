//! Looking at a model in GGUF: its tensors, and its keys with long arrays cut short.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value as Json;

use super::stats::{Reader, all_stats};
use super::{Inspection, Kind, TensorEntry};
use crate::adapter::ADAPTER_CONFIG;
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::error::{Error, Result, shown};
use crate::gguf::{GgufModel, ModelTensor, Value, lint_model};

/// Elements of an array that are shown.
const SHOWN: usize = 8;

/// The first file of the model in the directory `dir`, if all that it holds of weights is one model in GGUF.
pub(super) fn only_model(dir: &Path) -> Result<Option<PathBuf>> {
    let others = [SINGLE_FILE, INDEX_FILE, ADAPTER_CONFIG];
    if !dir.is_dir() || others.iter().any(|name| dir.join(name).exists()) {
        return Ok(None);
    }
    let first = |model: &GgufModel| model.files.first().map(|file| file.path().to_owned());
    let models = GgufModel::all_in(dir)?;
    match &models[..] {
        [] => Ok(None),
        [model] => Ok(first(model)),
        many => {
            let names: Vec<String> = many.iter().filter_map(first).map(|path| shown(&path)).collect();
            let problem = format!("{} holds several models: {}", shown(dir), names.join(", "));
            Err(Error::invalid(problem, "name one of the files"))
        }
    }
}

/// What an inspection tells of GGUF alone.
#[derive(Debug, Serialize)]
pub struct GgufSummary {
    /// Version of the format.
    pub version: u32,
    /// Number of files.
    pub files: usize,
    /// Bits of all tensors for each of their elements.
    pub bits_per_weight: f64,
    /// Keys in the file's order; without those about a split.
    pub keys: Vec<KeyEntry>,
}

/// A key and its value.
#[derive(Debug, Serialize)]
pub struct KeyEntry {
    /// The key.
    pub key: String,
    /// Type of the value, as llama.cpp's tools print it: "u32"; of an array's elements, in brackets: "[str]".
    #[serde(rename = "type")]
    pub kind: String,
    /// Number of an array's elements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// The value; of an array, its first elements.
    pub value: Json,
}

impl KeyEntry {
    fn of(key: &str, value: &Value) -> Self {
        let key = key.to_owned();
        match value {
            Value::Array(array) => {
                let first = (0..SHOWN).filter_map(|i| array.get(i)).map(|value| json(&value)).collect();
                let kind = format!("[{}]", array.element_type().name());
                Self { key, kind, count: Some(array.len()), value: Json::Array(first) }
            }
            _ => Self { key, kind: value.value_type().name().to_owned(), count: None, value: json(value) },
        }
    }
}

/// A value that is no array. What JSON has no number for is null.
fn json(value: &Value) -> Json {
    match value {
        Value::Bool(v) => Json::from(*v),
        Value::String(text) => Json::from(text.as_str()),
        // The shortest digits that give the same f32, not those of the f64 that it becomes.
        Value::F32(v) => v.to_string().parse::<f64>().map_or(Json::Null, Json::from),
        Value::F64(v) => Json::from(*v),
        _ => value.as_u64().map_or_else(|| Json::from(signed(value)), Json::from),
    }
}

/// A negative integer.
fn signed(value: &Value) -> Option<i64> {
    match value {
        Value::I8(v) => Some(i64::from(*v)),
        Value::I16(v) => Some(i64::from(*v)),
        Value::I32(v) => Some(i64::from(*v)),
        Value::I64(v) => Some(*v),
        _ => None,
    }
}

/// Looks at the model of which `path` is the file or a part; with `stats`, reads every value that can be decoded.
pub(super) fn inspect(path: &Path, stats: bool, jobs: usize) -> Result<Inspection> {
    let model = GgufModel::open(path)?;
    let values = || model.tensors.iter().map(|t| (t.bytes(), Reader::of_gguf(t.info().kind))).collect::<Vec<_>>();
    let mut found = if stats { all_stats(&values(), jobs) } else { Vec::new() }.into_iter();
    let entry = |tensor: &ModelTensor| TensorEntry {
        name: tensor.info().name.clone(),
        dtype: tensor.info().kind.name().to_owned(),
        shape: tensor.info().shape.clone(),
        bytes: tensor.info().len as u64,
        file: tensor.file.name(),
        stats: found.next().flatten(),
    };
    let tensors: Vec<TensorEntry> = model.tensors.iter().map(entry).collect();
    let bytes = tensors.iter().map(|t| t.bytes).sum::<u64>();
    // No type has more than eight elements to a byte, so neither sum overflows.
    let parameters = model.tensors.iter().map(|t| t.info().elements() as u64).sum::<u64>();
    let gguf = GgufSummary {
        version: model.files[0].header().version,
        files: model.files.len(),
        bits_per_weight: if parameters == 0 { 0.0 } else { bytes as f64 * 8.0 / parameters as f64 },
        keys: model.metadata.iter().map(|(key, value)| KeyEntry::of(key, value)).collect(),
    };
    Ok(Inspection {
        path: path.to_owned(),
        kind: Kind::Gguf,
        tensors,
        bytes,
        parameters,
        config: None,
        gguf: Some(gguf),
        warnings: lint_model(&model).into_iter().map(|finding| finding.problem).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        let cases = [
            (Value::F32(1e-6), "1e-6"),
            (Value::F32(0.1), "0.1"),
            (Value::F32(f32::NAN), "null"),
            (Value::F64(0.5), "0.5"),
            (Value::I8(-3), "-3"),
            (Value::I64(i64::MIN), "-9223372036854775808"),
            (Value::U64(u64::MAX), "18446744073709551615"),
            (Value::Bool(true), "true"),
            (Value::string("a\"b"), r#""a\"b""#),
        ];
        for (value, expected) in cases {
            assert_eq!(json(&value).to_string(), expected);
        }
    }

    #[test]
    fn arrays_are_cut_short() {
        let entry = KeyEntry::of("a", &Value::strings((0..100).map(|i| i.to_string())));
        assert_eq!((entry.kind.as_str(), entry.count), ("[str]", Some(100)));
        assert_eq!(entry.value.as_array().unwrap().len(), SHOWN);
    }
}
