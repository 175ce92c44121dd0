//! The end of a turn: what a model's chat template writes after the assistant's words, and the token there that says
//! that it is done. A server has to stop at that token. Found by rendering, so that no family has to be known.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::Value;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::files::read_text_if_there;

/// How a template ends the assistant's turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TurnEnd {
    /// All that it writes after the assistant's words.
    pub text: String,
    /// The first token of it that a tokenizer keeps whole: `<|im_end|>`.
    pub token: String,
    /// The token's id.
    pub id: u32,
}

/// The assistant's words in a rendering: no template changes them.
const WORDS: &str = "An-answer-of-qft";

/// How the template of the model in `dir` ends the assistant's turn. `None` where that can't be told: there is no
/// template, it refuses every conversation that is tried, or no token of the tokenizer's own follows the words.
pub fn turn_end(dir: &Path) -> Result<Option<TurnEnd>> {
    turn_end_of(dir, dir)
}

/// As [`turn_end`], of a model whose template and tokenizer lie in different directories.
pub fn turn_end_of(template: &Path, tokenizer: &Path) -> Result<Option<TurnEnd>> {
    let template = match ChatTemplate::open(template) {
        Ok(template) => template,
        Err(error @ Error::Io { .. }) => return Err(error),
        Err(_) => return Ok(None),
    };
    let Some(text) = conversations().iter().find_map(|said| behind_the_words(&template, said)) else {
        return Ok(None);
    };
    let tokens = added_tokens(tokenizer)?;
    // The first in the text, and of those that begin at one place the longest, as a tokenizer takes them.
    let places = tokens.iter().filter_map(|(token, id)| Some((text.find(token.as_str())?, token, *id)));
    let first = places.min_by_key(|(at, token, _)| (*at, usize::MAX - token.len()));
    let found = first.map(|(_, token, id)| (token.clone(), id));
    Ok(found.map(|(token, id)| TurnEnd { text, token, id }))
}

/// The tokens at which servers stop, and the file that says so: `generation_config.json`, or else config.json.
pub fn stops(generation: Option<&Json>, config: Option<&Json>) -> Option<(&'static str, Vec<u64>)> {
    let of = |config: &Json| match config.get("eos_token_id")? {
        Json::Array(list) => Some(list.iter().filter_map(Json::as_u64).collect()),
        id => Some(vec![id.as_u64()?]),
    };
    let generation = generation.and_then(of).map(|ids| ("generation_config.json", ids));
    generation.or_else(|| config.and_then(of).map(|ids| ("config.json", ids)))
}

/// Conversations that end with the assistant's words. Some templates want a system message, some a list of parts.
fn conversations() -> Vec<Vec<Value>> {
    let text = |role: &str, text: &str| json!({"role": role, "content": text});
    let parts = |role: &str, text: &str| json!({"role": role, "content": [{"type": "text", "text": text}]});
    let plain = [text("user", "Hi"), text("assistant", WORDS)].to_vec();
    let of_parts = [parts("user", "Hi"), parts("assistant", WORDS)].to_vec();
    let with = |first: Json, rest: &[Json]| [&[first], rest].concat();
    let all = [
        plain.clone(),
        with(text("system", "Be kind."), &plain),
        of_parts.clone(),
        with(parts("system", "Be kind."), &of_parts),
    ];
    all.iter().map(|said| said.iter().map(|message| Value::from(Serde(message))).collect()).collect()
}

/// What follows the words, unless the template refuses the conversation or leaves the words out.
fn behind_the_words(template: &ChatTemplate, said: &[Value]) -> Option<String> {
    let text = template.render(said, None, false).ok()?;
    let (_, behind) = text.rsplit_once(WORDS)?;
    Some(behind.to_owned())
}

