//! The rules that a GGUF file must keep to load in llama.cpp and to be correct, one row each. The same rows look at a
//! file that is planned, before its first byte is written, and at any file that is verified. What config.json asks of
//! llama.cpp is in `arch`; what makes a file unreadable is in `read`, odd bytes are in `lint`.

mod ignored;
mod vocabulary;

use super::disk::{file_name, tells_of_disk};
use super::model::GgufModel;
use super::value::{Array, Metadata, Value};
use crate::error::{Error, Result, escaped};

pub(crate) use ignored::ignored;

const TOKENS: &str = "tokenizer.ggml.tokens";
const EMBEDDING: &str = "token_embd.weight";

/// How grave it is that a rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// llama.cpp does not load the file, or what it computes is noise. None is written, and it is a problem to `verify`.
    Refuse,
    /// It loads, and something in it is wrong: a warning to its writer, and a problem to `verify`.
    Wrong,
    /// It loads, and its reader should know: a warning, and a note of `verify`.
    Tell,
}

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How grave that is.
    pub verdict: Verdict,
    /// What is so.
    pub problem: String,
    /// What a writer can do.
    remedy: &'static str,
}

/// What the rules look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contents<'a> {
    metadata: &'a Metadata,
    /// Number of tensors.
    tensors: usize,
    /// Number of tensors that an importance matrix can have weights for.
    matrices: usize,
    /// Rows of the embedding of tokens.
    rows: Option<usize>,
}

