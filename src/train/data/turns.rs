//! A conversation in the form that chat templates take, and which of its messages the model wrote. Calls of tools
//! become part of the assistant's turn, as templates want them.

use std::ops::Range;

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Value as Json, json};

use super::conversation::{Conversation, Message, Role};
use crate::error::{Error, Result, escaped};

/// A conversation for a template.
pub(super) struct Chat {
    /// Messages as transformers takes them.
    pub(super) messages: Vec<Value>,
    /// Tools; `None` if there are none.
    pub(super) tools: Option<Value>,
    /// What the model wrote.
    pub(super) turns: Vec<Turn>,
}

/// One message of the model, among those for the template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// Its place among them.
    pub(super) at: usize,
    /// The place of its first message in the row.
    pub(super) first: usize,
    /// Whether no user speaks after it.
    pub(super) last_round: bool,
    /// What the row says of its loss.
    pub(super) loss: Option<bool>,
    /// The names of the tools that it calls.
    pub(super) calls: Vec<String>,
}

impl Chat {
    /// Brings `conversation` into form. A row that has no system message gets `system`, if there is one.
    pub(super) fn new(conversation: &Conversation, system: Option<&str>) -> Result<Self> {
        let said = &conversation.messages;
        let (mut messages, mut turns) = (Vec::with_capacity(said.len() + 1), Vec::new());
        if let Some(system) = system.filter(|_| said.iter().all(|message| message.role != Role::System)) {
            messages.push(json!({"role": "system", "content": system}));
        }
        let last_user = said.iter().rposition(|message| message.role == Role::User);
        let mut at = 0;
        while let Some(message) = said.get(at) {
            let group = generated(&said[at..]);
            if group.is_empty() {
                messages.push(json!({"role": role(message.role), "content": message.content}));
                at += 1;
                continue;
            }
            let group = at..at + group.len();
            let written = assistant(&said[group.clone()]).map_err(|problem| {
                let problem = format!("message {}: {problem}", group.start + 1);
                Error::inconsistent(problem, "write a call as {\"name\": ..., \"arguments\": {...}}")
            })?;
            let calls = written.get("tool_calls").and_then(Json::as_array).into_iter().flatten();
            turns.push(Turn {
                at: messages.len(),
                first: group.start,
                last_round: last_user.is_none_or(|user| group.start > user),
                loss: loss(&said[group.clone()]),
                calls: calls.filter_map(|call| Some(call["function"]["name"].as_str()?.to_owned())).collect(),
            });
            messages.push(written);
            at = group.end;
        }
        let tools = conversation.tools.iter().map(tool).collect::<Vec<Json>>();
        Ok(Self {
            messages: messages.iter().map(|message| Value::from(Serde(message))).collect(),
            tools: (!tools.is_empty()).then(|| Value::from(Serde(tools))),
            turns,
        })
    }
}

impl Turn {
    /// Its words, as the row has them.
    pub(super) fn words<'r>(&self, row: &'r Conversation) -> &'r str {
        let said = row.messages.get(self.first).filter(|message| message.role == Role::Assistant);
        said.map_or("", |message| &message.content)
    }
}

/// The messages from the first on that are one turn of the model: words, calls that follow, or both.
fn generated(said: &[Message]) -> Range<usize> {
    let words = usize::from(said.first().is_some_and(|message| message.role == Role::Assistant));
    0..words + said[words..].iter().take_while(|message| message.role == Role::ToolCall).count()
}

/// What the messages of a turn say of its loss: one that wants none is heard first.
fn loss(group: &[Message]) -> Option<bool> {
    group.iter().filter_map(|message| message.loss).min()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant | Role::ToolCall => "assistant",
        Role::Tool => "tool",
    }
}

