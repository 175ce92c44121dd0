//! Chat templates: which of a model's files has them, and the keys that they become. A template is text for the reader
//! of the GGUF file; nothing here runs one.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use crate::checkpoint::ModelFiles;
use crate::error::Result;
use crate::gguf::value::{Metadata, Value};

/// The directory of named templates.
const NAMED: &str = "additional_chat_templates/";

/// The templates of a model whose `tokenizer_config.json` is `config`: a string, a list of named ones, or none. What the
/// configuration says beats the files beside it.
pub(super) fn read(files: &ModelFiles, config: &Map<String, Json>) -> Result<Option<Json>> {
    let found = match config.get("chat_template") {
        Some(template) => Some(template.clone()),
        None => from_files(files)?,
    };
    Ok(found.filter(|template| !template.is_null()))
}

fn from_files(files: &ModelFiles) -> Result<Option<Json>> {
    let Some(text) = files.text("chat_template.jinja")? else {
        return Ok(files.json("chat_template.json")?.and_then(|file| file.get("chat_template").cloned()));
    };
    let mut templates = vec![json!({"name": "default", "template": lines(&text)})];
    for name in files.paths.keys() {
        let Some(stem) = name.strip_prefix(NAMED).and_then(|name| name.strip_suffix(".jinja")) else { continue };
        if let Some(text) = files.text(name)? {
            templates.push(json!({"name": stem, "template": lines(&text)}));
        }
    }
    Ok(Some(if templates.len() == 1 { Json::String(lines(&text)) } else { Json::Array(templates) }))
}

/// Text as Python reads it: every line ends in a line feed.
fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Writes templates. The converter names the named ones in an order that changes from run to run: here it is theirs.
pub(super) fn write(template: &Json, keys: &mut Metadata) {
    let default = match template {
        Json::Array(choices) => write_named(choices, keys),
        other => other.as_str(),
    };
    if let Some(text) = default.filter(|text| !text.is_empty()) {
        keys.set("tokenizer.chat_template", Value::string(text));
    }
}

/// Writes the templates with names, and gives back the one that goes by none.
fn write_named<'a>(choices: &'a [Json], keys: &mut Metadata) -> Option<&'a str> {
    let (mut default, mut names, mut seen) = (None, Vec::new(), HashSet::new());
    for choice in choices {
        let name: String = choice.get("name").and_then(Json::as_str).map(plain).unwrap_or_default();
        let Some(text) = choice.get("template").and_then(Json::as_str) else { continue };
        if name == "default" {
            default = Some(text);
        } else if !name.is_empty() {
            if !text.is_empty() {
                keys.set(&format!("tokenizer.chat_template.{name}"), Value::string(text));
            }
            if seen.insert(name.clone()) {
                names.push(name);
            }
        }
    }
    if !names.is_empty() {
        keys.set("tokenizer.chat_templates", Value::strings(names));
    }
    default
}

/// A name as part of a key: letters and digits of ASCII, and underscores.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_templates_get_keys_of_their_own() {
        let mut keys = Metadata::default();
        let list = json!([{"name": "tool-use", "template": "t"}, {"name": "default", "template": "d"},
            {"name": "rag", "template": ""}, {"name": "", "template": "x"}, {"name": "no"}]);
        write(&list, &mut keys);
        let names: Vec<&str> = keys.iter().map(|(key, _)| key).collect();
        let expected = ["tokenizer.chat_template.tool_use", "tokenizer.chat_templates", "tokenizer.chat_template"];
        assert_eq!(names, expected);
        assert_eq!(keys.get("tokenizer.chat_templates"), Some(&Value::strings(["tool_use", "rag"])));
    }

    #[test]
    fn lines_end_as_python_has_them() {
        assert_eq!(lines("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
