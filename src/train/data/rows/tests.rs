use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The messages as `role: content`, a `!` before those without loss and a `+` before those with it.
fn read(row: Value) -> Vec<String> {
    read_row(row).unwrap().0.iter().map(line).collect()
}

fn line(message: &Message) -> String {
    let loss = message.loss.map_or("", |loss| if loss { "+" } else { "!" });
    let role = match message.role {
        Role::System => "s",
        Role::User => "u",
        Role::Assistant => "a",
        Role::ToolCall => "call",
        Role::Tool => "tool",
    };
    format!("{loss}{role}: {}", message.content)
}

fn problem(row: Value) -> String {
    read_row(row).unwrap_err().problem
}

#[test]
fn reads_messages_in_every_spelling() {
    let expected = ["s: be kind", "u: hi", "a: hello"];
    for row in [
        json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"}]}),
        json!({"id": 1, "conversations": [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "hello"}]}),
        json!({"Conversation": [{"from": "user", "content": "hi"}, {"role": "bot", "value": "hello"}],
            "system_prompt": "be kind"}),
        json!({"conversation": [{"human": "hi", "assistant": "hello"}], "system": "be kind"}),
        json!({"conversations": [{"user": "hi", "bot": "hello", "role": null}], "system": "be kind", "tools": null}),
        json!({"messages": "[{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"hello\"}]",
            "system": "be kind"}),
        json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": ["h", "i"]},
            {"role": "assistant", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}],
            "system": "the first message wins"}),
        json!({"query": "hi", "response": "hello", "system": "be kind"}),
        json!({"query": "hi", "response": ["hello", "another"], "system": "be kind", "history": null}),
        json!({"system": "be kind", "instruction": "hi", "input": "", "output": "hello", "text": "all of it"}),
        json!({"system": "be kind", "instruction": null, "input": "hi", "output": "hello"}),
        json!({"system": "be kind", "prompt": "hi", "completion": "hello"}),
    ] {
        assert_eq!(read(row.clone()), expected, "{row}");
    }
}

#[test]
fn keeps_what_ms_swift_keeps() {
    let row = json!({"instruction": "add", "input": "1 2", "output": "3", "history": [["q", "a"], [null, "b"]]});
    assert_eq!(read(row), ["u: q", "a: a", "a: b", "u: add\n1 2", "a: 3"]);
    let row = json!({"query": "x", "response": "y", "history": "[[\"q\", \"a\"]]"});
    assert_eq!(read(row), ["u: q", "a: a", "u: x", "a: y"]);
    assert_eq!(read(json!({"response": "only"})), ["a: only"]);
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "assistant", "content": ""}, {"role": "user", "content": "c"}], "system": ""});
    assert_eq!(read(row), ["s: ", "u: a", "u: b", "a: ", "u: c"]);
}

#[test]
fn reads_loss_of_a_message() {
    let turn = |loss: Value| json!({"messages": [{"role": "assistant", "content": "x", "loss": loss}]});
    for (loss, expected) in [
        (json!(true), "+a: x"),
        (json!(1), "+a: x"),
        (json!(1.0), "+a: x"),
        (json!(false), "!a: x"),
        (json!(0), "!a: x"),
        (json!(0.0), "!a: x"),
        (json!(null), "a: x"),
    ] {
        assert_eq!(read(turn(loss)), [expected]);
    }
    assert_eq!(problem(turn(json!(0.5))), "message 1: `loss` is 0.5; only 0 and 1 are supported");
    let weighed = |weight: Value| {
        json!({"messages": [{"role": "user", "content": "q", "weight": 0}, {"role": "assistant", "content": "x",
            "weight": weight}]})
    };
    assert_eq!(read(weighed(json!(0)))[1], "!a: x");
    assert_eq!(read(weighed(json!(1)))[1], "+a: x");
    assert_eq!(problem(weighed(json!(2))), "message 2: `weight` is 2; only 0 and 1 are supported");
    assert_eq!(problem(turn(json!("yes"))), "message 1: `loss` is text");
}

