//! What a family of models is: the architectures that belong to it, its configuration classes, its tensors' names and
//! shapes, how its vocabulary is made, and whether it can be trained. The families themselves are one file each.

use super::row::Row;
use super::vocabulary::Recipe;

/// A family of models.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    /// `general.architecture` of a GGUF.
    pub(crate) name: &'static str,
    /// `architectures` of config.json.
    pub(crate) architectures: &'static [&'static str],
    /// Its configuration classes in transformers. The first is the one that a config.json which qft makes names.
    pub(crate) classes: &'static [ConfigClass],
    /// Tensors of a layer.
    pub(crate) layer: &'static [Row],
    /// Whether `model` computes its layers, so that it can be trained.
    pub(crate) computed: bool,
    /// Query and key rows are reordered: llama.cpp rotates neighbours, transformers rotates halves. No family with norms on
    /// queries or keys has this, since those norms are not reordered.
    pub(crate) permutes: bool,
    /// A scaling of type llama3 becomes a tensor of factors.
    pub(crate) generates_rope_factors: bool,
    /// The keys `vocab_size` and `rope.dimension_count` are written.
    pub(crate) writes_vocab_size: bool,
    /// It has models that embed or rank texts, which the converter treats apart.
    pub(crate) has_embedders: bool,
    /// How the vocabulary is made.
    pub(crate) vocabulary: &'static Recipe,
}

/// A configuration class of transformers, which reads config.json.
/// Source: `configuration_*.py` of transformers 5.23.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConfigClass {
    /// `model_type` of config.json.
    pub(crate) model_type: &'static str,
    /// Which class reads such a file if it lists `layer_types`, where that is another (transformers' `AutoConfig`).
    pub(crate) with_layer_types: Option<&'static str>,
    /// What it gives to settings that config.json lacks: of the settings that are read here. Lists that classes share stand
    /// once.
    pub(crate) defaults: &'static [&'static [Setting]],
    /// Which layers attend to the last tokens only.
    pub(crate) window: Window,
    /// Settings of the rotary embedding may be nested by the kind of layer though no `layer_types` are listed.
    pub(crate) nests_rope: bool,
    /// Hidden values must be a multiple of the heads.
    pub(crate) divides_heads: bool,
}

/// A setting with the value that it gets.
pub(crate) type Setting = (&'static str, Default);

/// A value that transformers gives to a setting that config.json lacks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Default {
    /// A whole number.
    Int(u64),
    /// A number.
    Float(f64),
    /// A switch that is off.
    Off,
    /// As many as the attention heads. It also stands in for null.
    Heads,
    /// The number, and as many as the attention heads for null.
    IntOrHeads(u64),
    /// The hidden values over the heads. It also stands in for null.
    HeadDim,
}

/// Whether `sliding_window` counts, where config.json lists no kinds of layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// It never does.
    Never,
    /// It does for every layer.
    Always,
    /// It does for layers from `max_window_layers` on, if `use_sliding_window` is on.
    Switched,
}
