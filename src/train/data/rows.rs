//! One row as a conversation: the list of messages in its spellings, pairs, and instruction or query rows. The rules are
//! ms-swift's (`dataset/preprocessor/core.py`, `template/template_inputs.py`); where it drops a row, so does this.

use std::collections::HashMap;

use serde_json::Value;

use super::columns::{self, Row};
use super::conversation::{Flaw, Message, Role, kind, refuse_much};
use super::roles::{CONTENT_KEYS, PAIR_ASSISTANT_KEYS, PAIR_USER_KEYS, ROLE_KEYS};
use super::tools::{from_text, read_calls, read_tools, to_text};
use crate::error::escaped;

const FIX_ROW: &str = "give each row `messages` (or `conversations`), or `query` and `response`, or `instruction` and \
                       `output`, or `prompt` and `completion`";
const FIX_MESSAGE: &str = "put all messages of a conversation into one row, on one line: {\"messages\": [...]}";
const FIX_THOUGHTS: &str = "write them into its content as the model does (\"<think>\\n...\\n</think>\\n\\n\" before \
                            its answer), or remove them";
const FIX_CONTENT: &str = "give the content as text, or as a list of parts of type `text`";
const FIX_LOSS: &str = "give `loss` (or `weight`) as 0 or 1, or true or false";
const FIX_HISTORY: &str = "give `history` as a list of [query, response]";

/// The messages and the tools of a row.
pub(super) fn read_row(row: Value) -> Result<(Vec<Message>, Vec<Value>), Flaw> {
    let Value::Object(mut row) = row else {
        return Err(Flaw::new(
            format!("is {}, not an object", kind(&row)),
            "put one JSON object on each line, or all of them in one list in a .json file",
        ));
    };
    columns::refuse_media(&row)?;
    let tools = columns::take(&mut row, columns::TOOLS)?.map_or(Ok(Vec::new()), read_tools)?;
    let system = match columns::take(&mut row, columns::SYSTEM)? {
        Some(system) => Some(text(system).map_err(within("the system prompt"))?),
        None => None,
    };
    let mut messages = match columns::take(&mut row, columns::MESSAGES)? {
        Some(list) => read_messages(list)?,
        None if is_message(&row) => return Err(Flaw::new("is one message, not a conversation", FIX_MESSAGE)),
        None => read_query(row)?,
    };
    if let Some(system) = system
        && messages.first().is_none_or(|first| first.role != Role::System)
    {
        messages.insert(0, Message { role: Role::System, content: system, loss: None });
    }
    check(&messages)?;
    Ok((messages, tools))
}

fn check(messages: &[Message]) -> Result<(), Flaw> {
    if !messages.iter().any(|message| message.role.is_generated()) {
        return Err(Flaw::new("no message is the assistant's", "drop the row, or give it an answer to train on"));
    }
    refuse_much(messages.iter().map(|message| message.content.len()).sum())?;
    match messages.iter().position(|message| message.content.contains('\0')) {
        Some(at) => Err(Flaw::new(
            format!("message {} holds a NUL character", at + 1),
            "remove it: tokenizers are not trained on it",
        )),
        None => Ok(()),
    }
}

/// The column of messages: a list, or text that is one in JSON.
fn read_messages(list: Value) -> Result<Vec<Message>, Flaw> {
    let list = match from_text(list) {
        Value::Array(list) => list,
        other => {
            return Err(Flaw::new(
                format!("the messages are {}, not a list", kind(&other)),
                "give a list of {\"role\": ..., \"content\": ...} or {\"from\": ..., \"value\": ...}",
            ));
        }
    };
    let mut raw = Vec::with_capacity(list.len());
    for (at, message) in list.into_iter().enumerate() {
        let Value::Object(message) = message else {
            return Err(Flaw::new(
                format!("message {} is {}, not an object", at + 1, kind(&message)),
                "give each message as {\"role\": ..., \"content\": ...} or {\"from\": ..., \"value\": ...}",
            ));
        };
        raw.push(message);
    }
    let Some(first) = raw.first() else {
        return Err(Flaw::new("the list of messages is empty", "drop the row"));
    };
    if ROLE_KEYS.iter().chain(&CONTENT_KEYS).any(|key| is_there(first, key)) {
        read_turns(raw)
    } else {
        read_pairs(raw)
    }
}

