//! Tests against what transformers makes of the same conversations: `fixtures/make_chat.py` writes it. The real
//! tokenizers are too large to be kept here: their directories come from the environment.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::text::ChatTemplate;

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    name: String,
    conversation: Written,
    system: Option<String>,
    text: String,
    prompt: Option<String>,
    ids: Vec<u32>,
    trained: Option<Vec<[usize; 2]>>,
}

#[derive(Deserialize)]
struct Written {
    messages: Vec<Said>,
    #[serde(default)]
    tools: Vec<Value>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
    loss: Option<bool>,
}

impl Case {
    fn row(&self) -> Conversation {
        let role = |name: &str| match name {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool_call" => Role::ToolCall,
            _ => Role::Tool,
        };
        let message = |m: &Said| Message { role: role(&m.role), content: m.content.clone(), loss: m.loss };
        Conversation {
            messages: self.conversation.messages.iter().map(message).collect(),
            tools: self.conversation.tools.clone(),
            origin: Origin { file: Path::new("golden").into(), line: 1 },
        }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat")
}

fn ranges(sample: &Sample) -> Vec<[usize; 2]> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (at, _) in sample.weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
        match ranges.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => ranges.push(at..at + 1),
        }
    }
    ranges.into_iter().map(|range| [range.start, range.end]).collect()
}

fn check(model: &Path, expected: &str) {
    let cases: Vec<Case> = serde_json::from_str(&fs::read_to_string(fixtures().join(expected)).unwrap()).unwrap();
    assert!(cases.len() >= 14);
    for case in &cases {
        let (row, name) = (case.row(), &case.name);
        let options = EncodeOptions { system: case.system.clone(), ..EncodeOptions::default() };
        let encoder = Encoder::new(model, options).unwrap();
        let rendered = encoder.render(&row).unwrap();
        assert_eq!(rendered.text, case.text, "{name}");
        let sample = encoder.encode(&row).unwrap();
        assert_eq!(sample.ids, case.ids, "{name}");
        if let Some(trained) = &case.trained {
            assert_eq!(&ranges(&sample), trained, "{name}");
        }
        let chat = turns::Chat::new(&row, case.system.as_deref()).unwrap();
        let before = &chat.messages[..chat.turns.last().unwrap().at];
        let template = ChatTemplate::open(model).unwrap();
        let prompt = template.render(before, chat.tools.as_ref(), true).unwrap();
        assert_eq!(Some(&prompt), case.prompt.as_ref(), "{name}");
    }
}

/// The directory that a variable of the environment names.
fn given(variable: &str) -> Option<PathBuf> {
    let dir = std::env::var_os(variable);
    if dir.is_none() {
        let notice = format!("skipped: {variable} does not name a directory\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), notice.as_bytes());
    }
    dir.map(PathBuf::from)
}

#[test]
fn a_small_model_is_encoded_as_by_transformers() {
    check(&fixtures().join("small"), "small.json");
}

#[test]
fn qwen2_5_is_encoded_as_by_transformers() {
    if let Some(dir) = given("QFT_QWEN_TOKENIZER") {
        check(&dir, "qwen2_5.json");
    }
}

#[test]
fn smollm2_is_encoded_as_by_transformers() {
    if let Some(dir) = given("QFT_SMOLLM2") {
        check(&dir, "smollm2.json");
    }
}

/// `QFT_CHAT_MODEL` is a model and `QFT_CHAT_ALL` what `make_chat.py --all` wrote of it.
#[test]
fn a_whole_set_is_encoded_as_by_transformers() {
    let (Some(model), Some(all)) = (given("QFT_CHAT_MODEL"), given("QFT_CHAT_ALL")) else { return };
    let cases: Vec<Case> =
        fs::read_to_string(all).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rows: Vec<Conversation> = cases.iter().map(Case::row).collect();
    let encoder = Encoder::new(&model, EncodeOptions::default()).unwrap();
    let texts = rows.iter().zip(&cases).filter(|(row, case)| encoder.render(row).unwrap().text == case.text).count();
    let started = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let set = encoder.encode_all(&rows.iter().collect::<Vec<_>>(), threads, &AtomicBool::new(false), &|_| {}).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let ids = set.samples.iter().zip(&cases).filter(|(sample, case)| sample.ids == case.ids).count();
    let trained = set.samples.iter().zip(&cases).filter(|(sample, case)| Some(ranges(sample)) == case.trained).count();
    let packs = pack(&set.lengths(), 3072).len();
    let lengths = Lengths::new(&set, &(0..set.samples.len()).collect::<Vec<_>>()).packed(packs, 3072);
    let rate = lengths.tokens as f64 / seconds;
    let report = format!(
        "{} rows: {texts} texts, {ids} id sequences and {trained} trainable ranges equal; {rate:.0} tokens/s with \
         {threads} threads\n{lengths}\n",
        rows.len()
    );
    let _ = std::io::Write::write_all(&mut std::io::stderr(), report.as_bytes());
    assert_eq!((texts, ids, trained, set.dropped.len()), (rows.len(), rows.len(), rows.len(), 0));
}
