//! `qft train` on rows of many forms: what of each is trained on, what is left out and by what name, and what a
//! checkpoint tells those who take it.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::train::{printed, run_of};
use crate::workbench::Bench;

/// As those of Qwen2.5-Instruct: it looks at the first message, and has a system message of its own.
const CHATML: &str = "{%- set first = messages[0]['role'] == 'system' -%}\n<|im_start|>system\n{{ messages[0]['content'] if \
    first else 'Be kind.' }}<|im_end|>\n{% for m in (messages[1:] if first else messages) -%}\n<|im_start|>{{ m['role'] \
    }}\n{{ m['content'] }}<|im_end|>\n{% endfor -%}\n{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}";

/// As that of `DeepSeek-R1-Distill`: it cuts the thoughts out of every turn, and its prompt opens one.
const CUTS: &str = "{%- for m in messages -%}{%- if m.role == 'user' -%}<|im_start|>{{ m.content }}{%- else -%}<|extra|>{{ \
    m.content.split('</think>')[-1] }}<|im_end|>{%- endif -%}{%- endfor -%}{%- if add_generation_prompt %}<|extra|><think>\n\
    {% endif -%}";

const TRAIN: &str = "train --model base --dataset data.jsonl --device cpu --report_to none --lora_rank 2 \
                     --gradient_accumulation_steps 1 --max_steps 1 --add_version false";

/// A base with this template, and rows of data.
fn bench(template: &str, rows: &[Value]) -> Bench {
    let bench = Bench::new();
    bench.trainee("base", "qwen2");
    bench.write("base/chat_template.jinja", template);
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    bench.write("data.jsonl", lines);
    bench
}

fn said(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn messages(messages: &[Value]) -> Value {
    json!({"messages": messages})
}

/// Of each row that a run below `output` has tokenized, what is trained on.
fn learned(bench: &Bench, output: &str) -> Vec<Vec<String>> {
    let tokenizer = Tokenizer::from_file(bench.path("base/tokenizer.json")).unwrap();
    let files: Vec<_> = fs::read_dir(bench.path(output).join("tokens")).unwrap().map(|e| e.unwrap().path()).collect();
    // The largest is the one that is trained on, if some is held out.
    let bytes = files.iter().map(|path| fs::read(path).unwrap()).max_by_key(Vec::len).unwrap();
    let set = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        set.tensor(name).unwrap().data().chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect()
    };
    let (ids, weights) = (words("ids"), words("weights"));
    let mut at = 0;
    let mut rows = Vec::new();
    for len in words("lengths") {
        let range = at..at + len as usize;
        at = range.end;
        let tokens: Vec<(u32, bool)> = range.map(|at| (ids[at], weights[at] != 0)).collect();
        let spans = tokens.chunk_by(|a, b| a.1 == b.1).filter(|span| span[0].1);
        let ids = |span: &[(u32, bool)]| span.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        rows.push(spans.map(|span| tokenizer.decode(&ids(span), false).unwrap()).collect());
    }
    rows
}

/// What a run of `line` on `bench` learns of each row, and what it says.
fn trained(bench: &Bench, line: &str, output: &str) -> (Vec<Vec<String>>, String) {
    let done = bench.ok(&format!("{TRAIN} {line} --output_dir {output}"));
    (learned(bench, output), done.err)
}

#[test]
fn rows_that_begin_with_the_assistant_are_learned() {
    let from = |who: &str, value: &str| json!({"from": who, "value": value});
    let welcome = [from("gpt", "Welcome!"), from("human", "hi"), from("gpt", "hello")];
    let rows = [json!({"conversations": welcome}), json!({"conversations": welcome[1..]})];
    let bench = bench(CHATML, &rows);
    let (rows, _) = trained(&bench, "--strict true", "o");
    assert_eq!(rows, [vec!["Welcome!<|im_end|>\n", "hello<|im_end|>\n"], vec!["hello<|im_end|>\n"]]);
}