/// Messages of a role each.
fn read_turns(mut raw: Vec<Row>) -> Result<Vec<Message>, Flaw> {
    let mut roles = Vec::with_capacity(raw.len());
    for (at, message) in raw.iter().enumerate() {
        let role = match take_first(message, &ROLE_KEYS) {
            Some(Value::String(role)) => Role::parse(role),
            Some(other) => Err(Flaw::new(format!("the role is {}", kind(other)), "give the role as text")),
            None => Err(Flaw::new("has no role", "give it a `role` (or `from`): system, user, assistant or tool")),
        };
        roles.push(role.map_err(within(&format!("message {}", at + 1)))?);
    }
    let mut messages = Vec::with_capacity(raw.len());
    for at in 0..raw.len() {
        if roles[at] == Role::Assistant && is_there(&raw[at], "tool_calls") {
            order_answers(&mut raw[at..], &roles[at..]);
        }
        let message = std::mem::take(&mut raw[at]);
        read_turn(message, roles[at], &mut messages).map_err(within(&format!("message {}", at + 1)))?;
    }
    Ok(messages)
}

/// A message as one turn; as several if it makes tool calls.
fn read_turn(mut message: Row, role: Role, out: &mut Vec<Message>) -> Result<(), Flaw> {
    let loss = read_loss(&message)?;
    let said = |key: &&&str| message.get(**key).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    if let Some(key) = THOUGHTS.iter().find(said).filter(|_| role == Role::Assistant) {
        return Err(Flaw::new(format!("its thoughts are in `{key}`, which templates may ignore"), FIX_THOUGHTS));
    }
    let turn = |role, content| Message { role, content, loss };
    let calls = match role {
        Role::Assistant => ["tool_calls", "function_call"].iter().find_map(|key| take(&mut message, key)),
        _ => None,
    };
    let calls = calls.filter(|calls| calls.as_array().is_none_or(|list| !list.is_empty()));
    let content = CONTENT_KEYS.iter().find_map(|key| take(&mut message, key));
    let content = match (role, content) {
        (_, None) if calls.is_some() => None,
        (_, None) => return Err(Flaw::new("has no content", FIX_CONTENT)),
        (Role::ToolCall, Some(content)) => {
            out.extend(read_calls(content)?.into_iter().map(|call| turn(role, call)));
            return Ok(());
        }
        (Role::Tool, Some(content)) => Some(text(content.clone()).unwrap_or_else(|_| to_text(&content))),
        (_, Some(content)) => Some(text(content)?),
    };
    if let Some(content) = content
        && (calls.is_none() || !content.is_empty())
    {
        out.push(turn(role, content));
    }
    for call in calls.map_or(Ok(Vec::new()), read_calls)? {
        out.push(turn(Role::ToolCall, call));
    }
    Ok(())
}

/// Puts the answers after a message with `tool_calls`, its first, in the order of the calls: what comes of them is told
/// apart by place. Answers without ids, or not one for each call, stay as they are.
fn order_answers(raw: &mut [Row], roles: &[Role]) {
    let Some(Value::Array(calls)) = raw[0].get("tool_calls") else { return };
    let id = |row: &Row, key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
    let order: HashMap<String, usize> =
        calls.iter().enumerate().filter_map(|(at, call)| Some((id(call.as_object()?, "id")?, at))).collect();
    let answers = roles[1..].iter().take_while(|role| **role == Role::Tool).count();
    let places: Vec<Option<usize>> =
        raw[1..=answers].iter().map(|answer| order.get(&id(answer, "tool_call_id")?).copied()).collect();
    let once = |at: usize| places.iter().filter(|place| **place == Some(at)).count() == 1;
    // Calls of one message are few; a hostile list of many is left alone rather than compared in squares.
    if calls.len() > MAX_REORDERED || answers != calls.len() || !(0..calls.len()).all(once) {
        return;
    }
    let mut placed: Vec<(Option<usize>, Row)> =
        places.into_iter().zip(raw[1..=answers].iter_mut().map(std::mem::take)).collect();
    placed.sort_by_key(|(place, _)| *place);
    for (slot, (_, answer)) in raw[1..=answers].iter_mut().zip(placed) {
        *slot = answer;
    }
}

