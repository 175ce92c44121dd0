//! Reading untrusted files: mapped, or opened as small texts with a bound. Knows no format.

mod mapping;
mod open;

pub(crate) use mapping::release;
pub use mapping::{LOST_MAPPING_EXIT, Mapping, prepare_signals, report_lost_mappings};
pub(crate) use open::cannot_open;
pub use open::{open_regular, read_small, read_text, read_text_if_there};
