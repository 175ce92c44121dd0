//! What a config.json says of the model to train: its family and its sizes. A family is a row of the table.

use std::path::PathBuf;

use serde_json::Value;

use super::family::Window;
use super::names;
use super::registry::FAMILIES;
use super::rope::Rope;
use crate::checkpoint::{Checkpoint, ConfigText};
use crate::error::{Error, Result, escaped};

/// The projections of a layer that can be adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named as in the saved models")]
pub enum Projection {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Projection {
    /// All, in the order of a layer.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The last part of its path: `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Its path in the model: `model.layers.3.self_attn.q_proj`.
    pub fn path(self, layer: usize) -> String {
        let block = if matches!(self, Self::Gate | Self::Up | Self::Down) { "mlp" } else { "self_attn" };
        format!("model.layers.{layer}.{block}.{}", self.name())
    }
}

/// The heads of an attention layer. A row of queries, keys and values is `[query heads | key heads | value heads]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key heads, and value heads; each serves `query / key` query heads in a row.
    pub key: usize,
    /// Values of a head.
    pub size: usize,
}

impl Heads {
    /// Values of a row of queries, keys and values.
    pub fn row(&self) -> usize {
        (self.query + 2 * self.key) * self.size
    }

    /// The factor on scores: 1 / sqrt(size).
    pub fn scale(&self) -> f32 {
        (1.0 / (self.size as f64).sqrt()) as f32
    }
}

/// The sizes of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Layers.
    pub layers: usize,
    /// Values of a hidden state.
    pub hidden: usize,
    /// Values between the two halves of an MLP.
    pub width: usize,
    /// Rows of the embeddings.
    pub vocabulary: usize,
    /// Heads of attention.
    pub heads: Heads,
    /// Added to the mean square in RMSNorm.
    pub epsilon: f32,
    /// Whether the head is the embeddings.
    pub tied: bool,
    /// Rotary embedding.
    pub rope: Rope,
    /// Positions that the model was made for, where it says so.
    pub positions: Option<usize>,
    /// Most tokens that a query attends to, where the model limits it.
    pub window: Option<usize>,
}

/// Most of anything that a config may claim: far above any model, and safe to multiply.
const LIMIT: u64 = 1 << 24;

impl Spec {
    /// Reads the config of `base`.
    pub fn read(base: &Checkpoint) -> Result<Self> {
        let Some(config) = &base.config else {
            return Err(Error::malformed(&base.dir, "holds no config.json", "take it from the model's source"));
        };
        Fields { config, path: base.dir.join("config.json") }.spec(base)
    }

    /// Outputs and inputs of a projection.
    pub fn shape(&self, projection: Projection) -> [usize; 2] {
        let Heads { query, key, size } = self.heads;
        match projection {
            Projection::Q => [query * size, self.hidden],
            Projection::K | Projection::V => [key * size, self.hidden],
            Projection::O => [self.hidden, query * size],
            Projection::Gate | Projection::Up => [self.width, self.hidden],
            Projection::Down => [self.hidden, self.width],
        }
    }
}

struct Fields<'c> {
    config: &'c ConfigText,
    path: PathBuf,
}

impl Fields<'_> {
    fn spec(&self, base: &Checkpoint) -> Result<Spec> {
        let model_type = self.config.string(&["model_type"]).unwrap_or_default();
        let computed = FAMILIES.iter().filter(|family| family.computed).map(|family| (family, &family.classes[0]));
        let Some((family, class)) = computed.clone().find(|(_, class)| class.model_type == model_type) else {
            let known = computed.map(|(_, class)| class.model_type).collect::<Vec<_>>().join(", ");
            return Err(Error::unsupported(
                format!("the model is of type {:?}, which qft can't train", escaped(&model_type)),
                format!("choose a base of one of these types: {known}"),
            ));
        };
        let in_layers = |name: &&String| name.starts_with("model.layers.");
        if let Some(unknown) = base.tensors.keys().filter(in_layers).find(|name| !names::is_known(family, name)) {
            let problem = format!("the model has the tensor {}, which no layer of {model_type} has", escaped(unknown));
            return Err(Error::unsupported(problem, "correct model_type in config.json, or train another base"));
        }
        if let Some(method) = base.quantization() {
            let problem = format!("the base is quantized ({method}), and qft trains on bf16, f16 or f32");
            return Err(Error::unsupported(problem, "name the model that it was quantized from with ⟦model⟧"));
        }
        match self.config.string(&["hidden_act"]).as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                let problem = format!("has the activation {:?}", escaped(other));
                return Err(self.malformed(
                    &problem,
                    "qft supports silu only: choose a base whose hidden_act is silu with ⟦model⟧",
                ));
            }
        }
        let hidden = self.size("hidden_size")?;
        let query = self.size("num_attention_heads")?;
        let key = self.size_or("num_key_value_heads", query)?;
        let size = self.size_or("head_dim", hidden / query.max(1))?;
        if query % key != 0 || size % 2 != 0 || size > 1024 || hidden % 8 != 0 {
            let problem = format!("has {query} query and {key} key heads of {size} values, {hidden} hidden");
            return Err(self.malformed(&problem, "restore config.json from its source"));
        }
        let epsilon = self.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
        let uses_window = match class.window {
            Window::Never => false,
            Window::Always => true,
            Window::Switched => self.flag("use_sliding_window"),
        };
        Ok(Spec {
            model_type: class.model_type,
            layers: self.layers(base)?,
            hidden,
            width: self.size("intermediate_size")?,
            vocabulary: self.size("vocab_size")?,
            heads: Heads { query, key, size },
            epsilon,
            tied: self.flag("tie_word_embeddings"),
            rope: Rope::read(self.config, &self.path, size)?,
            positions: self.optional("max_position_embeddings")?,
            window: if uses_window { self.optional("sliding_window")? } else { None },
        })
    }

    /// As many layers as are said, of which each must have tensors: lists are made for all of them.
    fn layers(&self, base: &Checkpoint) -> Result<usize> {
        let (layers, tensors) = (self.size("num_hidden_layers")?, base.tensors.len());
        if layers <= tensors {
            return Ok(layers);
        }
        let problem = format!("has {layers} layers, and the model {tensors} tensors");
        Err(self.malformed(&problem, "get the complete model, or correct num_hidden_layers in config.json"))
    }

    fn malformed(&self, problem: &str, remedy: &'static str) -> Error {
        Error::malformed(&self.path, problem, remedy)
    }

    fn flag(&self, key: &str) -> bool {
        self.config.get(&[key]).and_then(|value| value.as_bool()).unwrap_or(false)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.config.get(&[key]) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.malformed(&format!("{key} is no number"), "restore config.json from its source")),
            },
        }
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        match self.config.get(&[key]) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().filter(|size| (1..=LIMIT).contains(size)) {
                Some(size) => Ok(Some(size as usize)),
                None => Err(self.malformed(&format!("{key} is no size"), "restore config.json from its source")),
            },
        }
    }

    fn size_or(&self, key: &str, otherwise: usize) -> Result<usize> {
        Ok(self.optional(key)?.unwrap_or(otherwise).max(1))
    }

    fn size(&self, key: &str) -> Result<usize> {
        let missing = || self.malformed(&format!("has no {key}"), "restore config.json from its source");
        self.optional(key)?.ok_or_else(missing)
    }
}
