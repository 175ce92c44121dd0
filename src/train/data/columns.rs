//! Which columns of a row mean what: ms-swift's names, matched without regard to case.

use serde_json::{Map, Value};

use super::conversation::Flaw;
use crate::error::escaped;

/// A row as it was read.
pub(super) type Row = Map<String, Value>;

/// A meaning, and the columns that can have it. The first is the standard name: it wins over the others.
pub(super) type Names = [&'static str];

pub(super) const MESSAGES: &Names = &["messages", "conversations", "conversation"];
pub(super) const SYSTEM: &Names = &["system", "system_prompt"];
pub(super) const TOOLS: &Names = &["tools"];
pub(super) const HISTORY: &Names = &["history"];
pub(super) const INSTRUCTION: &Names = &["instruction"];
pub(super) const INPUT: &Names = &["input"];
pub(super) const OUTPUT: &Names = &["output"];
pub(super) const QUERY: &Names = &["query", "prompt", "input", "instruction", "question", "problem"];
pub(super) const RESPONSE: &Names = &[
    "response",
    "answer",
    "output",
    "targets",
    "target",
    "answer_key",
    "answers",
    "solution",
    "text",
    "completion",
    "content",
];
/// Columns of what isn't text. They must be empty.
const MEDIA: &Names = &["images", "image", "videos", "video", "audios", "audio"];

/// Every column that is read.
const KNOWN: [&Names; 7] = [MESSAGES, SYSTEM, TOOLS, HISTORY, QUERY, RESPONSE, MEDIA];

/// Whether a column of that name is read; the others of a file can stay where they are.
pub(super) fn is_known(column: &str) -> bool {
    KNOWN.iter().any(|names| names_it(names, column))
}

/// Whether a column of that name makes an object a row, rather than something that holds rows.
pub(super) fn makes_a_row(column: &str) -> bool {
    names_it(MESSAGES, column) || names_it(RESPONSE, column)
}

/// Whether `row` has a column of these names, be it null.
pub(super) fn has(row: &Row, names: &Names) -> bool {
    row.keys().any(|column| names_it(names, column))
}

/// Takes the column with that meaning out of `row`; a null column is none. Two of them are refused, unless one has the
/// standard name (ms-swift then reads neither, and so trains on half a row).
pub(super) fn take(row: &mut Row, names: &Names) -> Result<Option<Value>, Flaw> {
    let mut found: Vec<&String> =
        row.iter().filter(|(column, value)| !value.is_null() && names_it(names, column)).map(|(key, _)| key).collect();
    if let Some(standard) = found.iter().position(|column| column.eq_ignore_ascii_case(names[0])) {
        found = vec![found[standard]];
    }
    match found[..] {
        [] => Ok(None),
        [only] => {
            let only = only.clone();
            Ok(row.get_mut(&only).map(Value::take))
        }
        [first, second, ..] => Err(Flaw::new(
            format!("the columns `{}` and `{}` mean the same", escaped(first), escaped(second)),
            "drop one of them, or give the one to use its standard name (messages, query, response or system)",
        )),
    }
}

/// Refuses a row with images, videos or sounds.
pub(super) fn refuse_media(row: &Row) -> Result<(), Flaw> {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.iter().all(Value::is_null),
        Value::String(text) => text.is_empty(),
        Value::Object(object) => object.values().all(Value::is_null),
        _ => false,
    };
    match row.iter().find(|(column, value)| names_it(MEDIA, column) && !empty(value)) {
        Some((column, _)) => Err(Flaw::new(
            format!("the column `{}` is not empty", escaped(column)),
            "qft trains on text only: drop the row or the column",
        )),
        None => Ok(()),
    }
}

fn names_it(names: &Names, column: &str) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case(column))
}