/// A rule: what is wrong, a sentence each.
struct Rule {
    check: fn(&Contents<'_>) -> Vec<String>,
    verdict: Verdict,
    remedy: &'static str,
}

const BROKEN: &str = "download or convert the model again: its GGUF metadata is broken";
const TOKENIZER: &str = "take tokenizer and config.json from the same model, or convert that model again";

const RULES: [Rule; 12] = [
    Rule { check: architecture, verdict: Verdict::Wrong, remedy: BROKEN },
    Rule { check: any_tensor, verdict: Verdict::Wrong, remedy: BROKEN },
    Rule { check: vocabulary::lengths, verdict: Verdict::Refuse, remedy: BROKEN },
    Rule { check: vocabulary::rows, verdict: Verdict::Refuse, remedy: TOKENIZER },
    Rule {
        check: vocabulary::once,
        verdict: Verdict::Refuse,
        remedy: "rename or remove one of the two in the tokenizer of the model, and convert it again",
    },
    Rule { check: vocabulary::ids, verdict: Verdict::Wrong, remedy: TOKENIZER },
    Rule { check: vocabulary::pre, verdict: Verdict::Wrong, remedy: "convert the model again" },
    Rule {
        check: finite,
        verdict: Verdict::Refuse,
        remedy: "correct the value in the model's original files, and convert it again",
    },
    Rule { check: general_paths, verdict: Verdict::Wrong, remedy: "correct the model card" },
    Rule { check: other_paths, verdict: Verdict::Tell, remedy: "quantize the model again" },
    Rule { check: claims, verdict: Verdict::Tell, remedy: "quantize the model again" },
    Rule { check: ignored::told, verdict: Verdict::Tell, remedy: "use the original model" },
];

/// What is wrong with `model`.
pub fn lint_model(model: &GgufModel) -> Vec<Finding> {
    let tensors = model.tensors.iter().map(|tensor| (tensor.info().name.as_str(), tensor.info().shape.as_slice()));
    find(&model.metadata, tensors)
}

/// Refuses a file to be with these keys and tensors (name, shape) if llama.cpp would not load it; gives warnings.
pub(crate) fn check_plan<'a>(
    metadata: &'a Metadata,
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Result<Vec<String>> {
    let found = find(metadata, tensors);
    match found.iter().find(|finding| finding.verdict == Verdict::Refuse) {
        Some(finding) => Err(Error::inconsistent(&finding.problem, finding.remedy)),
        None => Ok(found.into_iter().map(|finding| finding.problem).collect()),
    }
}

fn find<'a>(metadata: &'a Metadata, tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Vec<Finding> {
    let mut contents = Contents { metadata, tensors: 0, matrices: 0, rows: None };
    for (name, shape) in tensors {
        contents.tensors += 1;
        contents.matrices += usize::from(shape.len() > 1);
        if name == EMBEDDING {
            contents.rows = shape.first().copied();
        }
    }
    let of = |rule: &Rule| {
        let (verdict, remedy) = (rule.verdict, rule.remedy);
        (rule.check)(&contents).into_iter().map(move |problem| Finding { verdict, problem, remedy })
    };
    RULES.iter().flat_map(of).collect()
}

fn architecture(contents: &Contents<'_>) -> Vec<String> {
    let is_imatrix = contents.metadata.get("general.type").and_then(Value::as_str) == Some("imatrix");
    let missing = contents.metadata.architecture().is_none() && !is_imatrix;
    missing.then(|| "general.architecture is missing, which llama.cpp requires".to_owned()).into_iter().collect()
}

fn any_tensor(contents: &Contents<'_>) -> Vec<String> {
    (contents.tensors == 0).then(|| "there are no tensors".to_owned()).into_iter().collect()
}

/// Numbers that are none.
fn finite(contents: &Contents<'_>) -> Vec<String> {
    fn first<T: Copy + Into<f64>>(values: &[T]) -> Option<(usize, f64)> {
        values.iter().map(|value| (*value).into()).enumerate().find(|(_, value)| !value.is_finite())
    }
    let of = |(key, value): (&str, &Value)| {
        let found = match value {
            Value::F32(value) => first(&[*value]),
            Value::F64(value) => first(&[*value]),
            Value::Array(Array::F32(values)) => first(values),
            Value::Array(Array::F64(values)) => first(values),
            _ => None,
        };
        let place = |at| if matches!(value, Value::Array(_)) { format!(" at place {at}") } else { String::new() };
        found.map(|(at, number)| format!("{} is {number}{}, and must be finite", escaped(key), place(at)))
    };
    contents.metadata.iter().filter_map(of).collect()
}

/// Paths in what describes the model.
fn general_paths(contents: &Contents<'_>) -> Vec<String> {
    paths(contents, "general.")
}

/// Paths that tools of llama.cpp write.
fn other_paths(contents: &Contents<'_>) -> Vec<String> {
    paths(contents, "quantize.")
}

fn paths(contents: &Contents<'_>, prefix: &str) -> Vec<String> {
    let below = contents.metadata.iter().filter(|(key, _)| key.starts_with(prefix));
    let texts = below.flat_map(|(key, value)| match value {
        Value::String(text) => vec![(key, text.as_str())],
        Value::Array(Array::String(texts)) => texts.iter().map(|text| (key, text.as_str())).collect(),
        _ => Vec::new(),
    });
    let told = texts.filter(|(key, text)| tells_of_disk(key, text));
    told.map(|(key, text)| format!("{} has a local path: {}", escaped(key), escaped(text))).collect()
}

/// An importance matrix that has more entries than the file has tensors.
fn claims(contents: &Contents<'_>) -> Vec<String> {
    let entries = contents.metadata.get("quantize.imatrix.entries_count").and_then(Value::as_u64);
    let beyond = entries.filter(|entries| *entries > contents.matrices as u64);
    let said = beyond.map(|entries| {
        let matrices = contents.matrices;
        format!("it says that {entries} entries of an importance matrix were used, and it has {matrices} matrices")
    });
    said.into_iter().collect()
}

/// `metadata` without the paths that the rules speak of, and what was left out.
pub(crate) fn without_paths(metadata: Metadata) -> (Metadata, Vec<String>) {
    let mut left_out = Vec::new();
    let mut drop = |key: &str, text: &str| {
        let tells = key.starts_with("general.") && tells_of_disk(key, text);
        if tells {
            left_out.push(format!("{} has a local path, which is left out: {}", escaped(key), escaped(text)));
        }
        tells
    };
    let kept = metadata.into_iter().filter_map(|(key, value)| match value {
        // What a file was made with keeps its name.
        Value::String(text) if key.starts_with("quantize.") && tells_of_disk(&key, &text) => {
            Some((key, Value::string(file_name(&text))))
        }
        Value::String(text) => (!drop(&key, &text)).then_some((key, Value::String(text))),
        Value::Array(Array::String(mut texts)) => {
            let before = texts.len();
            texts.retain(|text| !drop(&key, text));
            (!texts.is_empty() || before == 0).then_some((key, Value::Array(Array::String(texts))))
        }
        value => Some((key, value)),
    });
    let kept = kept.collect();
    (kept, left_out)
}

#[cfg(test)]
mod tests;
