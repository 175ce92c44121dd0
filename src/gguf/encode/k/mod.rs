//! The K types: super-blocks of 256 values, each with a scale for sub-blocks of 16 or 32.

mod reference;
mod superblock;

pub(super) use reference::encode;
