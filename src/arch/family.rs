//! What a family of models is to a conversion: the architectures that belong to it, its tensors' names and shapes, and
//! how its vocabulary is made. The families themselves are one file each.

use super::names::Row;
use super::vocabulary::Recipe;

/// A family of models.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    /// `general.architecture`.
    pub(crate) name: &'static str,
    /// `architectures` of config.json.
    pub(crate) architectures: &'static [&'static str],
    /// Tensors of a layer.
    pub(crate) layer: &'static [Row],
    /// Query and key rows are reordered: llama.cpp rotates neighbours, transformers rotates halves.
    pub(crate) permutes: bool,
    /// A scaling of type llama3 becomes a tensor of factors.
    pub(crate) generates_rope_factors: bool,
    /// The keys `vocab_size` and `rope.dimension_count` are written.
    pub(crate) writes_vocab_size: bool,
    /// How the vocabulary is made.
    pub(crate) vocabulary: &'static Recipe,
}
