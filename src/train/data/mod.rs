//! Training data, from files to batches. Reading: `dataset` (which files, which rows) over `json` and `parquet` (rows of
//! a file), `rows`, `columns`, `roles`, `tools` (a row as a conversation) and `sample` (seeded choices). Then `batch`:
//! from conversations to batches of tokens.

mod batch;
mod columns;
mod conversation;
mod dataset;
mod json;
mod parquet;
mod roles;
mod rows;
mod sample;
mod tools;

pub use batch::{Batch, Target};
pub use conversation::{Conversation, Message, Origin, Role};
pub use dataset::{DatasetSpec, FileCounts, Loaded, Skipped, load, read_text};
pub use sample::split;