/// As TRL has them: the completion is what is trained on.
#[test]
fn reads_prompts_and_completions_that_are_lists() {
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let prompt = json!([said("system", "s"), said("user", "q"), said("assistant", "a"), said("user", "r")]);
    let row = json!({"prompt": prompt, "completion": [said("assistant", "b")]});
    assert_eq!(read(row), ["s: s", "u: q", "!a: a", "u: r", "a: b"]);
    let row = json!({"prompt": [said("user", "q")], "completion": "b", "system": "s"});
    assert_eq!(read(row), ["s: s", "u: q", "a: b"]);
    let call = json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]});
    let row = json!({"prompt": "q", "completion": [call, {"role": "tool", "content": "1"}, said("assistant", "b")]});
    assert_eq!(read(row), ["u: q", r#"call: {"name": "f", "arguments": {}}"#, "tool: 1", "a: b"]);
    assert_eq!(problem(json!({"prompt": [said("user", "q")]})), "has no response");
    let row = json!({"prompt": [said("king", "q")], "completion": "b"});
    assert_eq!(problem(row), "the prompt: message 1: the role `king` is unknown");
    let row = json!({"prompt": "q", "completion": [said("user", "b")]});
    assert_eq!(problem(row), "no message is the assistant's");
}

#[test]
fn reads_tools_in_sharegpt_and_in_openai_form() {
    let row = json!({"conversations": [{"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "one"}],
        "tools": "[{\"name\": \"f\", \"description\": \"d\"}]"});
    let (messages, tools) = read_row(row).unwrap();
    let call = r#"call: {"name": "f", "arguments": {"x": 1}}"#;
    assert_eq!(messages.iter().map(line).collect::<Vec<_>>(), ["u: q", call, "tool: 1", "a: one"]);
    assert_eq!(tools, [json!({"type": "function", "function": {"name": "f", "description": "d"}})]);

    let call = |id: &str, x: &str| json!({"id": id, "function": {"name": "f", "arguments": format!("{{\"x\": {x}}}")}});
    let row = json!({"messages": [{"role": "user", "content": "q"},
        {"role": "assistant", "content": "let me see", "loss": 0, "tool_calls": [call("a", "1"), call("b", "2")]},
        {"role": "tool", "tool_call_id": "b", "content": {"r": 2}}, {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "assistant", "content": null, "tool_calls": [call("c", "3")]}]});
    assert_eq!(
        read(row),
        [
            "u: q",
            "!a: let me see",
            r#"!call: {"name": "f", "arguments": {"x": 1}}"#,
            r#"!call: {"name": "f", "arguments": {"x": 2}}"#,
            "tool: 1",
            r#"tool: {"r": 2}"#,
            r#"call: {"name": "f", "arguments": {"x": 3}}"#,
        ]
    );
    // Ids that don't match one to one leave the order alone.
    let row = json!({"messages": [{"role": "assistant", "tool_calls": [call("a", "1"), call("a", "2")]},
        {"role": "tool", "tool_call_id": "b", "content": "x"}, {"role": "tool", "tool_call_id": "a", "content": "y"}]});
    assert_eq!(read(row)[2..], ["tool: x", "tool: y"]);
}

#[test]
fn names_what_is_wrong() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    for (row, expected) in [
        (json!([1]), "is a list, not an object"),
        (json!({"id": 1}), "has no known column"),
        (json!({"query": "q", "response": null}), "has no response"),
        (json!({"messages": null}), "has no known column"),
        (json!({"messages": []}), "the list of messages is empty"),
        (json!({"messages": "hi"}), "the messages are text, not a list"),
        (json!({"messages": {"role": []}}), "the messages are an object, not a list"),
        (json!({"messages": ["hi"]}), "message 1 is text, not an object"),
        (user(json!("hi")), "no message is the assistant's"),
        (user(json!(null)), "message 1: has no content"),
        (user(json!(7)), "message 1: the content is a number, not text"),
        (
            user(json!([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}])),
            "message 1: the content has a part of type `image_url`, not text",
        ),
        (user(json!([{"type": "text"}])), "message 1: the content has a part of type `text`, not text"),
        (user(json!([[]])), "message 1: the content has a part that is a list"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "message 1: the role `king` is unknown"),
        (json!({"messages": [{"role": 1, "content": "x"}]}), "message 1: the role is a number"),
        (json!({"messages": [{"content": "x"}]}), "message 1: has no role"),
        (json!({"messages": [{"gpt": "x"}]}), "message 1 has no role, and as a pair it has no `user`"),
        (json!({"messages": [{"role": "assistant", "content": "a\0"}]}), "message 1 holds a NUL character"),
        (json!({"answer": "a", "output": "b"}), "the columns `answer` and `output` mean the same"),
        (json!({"response": "b", "image": "a.png"}), "the column `image` is not empty"),
        (json!({"response": "b", "history": [["a"]]}), "a round of `history` is a list, not a pair"),
        (json!({"response": "b", "tools": 1}), "`tools` is a number"),
        (
            json!({"messages": [{"from": "function_call", "value": "f(1)"}]}),
            "message 1: a tool call is text, not an object in JSON",
        ),
    ] {
        assert_eq!(problem(row.clone()), expected, "{row}");
    }
    // The standard name wins, and empty columns of media are no media.
    assert_eq!(read(json!({"answer": "a", "response": "b", "images": []})), ["a: b"]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let words = "messages|conversations|system|tools|query|response|instruction|input|output|history|role|from|content|\
                 value|human|assistant|gpt|user|tool|function_call|tool_calls|name|arguments|function|loss|text|type";
    let text = prop_oneof![words, ".{0,6}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..6).prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_is_a_sound_conversation_or_a_flaw(row in any_json()) {
        if let Ok((messages, tools)) = read_row(row) {
            prop_assert!(messages.iter().any(|message| message.role.is_generated()));
            prop_assert!(messages.iter().all(|message| !message.content.contains('\0')));
            prop_assert!(tools.iter().all(Value::is_object));
            for call in messages.iter().filter(|message| message.role == Role::ToolCall) {
                let call: Value = serde_json::from_str(&call.content).unwrap();
                prop_assert!(call["name"].is_string() && call.get("arguments").is_some());
            }
        }
    }
}

#[test]
fn a_message_is_no_row_and_thoughts_are_no_extra() {
    for row in [json!({"role": "user", "content": "q"}), json!({"from": "gpt", "value": "a"})] {
        assert_eq!(problem(row), "is one message, not a conversation");
    }
    assert_eq!(read(json!({"role": "reviewer", "content": "only"})), ["a: only"], "that is a column like any other");
    let row = |thought: Value| {
        json!({"messages": [{"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": thought}]})
    };
    assert!(problem(row(json!("because"))).contains("thoughts are in `reasoning_content`"));
    assert_eq!(
        (read(row(json!(""))), read(row(Value::Null))),
        (vec!["u: q".into(), "a: a".into()], vec!["u: q".into(), "a: a".into()])
    );
}
