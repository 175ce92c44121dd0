//! Chat templates: the one that speaks for the model, and named ones for other uses.

use super::super::keys::{Keys, TOKENIZER_REMEDY as REMEDY};
use super::Text;
use crate::error::{Error, Result, escaped};

const TEMPLATE: &str = "tokenizer.chat_template";

/// The files of all templates.
pub(crate) fn files(keys: Keys<'_>) -> Result<Vec<Text>> {
    let mut files = Vec::new();
    for (key, _) in keys.metadata.iter() {
        let Some(rest) = key.strip_prefix(TEMPLATE) else { continue };
        let name = match rest.strip_prefix('.') {
            None if rest.is_empty() => "chat_template.jinja".to_owned(),
            Some(name) if is_plain(name) => format!("additional_chat_templates/{name}.jinja"),
            Some(name) => {
                let problem = format!("the chat template {} can't be a file of that name", escaped(name));
                return Err(Error::inconsistent(problem, REMEDY));
            }
            None => continue,
        };
        files.extend(keys.text(key)?.map(|text| (name, text.as_bytes().to_vec())));
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
    use super::super::super::keys::tests::keys;
    use super::*;
    use crate::gguf::{Metadata, Value as GgufValue};

    #[test]
    fn names_stay_in_their_directory() {
        let with = |key: &str, value| files(keys(&Metadata::from_iter([(key.to_owned(), value)])));
        let made = |key: &str| with(key, GgufValue::string("x"));
        assert_eq!(made("tokenizer.chat_template").unwrap()[0].0, "chat_template.jinja");
        assert_eq!(made("tokenizer.chat_template.tool_use").unwrap()[0].0, "additional_chat_templates/tool_use.jinja");
        assert!(made("tokenizer.chat_templates").unwrap().is_empty(), "the list of names");
        for name in ["../x", "a/b", "", "a\nb", "."] {
            assert!(made(&format!("tokenizer.chat_template.{name}")).is_err(), "{name:?}");
        }
        for key in ["tokenizer.chat_template", "tokenizer.chat_template.tools"] {
            assert!(with(key, GgufValue::Bool(true)).unwrap_err().to_string().contains(key));
        }
    }
}