/// One message of the model.
fn assistant(group: &[Message]) -> Result<Json, String> {
    let words = group.first().filter(|message| message.role == Role::Assistant);
    let mut calls = Vec::new();
    for message in &group[usize::from(words.is_some())..] {
        match parsed(&message.content)? {
            Json::Array(several) => {
                several.iter().try_for_each(|one| call(one).map(|call| calls.push(call)))?;
            }
            one => calls.push(call(&one)?),
        }
    }
    let mut message = json!({"role": "assistant", "content": words.map_or("", |message| &message.content)});
    if !calls.is_empty() {
        message["tool_calls"] = Json::Array(calls);
    }
    Ok(message)
}

fn parsed(text: &str) -> Result<Json, String> {
    serde_json::from_str(text).map_err(|e| format!("the tool call is not JSON ({e}): {}", escaped(text)))
}

/// A call as templates take it. Arguments in a string are JSON, as `OpenAI` writes them.
fn call(written: &Json) -> Result<Json, String> {
    let inner = written.get("function").filter(|inner| inner.is_object()).unwrap_or(written);
    let name = inner.get("name").and_then(Json::as_str);
    let arguments = inner.get("arguments").or_else(|| inner.get("parameters"));
    let (Some(name), Some(arguments)) = (name, arguments) else {
        return Err(format!("the tool call has no name or no arguments: {}", escaped(&written.to_string())));
    };
    let arguments = match arguments {
        Json::String(text) => parsed(text)?,
        other => other.clone(),
    };
    Ok(json!({"type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// A tool as templates take it.
fn tool(written: &Json) -> Json {
    let bare = written.is_object() && written.get("type").is_none() && written.get("function").is_none();
    if bare { json!({"type": "function", "function": written}) } else { written.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::encode::tests::conversation;
    use super::*;

    #[test]
    fn words_and_calls_are_one_turn_and_the_first_no_is_heard() {
        let call = r#"{"name": "f", "arguments": "{\"x\": 1}"}"#;
        let mut row = conversation(&[
            (Role::User, "u"),
            (Role::Assistant, "a"),
            (Role::ToolCall, call),
            (Role::ToolCall, call),
            (Role::Tool, "r"),
            (Role::ToolCall, call),
            (Role::Tool, "r"),
            (Role::Assistant, "b"),
            (Role::Assistant, "c"),
            (Role::User, "v"),
            (Role::Assistant, "d"),
        ]);
        row.messages[2].loss = Some(true);
        row.messages[3].loss = Some(false);
        row.messages[7].loss = Some(true);
        let chat = Chat::new(&row, Some("s")).unwrap();
        let turn = |at, first, loss, last_round, calls| Turn {
            at,
            first,
            last_round,
            loss,
            calls: vec!["f".to_owned(); calls],
        };
        let expected = [
            turn(2, 1, Some(false), false, 2),
            turn(4, 5, None, false, 1),
            turn(6, 7, Some(true), false, 0),
            turn(7, 8, None, false, 0),
            turn(9, 10, None, true, 0),
        ];
        assert_eq!(chat.turns, expected);
        assert_eq!(chat.turns.iter().map(|turn| turn.words(&row)).collect::<Vec<_>>(), ["a", "", "b", "c", "d"]);
        assert_eq!(chat.messages[0].get_attr("content").unwrap().as_str(), Some("s"));
        let calls = chat.messages[2].get_attr("tool_calls").unwrap();
        assert_eq!(calls.len(), Some(2));
        row.messages.insert(0, Message { role: Role::System, content: String::new(), loss: None });
        assert_eq!(Chat::new(&row, Some("s")).unwrap().messages[0].get_attr("content").unwrap().as_str(), Some(""));
    }

    #[test]
    fn calls_that_are_none_are_named() {
        for (content, expected) in
            [("x", "not JSON"), ("{}", "no name"), (r#"{"name": "f", "arguments": "x"}"#, "not JSON")]
        {
            let problem =
                Chat::new(&conversation(&[(Role::User, "u"), (Role::ToolCall, content)]), None).err().unwrap();
            assert!(problem.to_string().contains(expected) && problem.to_string().contains("message 2"), "{problem}");
        }
    }
}
