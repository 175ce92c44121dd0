//! What a row of training data becomes, whatever its file and its spelling: messages, tools, and where they came from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::error::shown;
use crate::size::ByteSize;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the assistant.
    System,
    /// The person.
    User,
    /// The model's words.
    Assistant,
    /// The model's call of a tool. The content is a JSON object with `name` and `arguments`, and nothing else.
    ToolCall,
    /// What a tool answered.
    Tool,
}

impl Role {
    /// Whether the model writes such messages, so that training can use them.
    pub fn is_generated(self) -> bool {
        matches!(self, Self::Assistant | Self::ToolCall)
    }
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The words: any text without NUL, an empty one included.
    pub content: String,
    /// Whether this turn is trained on; `None` leaves it to the run's rule.
    pub loss: Option<bool>,
}

/// One row of training data. It has at least one message that [the model writes](Role::is_generated).
///
/// Turns are as the row has them: two of one role in a row stay two, and turns after the model's last one stay too.
/// An empty system message says that no default prompt is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The turns, in order.
    pub messages: Vec<Message>,
    /// The tools that the model may call: objects, mostly `{"type": "function", "function": {...}}`.
    pub tools: Vec<Value>,
    /// Where the row is.
    pub origin: Origin,
}

impl Conversation {
    /// Bytes of all that is said.
    pub fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.content.len()).sum()
    }
}

/// The place of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1, where the row starts in JSON or JSONL; the number of the row, from 1, in Parquet.
    pub line: u64,
}

impl Origin {
    /// The place within the file, for messages: "line 3", "row 3".
    pub fn place(&self) -> String {
        let unit = if is_parquet(&self.file) { "row" } else { "line" };
        format!("{unit} {}", self.line)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", shown(&self.file), self.place())
    }
}

/// Whether the name says that a file is Parquet.
pub(super) fn is_parquet(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
}

/// Why a row can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Which rule the row breaks.
    pub(super) problem: String,
    /// What to do about it.
    pub(super) remedy: &'static str,
}

impl Flaw {
    pub(super) fn new(problem: impl Into<String>, remedy: &'static str) -> Self {
        Self { problem: problem.into(), remedy }
    }
}

/// What kind of JSON value it is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Most bytes of a row: those of a million tokens several times over.
pub(super) const MOST_BYTES: usize = 16 << 20;

/// Refuses a row of more `bytes` than are read.
pub(super) fn refuse_much(bytes: usize) -> Result<(), Flaw> {
    if bytes <= MOST_BYTES {
        return Ok(());
    }
    let problem =
        format!("has {} of text, and at most {} are supported", ByteSize(bytes as u64), ByteSize(MOST_BYTES as u64));
    Err(Flaw::new(problem, "cut it into shorter rows, or drop it"))
}
