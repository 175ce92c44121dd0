//! Rows of training data that cost more than they are worth: without end, of thousands of turns, nested, repeated.

use serde_json::{Value, json};

use super::bounded::{Kind, all_end};
use crate::workbench::Bench;

const TRAIN: &str = "train --model base --device cpu --max_steps 1 --split_dataset_ratio 0 --dry-run --max_length 64";

fn said(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn bench() -> Bench {
    let bench = Bench::new();
    bench.trainee("base", "qwen2");
    bench.write(
        "good.jsonl",
        json!({"messages": [said("user", "the quick"), said("assistant", "brown fox")]}).to_string(),
    );
    bench
}

/// A file of this text, in the place of data.
fn file(name: &str, text: String, mentions: &'static str) -> Kind {
    let put = move |bench: &Bench| {
        bench.write("data.jsonl", &text);
    };
    Kind { name: name.to_owned(), put: Box::new(put), mentions }
}

/// A row that says `words` and is answered.
fn asked(words: &str) -> String {
    json!({"messages": [said("user", words), said("assistant", "b")]}).to_string()
}

/// A row of so many questions and answers.
fn turns(count: usize) -> String {
    let turn = |nth: usize| said(["user", "assistant"][nth % 2], &nth.to_string());
    json!({"messages": (0..2 * count).map(turn).collect::<Vec<_>>()}).to_string()
}

fn kinds() -> Vec<Kind> {
    let mut calls = vec![said("user", "go")];
    let call = json!({"name": "f", "arguments": {"x": 1}}).to_string();
    (0..1000).for_each(|_| calls.extend([said("tool_call", &call), said("tool", "1")]));
    calls.push(said("assistant", "done"));
    let one = said("assistant", "b");
    vec![
        file(
            "20 MB of words",
            asked(&"word ".repeat(4_000_000)),
            "has 20.0 MB of text, and at most 16.8 MB are supported",
        ),
        file("20 MB of spaces", asked(&" ".repeat(20_000_000)), "at most 16.8 MB are supported"),
        file("15 MB of words", asked(&"word ".repeat(3_000_000)), ""),
        file("15 MB of spaces", asked(&" ".repeat(15_000_000)), ""),
        file("15 MB of one word", asked(&"x".repeat(15_000_000)), ""),
        file("15 MB of line feeds", asked(&"\n".repeat(15_000_000)), ""),
        file("15 MB of added tokens", asked(&"<|im_end|>".repeat(1_500_000)), ""),
        file("5 MB of ideographs", asked(&"我想".repeat(800_000)), ""),
        file("15 MB of numbers", format!("{{\"messages\": [{}0]}}", "0,".repeat(7_000_000)), "message 1 is a number"),
        file("15 MB of lists", format!("{{\"messages\": [{}0]}}", "[],".repeat(5_000_000)), "message 1 is a list"),
        file(
            "15 MB of columns",
            format!("{{{}\"response\": 1}}", "\"a\": 1,".repeat(2_000_000)),
            "the content is a number",
        ),
        file("4,000 turns", turns(4000), ""),
        file("20,000 turns", turns(20_000), ""),
        file("1,000 calls", json!({"messages": calls}).to_string(), ""),
        file(
            "a thousand tools",
            json!({"messages": [said("user", "q"), one], "tools": vec![json!({"name": "f"}); 9999]}).to_string(),
            "",
        ),
        file("deep", format!("{{\"messages\": {}", "[".repeat(5_000_000)), "is not JSON"),
        file("open lists", "[\n".repeat(2_000_000), "is not JSON"),
        file("a million lines of nothing", "{}\n".repeat(1_000_000), "no known column"),
    ]
}

#[test]
fn rows_without_end_cost_little_and_are_left_out() {
    all_end(bench, &format!("{TRAIN} --dataset data.jsonl"), &kinds());
}

#[test]
fn rows_without_end_cost_little_and_are_cut() {
    let cut = ["15 MB of words", "15 MB of spaces", "15 MB of one word", "20,000 turns"];
    for side in ["left", "right"] {
        let kinds: Vec<Kind> = kinds().into_iter().filter(|kind| cut.contains(&kind.name.as_str())).collect();
        assert_eq!(kinds.len(), cut.len());
        all_end(bench, &format!("{TRAIN} --dataset data.jsonl good.jsonl --truncation_strategy {side}"), &kinds);
    }
}

#[test]
fn rows_that_are_repeated_are_kept_once() {
    let one = || vec![file("a row", asked("the quick"), "")];
    all_end(bench, &format!("{TRAIN} --dataset data.jsonl#1000000"), &one());
    let more = vec![file("a row", asked("the quick"), "requests 1000001 rows, and 1")];
    all_end(bench, &format!("{TRAIN} --dataset data.jsonl#1000001"), &more);
}
