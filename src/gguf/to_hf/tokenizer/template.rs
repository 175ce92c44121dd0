//! Chat templates: the one that speaks for the model, and named ones for other uses.

use super::{REMEDY, Text};
use crate::error::{Error, Result, escaped};
use crate::gguf::Metadata;

const TEMPLATE: &str = "tokenizer.chat_template";

/// The files of all templates.
pub(super) fn files(metadata: &Metadata) -> Result<Vec<Text>> {
    let mut files = Vec::new();
    for (key, value) in metadata.iter() {
        let Some(rest) = key.strip_prefix(TEMPLATE) else { continue };
        let Some(text) = value.as_str() else { continue };
        let name = match rest.strip_prefix('.') {
            None if rest.is_empty() => "chat_template.jinja".to_owned(),
            Some(name) if is_plain(name) => format!("additional_chat_templates/{name}.jinja"),
            Some(name) => {
                let problem = format!("the chat template {} can't be a file of that name", escaped(name));
                return Err(Error::refused(problem, REMEDY));
            }
            None => continue,
        };
        files.push((name, text.as_bytes().to_vec()));
    }
    Ok(files)
}

/// Whether a name is one of a file anywhere: letters, digits, dashes, underscores, at most 64.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !name.is_empty() && name.len() <= 64 && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value as GgufValue;

    #[test]
    fn names_stay_in_their_directory() {
        let made = |key: &str| files(&[(key.to_owned(), GgufValue::string("x"))].into_iter().collect());
        assert_eq!(made("tokenizer.chat_template").unwrap()[0].0, "chat_template.jinja");
        assert_eq!(made("tokenizer.chat_template.tool_use").unwrap()[0].0, "additional_chat_templates/tool_use.jinja");
        assert!(made("tokenizer.chat_templates").unwrap().is_empty(), "the list of names");
        for name in ["../x", "a/b", "", "a\nb", "."] {
            assert!(made(&format!("tokenizer.chat_template.{name}")).is_err(), "{name:?}");
        }
    }
}
