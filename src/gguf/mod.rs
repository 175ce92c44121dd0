//! GGUF, the file format of llama.cpp: reading and laying out files, naming tensors, choosing and encoding types, and
//! the reverse conversion to a Hugging Face directory. Streams nothing; `export` does.

mod bad;
mod card;
pub mod convert;
mod cursor;
mod disk;
mod file;
pub mod imatrix;
mod layout;
mod lint;
pub mod mixture;
mod model;
mod pairs;
mod read;
mod release;
mod rules;
mod split;
pub(crate) mod to_hf;
mod value;
pub mod vocab;

pub use bad::BadGguf;
pub use card::Lineage;
pub use file::{GgufFile, is_gguf};
pub use layout::{Layout, TensorForm, lay_out, trimmed};
pub use lint::lint_padding;
pub use model::{GgufModel, ModelTensor, PartName, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
pub use read::{Header, TensorInfo};
pub use release::{Finding, Verdict, lint_model};
pub(crate) use release::{check_plan, without_paths};
pub use split::{Part, split};
pub use value::{Array, Metadata, Value, ValueType};