/// Most calls of one message whose answers are put in order.
const MAX_REORDERED: usize = 256;

/// Pairs `{human, assistant}`.
fn read_pairs(raw: Vec<Row>) -> Result<Vec<Message>, Flaw> {
    let mut messages = Vec::with_capacity(2 * raw.len());
    for (at, mut pair) in raw.into_iter().enumerate() {
        let sides: [(Role, &[&str]); 2] = [(Role::User, &PAIR_USER_KEYS), (Role::Assistant, &PAIR_ASSISTANT_KEYS)];
        for (role, keys) in sides {
            let name = format!("message {}", at + 1);
            let Some(content) = keys.iter().find_map(|key| take(&mut pair, key)) else {
                let problem = format!("{name} has no role, and as a pair it has no `{}`", keys[0]);
                return Err(Flaw::new(
                    problem,
                    "give each message a role and a content, or a user and an assistant side",
                ));
            };
            messages.push(Message { role, content: text(content).map_err(within(&name))?, loss: None });
        }
    }
    Ok(messages)
}

/// Rows of `query`, `response` and `history`, or of `instruction`, `input` and `output`.
fn read_query(mut row: Row) -> Result<Vec<Message>, Flaw> {
    let mut response = None;
    let mut asked = Vec::new();
    let query = if columns::has(&row, columns::INSTRUCTION) && columns::has(&row, columns::INPUT) {
        let instruction = columns::take(&mut row, columns::INSTRUCTION)?.map(text);
        let input = columns::take(&mut row, columns::INPUT)?.map(text);
        response = columns::take(&mut row, columns::OUTPUT)?;
        match (instruction.transpose()?, input.transpose()?) {
            (Some(instruction), Some(input)) if !instruction.is_empty() && !input.is_empty() => {
                Some(format!("{instruction}\n{input}"))
            }
            (Some(instruction), input) if !instruction.is_empty() || input.is_none() => Some(instruction),
            (_, input) => input,
        }
    } else {
        match columns::take(&mut row, columns::QUERY)? {
            // TRL's conversation so far: it does not count in the loss, unless it says so.
            Some(list) if is_messages(&list) => {
                asked = read_messages(list).map_err(within("the prompt"))?;
                let unsaid = asked.iter_mut().filter(|message| message.role.is_generated());
                unsaid.for_each(|message| message.loss = message.loss.or(Some(false)));
                None
            }
            query => query.map(text).transpose().map_err(within("the query"))?,
        }
    };
    if response.is_none() {
        response = columns::take(&mut row, columns::RESPONSE)?;
    }
    let turn = |role, content| Message { role, content, loss: None };
    let answer = match response {
        Some(list) if is_messages(&list) => read_messages(list).map_err(within("the completion"))?,
        // Another list holds alternatives, of which ms-swift takes the first.
        Some(Value::Array(list)) => answer(list.into_iter().next())?,
        other => answer(other)?,
    };
    if answer.is_empty() {
        let asks = query.is_some() || !asked.is_empty();
        return Err(Flaw::new(if asks { "has no response" } else { "has no known column" }, FIX_ROW));
    }
    let mut messages = columns::take(&mut row, columns::HISTORY)?.map_or(Ok(Vec::new()), read_history)?;
    messages.extend(asked);
    messages.extend(query.map(|query| turn(Role::User, query)));
    messages.extend(answer);
    Ok(messages)
}

/// The one message of a response, if there is any.
fn answer(response: Option<Value>) -> Result<Vec<Message>, Flaw> {
    let message = |content| Message { role: Role::Assistant, content, loss: None };
    let content = response.map(text).transpose().map_err(within("the response"))?;
    Ok(content.into_iter().map(message).collect())
}

/// Keys in which services return what a model thought.
const THOUGHTS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Whether a row is a message itself: what is left of a conversation over several lines, or of a list of messages.
fn is_message(row: &Row) -> bool {
    let role = take_first(row, &ROLE_KEYS).and_then(Value::as_str);
    role.is_some_and(|role| Role::parse(role).is_ok()) && CONTENT_KEYS.iter().any(|key| is_there(row, key))
}

