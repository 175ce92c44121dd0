//! Training data, from files to batches. Reading: `dataset` (which files, which rows) over `json` and `parquet` (rows of
//! a file), `rows`, `columns`, `roles`, `tools` (a row as a conversation) and `sample` (seeded choices). Encoding:
//! `template` over `python`, `turns` and `spans` (a conversation as text, and the turns in it), `encode` and `fit` (tokens
//! and what is trained on), `cache`, `lengths`, `pack`. Then `batch`: what a device is given. And about a template:
//! `turn_end` (the token that ends a turn) and `swift` (what ms-swift calls it).

pub mod cache;
mod columns;
mod conversation;
mod dataset;
mod encode;
mod fit;
#[cfg(test)]
mod golden;
mod json;
mod lengths;
mod pack;
mod parquet;
mod roles;
mod rows;
mod sample;
mod spans;
mod swift;
mod tools;
mod turns;

pub use conversation::{Conversation, Message, Origin, Role};
pub use dataset::{DatasetSpec, FileCounts, Loaded, Skipped, load, read_text};
pub use encode::{EncodeOptions, Encoder, LossScale, Rendered, Sample};
pub use fit::{Dropped, Encoded, Reason, Truncation};
pub use lengths::{Lengths, Packing};
pub use pack::{epoch_order, pack};
pub use sample::split;
pub use swift::{SwiftTemplate, swift_template};
