//! Tools of a row, and calls of them, in one form whatever their spelling; and values as text, as Python writes JSON.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Serializer, Value, json};

use super::conversation::{Flaw, kind};

const FIX_CALLS: &str = "give each call as {\"name\": text, \"arguments\": {...}}, or as OpenAI's tool_calls";
const FIX_TOOLS: &str = "give `tools` as a list of objects, or as text that is such a list in JSON";

/// The column `tools`: a list of objects, one object, or text that is either in JSON; its elements can be text, too.
/// A bare function is wrapped in `{"type": "function", "function": ...}`, as ms-swift does (`agent_template/base.py`).
pub(super) fn read_tools(column: Value) -> Result<Vec<Value>, Flaw> {
    let list = match from_text(column) {
        Value::Null => Vec::new(),
        Value::String(text) if text.trim().is_empty() => Vec::new(),
        Value::Array(list) => list,
        object @ Value::Object(_) => vec![object],
        other => return Err(Flaw::new(format!("`tools` is {}", kind(&other)), FIX_TOOLS)),
    };
    list.into_iter().map(from_text).map(wrap).collect()
}

fn wrap(tool: Value) -> Result<Value, Flaw> {
    let Value::Object(object) = &tool else {
        return Err(Flaw::new(format!("one of `tools` is {}", kind(&tool)), FIX_TOOLS));
    };
    let whole = object.contains_key("type") || object.contains_key("function");
    Ok(if whole { tool } else { json!({"type": "function", "function": tool}) })
}

/// The calls in a message's `content` (text that is JSON, an object, or a list of objects) or in `tool_calls`, each
/// as the text of `{"name": ..., "arguments": ...}`.
pub(super) fn read_calls(calls: Value) -> Result<Vec<String>, Flaw> {
    match from_text(calls) {
        Value::Array(list) => list.into_iter().map(|call| read_call(from_text(call))).collect(),
        call @ Value::Object(_) => Ok(vec![read_call(call)?]),
        other => Err(Flaw::new(format!("a tool call is {}, not an object in JSON", kind(&other)), FIX_CALLS)),
    }
}

fn read_call(call: Value) -> Result<String, Flaw> {
    let Value::Object(mut call) = call else {
        return Err(Flaw::new(format!("a tool call is {}, not an object", kind(&call)), FIX_CALLS));
    };
    if let Some(Value::Object(function)) = call.get_mut("function") {
        call = std::mem::take(function);
    }
    let Some(name @ Value::String(_)) = call.get_mut("name").map(Value::take) else {
        return Err(Flaw::new("a tool call has no name", FIX_CALLS));
    };
    let arguments = ["arguments", "parameters"].iter().find_map(|key| call.get_mut(*key).map(Value::take));
    // Text that isn't JSON stays text: it is what the model wrote.
    let arguments = match arguments.map(from_text) {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(arguments) => arguments,
    };
    Ok(to_text(&json!({"name": name, "arguments": arguments})))
}

/// What a text says in JSON; the text itself, or another value as it is, if it says nothing.
pub(super) fn from_text(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        other => other,
    }
}

/// A value as the JSON that Python's `json.dumps(value, ensure_ascii=False)` writes: a space after each comma and colon.
pub(super) fn to_text(value: &Value) -> String {
    let mut out = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut out, Spaced));
    // A value has text for keys, and a Vec takes every byte; what serde_json writes is UTF-8.
    debug_assert!(written.is_ok());
    String::from_utf8(out).unwrap_or_default()
}

/// `", "` and `": "`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_json_as_python_does() {
        let value = json!({"b": [1, 2.5, null, "天\n"], "a": {}});
        assert_eq!(to_text(&value), r#"{"b": [1, 2.5, null, "天\n"], "a": {}}"#);
    }

    #[test]
    fn tools_come_as_lists_or_text_and_are_wrapped_once() {
        let wrapped = json!([{"type": "function", "function": {"name": "f"}}]);
        for spelling in [
            json!([{"name": "f"}]),
            json!({"name": "f"}),
            json!(r#"[{"name": "f"}]"#),
            json!([r#"{"name": "f"}"#]),
            wrapped.clone(),
        ] {
            assert_eq!(Value::Array(read_tools(spelling).unwrap()), wrapped);
        }
        for none in [json!(null), json!(""), json!("[]"), json!([])] {
            assert!(read_tools(none).unwrap().is_empty());
        }
        for bad in [json!(3), json!("f"), json!(["f"]), json!([[1]])] {
            assert!(read_tools(bad).is_err());
        }
    }

    #[test]
    fn calls_become_one_form() {
        let form = vec![r#"{"name": "f", "arguments": {"x": 1}}"#.to_owned()];
        for spelling in [
            json!(r#"{"arguments":{"x":1},"name":"f"}"#),
            json!({"name": "f", "arguments": "{\"x\": 1}"}),
            json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]),
            json!({"name": "f", "parameters": {"x": 1}}),
        ] {
            assert_eq!(read_calls(spelling).unwrap(), form);
        }
        assert_eq!(read_calls(json!({"name": "f"})).unwrap(), [r#"{"name": "f", "arguments": {}}"#]);
        assert_eq!(
            read_calls(json!({"name": "f", "arguments": "x=1"})).unwrap(),
            [r#"{"name": "f", "arguments": "x=1"}"#]
        );
        for bad in [json!("f(1)"), json!({"name": 1}), json!({"arguments": {}}), json!([1]), json!(null)] {
            assert!(read_calls(bad).is_err());
        }
    }
}