/// Whether a column is a list of messages with roles, as TRL has it, and no list of parts.
fn is_messages(column: &Value) -> bool {
    let has_role =
        |message: &Value| message.as_object().is_some_and(|message| take_first(message, &ROLE_KEYS).is_some());
    column.as_array().is_some_and(|list| list.first().is_some_and(has_role))
}

/// Earlier rounds: a list of `[query, response]`, of which either can be null, or text that is one in JSON.
fn read_history(history: Value) -> Result<Vec<Message>, Flaw> {
    let list = match from_text(history) {
        Value::Array(list) => list,
        Value::String(text) if text.trim().is_empty() => Vec::new(),
        other => return Err(Flaw::new(format!("`history` is {}, not a list", kind(&other)), FIX_HISTORY)),
    };
    let mut messages = Vec::with_capacity(2 * list.len());
    for round in list {
        let sides = match round {
            Value::Array(sides) if sides.len() == 2 => sides,
            other => {
                return Err(Flaw::new(format!("a round of `history` is {}, not a pair", kind(&other)), FIX_HISTORY));
            }
        };
        for (role, side) in [Role::User, Role::Assistant].into_iter().zip(sides) {
            if !side.is_null() {
                let content = text(side).map_err(within("`history`"))?;
                messages.push(Message { role, content, loss: None });
            }
        }
    }
    Ok(messages)
}

/// `loss` of a message, or `loss_scale`, or the `OpenAI` API's `weight`, where they say the same. Files of the `datasets`
/// library have floats there.
fn read_loss(message: &Row) -> Result<Option<bool>, Flaw> {
    let Some(key) = ["loss", "loss_scale", "weight"].into_iter().find(|key| is_there(message, key)) else {
        return Ok(None);
    };
    match &message[key] {
        Value::Bool(learned) => Ok(Some(*learned)),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(Some(false)),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(Some(true)),
        Value::Number(number) => Err(Flaw::new(format!("`{key}` is {number}; only 0 and 1 are supported"), FIX_LOSS)),
        other => Err(Flaw::new(format!("`{key}` is {}", kind(other)), FIX_LOSS)),
    }
}

/// Content that is text, or a list of parts that are; parts are joined with nothing between.
fn text(content: Value) -> Result<String, Flaw> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(Flaw::new(format!("the content is {}, not text", kind(&other)), FIX_CONTENT)),
    };
    let mut whole = String::new();
    for part in parts {
        match &part {
            Value::String(text) => whole.push_str(text),
            Value::Object(object) => match (object.get("type"), object.get("text")) {
                (None | Some(Value::Null), Some(Value::String(text))) => whole.push_str(text),
                (Some(Value::String(kind)), Some(Value::String(text))) if kind == "text" => whole.push_str(text),
                (Some(Value::String(kind)), _) => {
                    let problem = format!("the content has a part of type `{}`, not text", escaped(kind));
                    return Err(Flaw::new(problem, FIX_CONTENT));
                }
                _ => return Err(Flaw::new("the content has a part without text", FIX_CONTENT)),
            },
            other => return Err(Flaw::new(format!("the content has a part that is {}", kind(other)), FIX_CONTENT)),
        }
    }
    Ok(whole)
}

/// Says where in the row a flaw is.
fn within(place: &str) -> impl FnOnce(Flaw) -> Flaw + '_ {
    move |flaw| Flaw { problem: format!("{place}: {}", flaw.problem), remedy: flaw.remedy }
}

fn is_there(message: &Row, key: &str) -> bool {
    message.get(key).is_some_and(|value| !value.is_null())
}

fn take(message: &mut Row, key: &str) -> Option<Value> {
    message.get_mut(key).map(Value::take).filter(|value| !value.is_null())
}

fn take_first<'m>(message: &'m Row, keys: &[&str]) -> Option<&'m Value> {
    keys.iter().find_map(|key| message.get(*key).filter(|value| !value.is_null()))
}

#[cfg(test)]
mod tests;
