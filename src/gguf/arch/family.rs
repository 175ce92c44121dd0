//! What a family of models is to a conversion: the architectures that belong to it, its tensors' names and shapes, and
//! how its vocabulary is made. The families themselves are one file each.

use super::names::Row;
use crate::gguf::vocab::Recipe;

/// A family of models.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// `architectures` of config.json.
    pub(super) architectures: &'static [&'static str],
    /// Tensors of a layer.
    pub(super) layer: &'static [Row],
    /// Query and key rows are reordered: llama.cpp rotates neighbours, transformers rotates halves.
    pub(super) permutes: bool,
    /// A scaling of type llama3 becomes a tensor of factors.
    pub(super) generates_rope_factors: bool,
    /// The keys `vocab_size` and `rope.dimension_count` are written.
    pub(super) writes_vocab_size: bool,
    /// How the vocabulary is made.
    pub(super) vocabulary: &'static Recipe,
}