/// The tokens that the tokenizer keeps whole: its added ones, by their text.
fn added_tokens(dir: &Path) -> Result<BTreeMap<String, u32>> {
    #[derive(Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Json>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        added_tokens_decoder: BTreeMap<String, Json>,
    }
    fn text(token: &Json) -> Option<&str> {
        token.get("content").and_then(Json::as_str).filter(|text| !text.is_empty())
    }
    let mut tokens = BTreeMap::new();
    let (path, read) = (dir.join("tokenizer_config.json"), "restore the file from its source");
    if let Some(config) = read_text_if_there(&path)? {
        let config: Config = serde_json::from_str(&config)
            .map_err(|e| Error::malformed(&path, format!("has no tokens that can be read: {e}"), read))?;
        let listed = config.added_tokens_decoder.iter();
        tokens.extend(listed.filter_map(|(id, token)| Some((text(token)?.to_owned(), id.parse().ok()?))));
    }
    let path = dir.join("tokenizer.json");
    if let Some(tokenizer) = read_text_if_there(&path)? {
        let tokenizer: Tokenizer = serde_json::from_str(&tokenizer)
            .map_err(|e| Error::malformed(&path, format!("has no tokens that can be read: {e}"), read))?;
        let id = |token: &Json| token.get("id").and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
        tokens.extend(tokenizer.added_tokens.iter().filter_map(|token| Some((text(token)?.to_owned(), id(token)?))));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end that `template` gives with these added tokens, numbered from 100.
    fn end(template: &str, tokens: &[&str]) -> Option<TurnEnd> {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        put("chat_template.jinja", template.to_owned());
        let listed: Vec<Json> = tokens.iter().zip(100..).map(|(text, id)| json!({"id": id, "content": text})).collect();
        put("tokenizer.json", json!({"added_tokens": listed, "model": {"vocab": {"a": 0}}}).to_string());
        let named = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
        put("tokenizer_config.json", named.to_string());
        turn_end(dir.path()).unwrap()
    }

    fn token(template: &str, tokens: &[&str]) -> Option<(String, u32)> {
        end(template, tokens).map(|end| (end.token, end.id))
    }

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

    #[test]
    fn every_family_s_end_is_found_by_rendering() {
        let tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
        let expected = TurnEnd { text: "<|im_end|>\n".to_owned(), token: "<|im_end|>".to_owned(), id: 102 };
        assert_eq!(end(CHATML, &tokens), Some(expected));
        let families = [
            // Llama 3.
            (
                "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}",
                &["<|start|>", "<|end|>", "<|eot_id|>"][..],
                "<|eot_id|>",
            ),
            // Mistral, which wants roles to alternate.
            (
                "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
                 {{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }} \
                 [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
                &["<s>", "</s>", "[INST]", "[/INST]"],
                "</s>",
            ),
            // Gemma, which has no system message.
            (
                "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages \
                 %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}",
                &["<start_of_turn>", "<end_of_turn>"],
                "<end_of_turn>",
            ),
            // DeepSeek-R1-Distill, which cuts thoughts.
            (
                "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>{{ \
                 m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}",
                &["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
                "<｜end▁of▁sentence｜>",
            ),
            // One that demands a system message, and one that takes parts alone.
            (
                "{% if messages[0].role != 'system' %}{{ raise_exception('say who it is') }}{% endif %}{% for m in \
                 messages %}{{ m.content }}<a>{% endfor %}",
                &["<a>"],
                "<a>",
            ),
            (
                "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<b>{% endfor %}",
                &["<b>"],
                "<b>",
            ),
            // Phi 3 ends the text with another token; the turn's own is the first.
            (
                "{% for m in messages %}{{ m.content }}<|end|>\n{% endfor %}{{ eos_token }}",
                &["</s>", "<|end|>"],
                "<|end|>",
            ),
            ("{% for m in messages %}{{ m.content }}<|end|>x{% endfor %}", &["<|e", "<|end|>", "<|en"], "<|end|>"),
        ];
        for (template, tokens, expected) in families {
            assert_eq!(token(template, tokens).map(|(token, _)| token).as_deref(), Some(expected), "{template}");
        }
    }

    #[test]
    fn what_can_t_be_told_is_none() {
        assert_eq!(end(CHATML, &["<|im_start|>"]), None, "the end is no token of its own");
        assert_eq!(end("{% for m in messages %}<u>{{ m.content }}{% endfor %}", &["<u>"]), None, "nothing follows");
        assert_eq!(end("{{ raise_exception('no') }}", &["<u>"]), None);
        assert_eq!(end("{% if %}", &["<u>"]), None, "no template");
        assert_eq!(end("<u>", &["<u>"]), None, "the words are left out");
        let endless = "{% for a in range(9999) %}".repeat(3) + &"{% endfor %}".repeat(3);
        assert_eq!(end(&endless, &["<u>"]), None);
        assert_eq!(turn_end(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }

    #[test]
    fn tokens_are_those_of_either_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"chat_template": CHATML, "added_tokens_decoder": {"7": {"content": "<|im_end|>"}}});
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        assert_eq!(turn_end(dir.path()).unwrap().unwrap().id, 7);
        std::fs::write(dir.path().join("tokenizer.json"), "{\"added_tokens\": 3}").unwrap();
        assert!(turn_end(dir.path()).unwrap_err().to_string().contains("tokenizer.json"));
    }
}