#[test]
fn thoughts_that_the_template_cuts_are_learned_and_noted() {
    let turns = ["<think>\nadd\n</think>\n\n4", "<think>\nadd three\n</think>\n\n6"];
    let row = messages(&[
        said("user", "2+2?"),
        said("assistant", turns[0]),
        said("user", "3+3?"),
        said("assistant", turns[1]),
    ]);
    let bench = bench(CUTS, &[row]);
    let ended = turns.map(|turn| format!("{turn}<|im_end|>"));
    let (rows, notes) = trained(&bench, "--strict true", "o");
    assert_eq!(rows, [ended.to_vec()]);
    let note = "turns with the full text of their rows: 2";
    assert!(notes.contains(note) && notes.contains("--loss_scale last_round"), "{notes}");
    // What the note offers.
    let (rows, notes) = trained(&bench, "--strict true --loss_scale last_round", "last");
    assert_eq!(rows, [ended[1..].to_vec()]);
    assert!(notes.contains("with the full text of their rows: 1") && !notes.contains("last_round alone"), "{notes}");
    let (rows, notes) = trained(&bench, "--loss_scale all", "all");
    assert!(rows[0].concat().contains(&ended[0]) && rows[0].concat().ends_with(&ended[1]), "{rows:?}");
    assert!(notes.contains(note), "{notes}");
    // It is said again where the tokens come from the cache.
    let again = bench.ok(&format!("{TRAIN} --output_dir o --resume_from_checkpoint true --max_steps 2"));
    assert!(again.err.contains(note), "{}", again.err);
    bench.write("data.jsonl", messages(&[said("user", "hi"), said("assistant", "hello")]).to_string());
    let (rows, notes) = trained(&bench, "--strict true", "plain");
    assert_eq!(rows, [["hello<|im_end|>"]]);
    assert!(!notes.contains("with the full text of their rows"), "{notes}");
}

#[test]
fn a_weight_of_0_is_not_learned() {
    let weighed = |role: &str, content: &str, weight: u8| json!({"role": role, "content": content, "weight": weight});
    let row = messages(&[
        weighed("user", "a", 0),
        weighed("assistant", "b", 0),
        said("user", "c"),
        weighed("assistant", "d", 1),
    ]);
    let bench = bench(CHATML, &[row]);
    for scale in ["default", "last_round"] {
        assert_eq!(trained(&bench, &format!("--loss_scale {scale}"), scale).0, [["d<|im_end|>\n"]]);
    }
}

#[test]
fn prompts_and_completions_are_lists_or_text() {
    let prompt = [said("user", "a"), said("assistant", "b"), said("user", "c")];
    let rows =
        [json!({"prompt": prompt, "completion": [said("assistant", "d")]}), json!({"prompt": "e", "completion": "f"})];
    let (rows, _) = trained(&bench(CHATML, &rows), "--strict true", "o");
    assert_eq!(rows, [["d<|im_end|>\n"], ["f<|im_end|>\n"]]);
}

#[test]
fn a_row_may_be_printed_over_lines() {
    let row = messages(&[said("user", "q"), said("assistant", "a")]);
    let bench = bench(CHATML, &[]);
    bench.write("data.jsonl", format!("{row:#}\n{row}\n{row:#}"));
    let (rows, notes) = trained(&bench, "--strict true --system S", "o");
    assert_eq!(rows, vec![["a<|im_end|>\n"]; 3]);
    assert!(notes.contains("3 samples, ") && !notes.contains("left out"), "{notes}");
    let plan = printed(&bench.ok(&format!("{TRAIN} --dry-run --json")));
    assert_eq!(plan["data"]["lengths"]["samples"], 3);
}

