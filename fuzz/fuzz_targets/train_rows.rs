//! Rows of training data. What is read is fit to train on, each row starts on a line of the file, and rows that are
//! good by themselves are good in a list, too.
//! An input is a whole file, read once as .json and once as .jsonl.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qft::train::data::{Loaded, Role, read_text};

fuzz_target!(|text: &[u8]| {
    let lines = text.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
    for name in ["rows.json", "rows.jsonl"] {
        let Ok(loaded) = read_text(Path::new(name), text, false) else { continue };
        for conversation in &loaded.conversations {
            assert!((1..=lines).contains(&conversation.origin.line));
            assert!(conversation.messages.iter().any(|message| message.role.is_generated()));
            assert!(conversation.messages.iter().all(|message| !message.content.contains('\0')));
            for call in conversation.messages.iter().filter(|message| message.role == Role::ToolCall) {
                let call: serde_json::Value = serde_json::from_str(&call.content).expect("a call is JSON");
                assert!(call["name"].is_string() && call.get("arguments").is_some());
            }
        }
        assert!(loaded.skipped.iter().all(|skipped| (1..=lines).contains(&skipped.origin.line)));
        let strict = read_text(Path::new(name), text, true);
        assert_eq!(strict.is_ok(), loaded.skipped.is_empty());
    }
    let Ok(lines) = read_text(Path::new("rows.jsonl"), text, true) else { return };
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let rows: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
    // A row may go on over lines, and a list of rows too.
    let is_row = |line: &&[u8]| serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|row| row.is_object());
    if !rows.iter().all(is_row) {
        return;
    }
    let list = [b"[", rows.join(&b",\n"[..]).as_slice(), b"]"].concat();
    let list = read_text(Path::new("rows.json"), &list, true).expect("a list of good rows is good");
    let content = |loaded: Loaded| -> Vec<_> {
        loaded.conversations.into_iter().map(|conversation| (conversation.messages, conversation.tools)).collect()
    };
    assert_eq!(content(lines), content(list));
});
