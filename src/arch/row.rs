//! The rows of a family's table of tensors: names in transformers and in GGUF, and the shape as axes whose sizes
//! config.json gives.

use super::settings::Settings;
use crate::error::Result;

/// An axis of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dim {
    /// Tokens.
    Vocab,
    /// Hidden values: those of a token between the layers.
    Hidden,
    /// Values between the two halves of an MLP.
    Intermediate,
    /// Queries of all heads.
    Query,
    /// Keys (or values) of all heads that have some.
    Key,
    /// One head.
    Head,
}

/// Whether a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    Never,
    Always,
    /// It may have one; it must if this switch of config.json is on.
    If(&'static str),
}

/// Which heads a tensor's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heads {
    None,
    Query,
    Key,
}

/// A tensor: its name there and here, without layer and ending, its shape, and what it has beside its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(super) theirs: &'static str,
    pub(crate) ours: &'static str,
    pub(crate) shape: [Dim; 2],
    pub(crate) axes: usize,
    pub(crate) bias: Bias,
    pub(crate) heads: Heads,
    pub(crate) must: bool,
}

impl Row {
    /// A vector that scales.
    pub(crate) const fn norm(theirs: &'static str, ours: &'static str, dim: Dim) -> Self {
        Self { theirs, ours, shape: [dim, dim], axes: 1, bias: Bias::Never, heads: Heads::None, must: true }
    }

    /// A matrix, maybe with a bias.
    pub(crate) const fn linear(theirs: &'static str, ours: &'static str, shape: [Dim; 2], bias: Bias) -> Self {
        Self { theirs, ours, shape, axes: 2, bias, heads: Heads::None, must: true }
    }

    /// The same, with rows that belong to heads.
    pub(crate) const fn of(self, heads: Heads) -> Self {
        Self { heads, ..self }
    }

    const fn optional(self) -> Self {
        Self { must: false, ..self }
    }

    /// Its name in the GGUF, in a layer or outside.
    pub(crate) fn our_name(&self, layer: Option<u64>, bias: bool) -> String {
        let ending = ending(bias);
        layer.map_or_else(|| format!("{}.{ending}", self.ours), |layer| format!("blk.{layer}.{}.{ending}", self.ours))
    }

    /// Its name in the Hugging Face model.
    pub(crate) fn their_name(&self, layer: Option<u64>, bias: bool) -> String {
        let (theirs, ending) = (self.theirs, ending(bias));
        match layer {
            Some(layer) => format!("model.layers.{layer}.{theirs}.{ending}"),
            None if theirs == "lm_head" => format!("{theirs}.{ending}"),
            None => format!("model.{theirs}.{ending}"),
        }
    }
}

fn ending(bias: bool) -> &'static str {
    if bias { "bias" } else { "weight" }
}

/// Tensors outside the layers.
pub(crate) const OUTSIDE: [Row; 3] = [
    Row::linear("embed_tokens", "token_embd", [Dim::Vocab, Dim::Hidden], Bias::Never),
    Row::norm("norm", "output_norm", Dim::Hidden),
    // Absent where the embedding serves as the output too.
    Row::linear("lm_head", "output", [Dim::Vocab, Dim::Hidden], Bias::Never).optional(),
];

/// The sizes that shapes are made of, each below 2^32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) vocab: u64,
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
    pub(crate) query_heads: u64,
    pub(crate) key_heads: u64,
    pub(crate) head: u64,
    pub(crate) layers: u64,
}

impl Sizes {
    pub(super) fn of(settings: &Settings) -> Result<Self> {
        let query_heads = settings.require("num_attention_heads")?;
        let key_heads = settings.get("num_key_value_heads").map(|_| settings.require("num_key_value_heads"));
        Ok(Self {
            vocab: settings.require("vocab_size")?,
            hidden: settings.require("hidden_size")?,
            intermediate: settings.require("intermediate_size")?,
            query_heads,
            key_heads: key_heads.transpose()?.unwrap_or(query_heads),
            head: settings.head_dim()?,
            layers: settings.require("num_hidden_layers")?,
        })
    }

    /// Every factor is below 2^32, so no product overflows.
    pub(crate) fn size(&self, dim: Dim) -> u64 {
        match dim {
            Dim::Vocab => self.vocab,
            Dim::Hidden => self.hidden,
            Dim::Intermediate => self.intermediate,
            Dim::Query => self.query_heads * self.head,
            Dim::Key => self.key_heads * self.head,
            Dim::Head => self.head,
        }
    }
}