#[test]
fn rows_that_are_left_out_are_named() {
    let ask = |content: &str| messages(&[said("user", content), said("assistant", "ok")]);
    let odd = messages(&[said("user", "a"), said("tool", "b"), said("assistant", "c")]);
    let unlearned =
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": 0}]});
    let rows = [ask("a"), odd, ask(&"and so on ".repeat(90)), unlearned, ask(&"x".repeat(100_000)), json!({"id": 1})];
    let template = CHATML.replace(
        "<|im_start|>{{",
        "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}<|im_start|>{{",
    );
    let bench = bench(&template, &rows);
    let line = format!("{TRAIN} --max_length 128");
    let text = bench.ok(&format!("{line} --dry-run")).out;
    for expected in [
        "rows left out: 5 (1 no trainable token, 1 refused, 2 too long, 1 unreadable)",
        "data.jsonl, line 2: the chat template of base/chat_template.jinja rejects it: no tools",
        "data.jsonl, line 3: has ",
        "data.jsonl, line 4: has no trainable token",
        "data.jsonl, line 5: has ",
        "tokens or more, more than --max_length",
        "data.jsonl, line 6: has no known column",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let plan = printed(&bench.ok(&format!("{line} --dry-run --json")));
    let of = |key: &str| plan["data"][key].as_array().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((of("dropped").len(), of("skipped").len()), (4, 1), "{plan:#}");
    assert!(of("dropped")[0].contains("data.jsonl, line 2: ") && of("dropped")[0].contains("no tools"));
    assert!(plan["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains("line 5")), "{plan:#}");
    let run = bench.ok(&format!("{line} --output_dir o"));
    assert!(run.err.contains("rows left out: 5") && run.err.contains("data.jsonl, line 2"), "{}", run.err);
    bench.refuses(&format!("{line} --strict true"), &["data.jsonl: line 6: has no known column"]);
    let lines: Vec<String> = rows[..5].iter().map(ToString::to_string).collect();
    bench.write("data.jsonl", lines.join("\n"));
    bench.refuses(&format!("{line} --strict true"), &["data.jsonl, line 2: the chat template", "no tools", "--strict"]);
}

/// The last word of a run without rows is about the reason that they have, and doing what it says helps.
#[test]
fn where_no_row_is_left_the_remedy_is_for_the_reason() {
    let long = messages(&[said("user", &"and so on ".repeat(90)), said("assistant", "ok")]);
    let bench = bench(CHATML, &[long]);
    let short = format!("{TRAIN} --max_length 64");
    bench.refuses(
        &short,
        &["no row is left", "1 too long", "data.jsonl, line 1", "raise --max_length", "--truncation_strategy left"],
    );
    bench.ok(&format!("{TRAIN} --max_length 1024 --dry-run"));
    bench.ok(&format!("{short} --truncation_strategy left --dry-run"));
    let call = json!({"name": "f", "arguments": {}}).to_string();
    let row = |loss: bool| {
        let call = json!({"role": "tool_call", "content": call, "loss": loss});
        messages(&[said("user", "a"), call, said("tool", "1"), said("assistant", "b")])
    };
    bench.write("data.jsonl", row(true).to_string());
    let refused =
        bench.refuses(TRAIN, &["1 refused", "data.jsonl, line 1", "leaves out a tool call", "\"loss\": false"]);
    assert!(!refused.err.contains("--max_length"), "{}", refused.err);
    bench.write("data.jsonl", row(false).to_string());
    assert_eq!(trained(&bench, "", "o").0, [["b<|im_end|>\n"]]);
}

#[test]
fn a_checkpoint_tells_the_end_of_turns_and_ms_swift_s_names() {
    let bench = bench(CHATML, &[messages(&[said("user", "a"), said("assistant", "b")])]);
    let id = Tokenizer::from_file(bench.path("base/tokenizer.json")).unwrap().token_to_id("<|im_end|>").unwrap();
    let line = TRAIN.replace(" --add_version false", "");
    let note = format!("ends a turn with <|im_end|> ({id}), but generation_config.json stops at 0");
    for (eos, noted) in [(json!(0), true), (json!([0, id]), false)] {
        bench.write("base/generation_config.json", json!({"eos_token_id": eos}).to_string());
        let plan = bench.ok(&format!("{line} --dry-run"));
        assert_eq!(plan.out.contains(&note), noted, "{}", plan.out);
        assert!(!plan.out.contains("model_type  "), "what was found out is not what was asked: {}", plan.out);
    }
    bench.ok(&format!("{line} --torch_dtype bf16 --model_type qwen2_5 --template qwen2_5 --output_dir o"));
    let run = run_of(&bench, "o");
    let args = bench.json(run.join("checkpoint-1/args.json"));
    let expected = json!({"model_type": "qwen2", "template": "chatml", "system": "Be kind.", "turn_end_token_ids": [id],
        "swift_version": "4.6.0", "torch_dtype": "bfloat16", "model": "base", "tuner_type": "lora"});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&args[key], value, "{key}");
    }
    // What is noted there is not held against a run that goes on.
    let resumed = bench.ok(&format!("{line} --max_steps 2 --output_dir o --resume_from_checkpoint true"));
    assert!(!resumed.err.contains("model_type was") && !resumed.err.contains("system was"), "{}", resumed.err);
    assert!(bench.path(&run).join(Path::new("checkpoint-2/args.json")).exists());
}

#[test]
fn a_warm_up_may_be_a_share_of_all_steps() {
    let bench = bench(CHATML, &[messages(&[said("user", "a"), said("assistant", "b")])]);
    let steps = |flags: &str| {
        let line = TRAIN.replace("--max_steps 1", "--max_steps 30");
        printed(&bench.ok(&format!("{line} {flags} --dry-run --json")))["warmup_steps"].clone()
    };
    assert_eq!(steps("--warmup_steps 0.1"), 3);
    assert_eq!(steps("--warmup_ratio 0.1"), 3);
    assert_eq!(steps("--warmup_steps 0.05 --warmup_ratio 0.5"), 2);
    assert_eq!(steps("--warmup_steps 7 --warmup_ratio 0.5"), 7);
    let usage = bench.qft(&format!("{TRAIN} --warmup_steps 1.5"));
    assert_eq!((usage.code, usage.err.contains("a share of all")), (Some(2), true), "{}", usage.err);
}
