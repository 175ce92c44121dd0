//! The architectures that have a way back: one row a family, and one row a tensor with its names and its shape in both
//! worlds. A new family of the same build is a row here; what config.json says of it is in `config`.

use std::collections::BTreeMap;

use super::config::Sizes;
use crate::error::{Error, Result, escaped};
use crate::gguf::GgufModel;

/// An architecture of llama.cpp and its class in transformers.
#[derive(Debug)]
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// `architectures` of config.json.
    pub(super) class: &'static str,
    /// `model_type` of config.json.
    pub(super) model_type: &'static str,
    /// Whether the rows of queries and keys are reordered: llama.cpp rotates neighbours, transformers halves.
    pub(super) permuted: bool,
    /// Tensors of each layer that it has beside [`LAYER`].
    extra: &'static [Named],
    /// Tensors of each layer that it may have, all of a group or none, and what config.json calls the choice.
    optional: &'static [(&'static str, &'static [Named])],
}

/// A tensor: its name in GGUF, its name in transformers, its shape.
type Named = (&'static str, &'static str, &'static [Axis]);

/// Something that config.json says, and whether it is so.
pub(super) type Choice = (&'static str, bool);

/// The length of an axis.
#[derive(Debug, Clone, Copy)]
pub(super) enum Axis {
    Vocabulary,
    Hidden,
    Inner,
    Queries,
    Keys,
    Head,
}

use Axis::{Head, Hidden, Inner, Keys, Queries, Vocabulary};

/// Tensors outside the layers, and whether a model can be without.
const TOP: [(Named, bool); 3] = [
    (("token_embd.weight", EMBEDDINGS, &[Vocabulary, Hidden]), false),
    (("output_norm.weight", "model.norm.weight", &[Hidden]), false),
    ((OUTPUT, "lm_head.weight", &[Vocabulary, Hidden]), true),
];

/// The embeddings, in transformers.
pub(super) const EMBEDDINGS: &str = "model.embed_tokens.weight";
/// The head's weight; a model without is tied.
pub(super) const OUTPUT: &str = "output.weight";
/// Factors of the rotary frequencies, which converters make from the config.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Tensors of each layer, of every family.
const LAYER: [Named; 9] = [
    ("attn_norm.weight", "input_layernorm.weight", &[Hidden]),
    ("attn_q.weight", "self_attn.q_proj.weight", &[Queries, Hidden]),
    ("attn_k.weight", "self_attn.k_proj.weight", &[Keys, Hidden]),
    ("attn_v.weight", "self_attn.v_proj.weight", &[Keys, Hidden]),
    ("attn_output.weight", "self_attn.o_proj.weight", &[Hidden, Queries]),
    ("ffn_norm.weight", "post_attention_layernorm.weight", &[Hidden]),
    ("ffn_gate.weight", "mlp.gate_proj.weight", &[Inner, Hidden]),
    ("ffn_up.weight", "mlp.up_proj.weight", &[Inner, Hidden]),
    ("ffn_down.weight", "mlp.down_proj.weight", &[Hidden, Inner]),
];

const QKV_BIASES: [Named; 3] = [
    ("attn_q.bias", "self_attn.q_proj.bias", &[Queries]),
    ("attn_k.bias", "self_attn.k_proj.bias", &[Keys]),
    ("attn_v.bias", "self_attn.v_proj.bias", &[Keys]),
];

const ATTENTION_BIASES: [Named; 4] =
    [QKV_BIASES[0], QKV_BIASES[1], QKV_BIASES[2], ("attn_output.bias", "self_attn.o_proj.bias", &[Hidden])];

const MLP_BIASES: [Named; 3] = [
    ("ffn_gate.bias", "mlp.gate_proj.bias", &[Inner]),
    ("ffn_up.bias", "mlp.up_proj.bias", &[Inner]),
    ("ffn_down.bias", "mlp.down_proj.bias", &[Hidden]),
];

const HEAD_NORMS: [Named; 2] = [
    ("attn_q_norm.weight", "self_attn.q_norm.weight", &[Head]),
    ("attn_k_norm.weight", "self_attn.k_norm.weight", &[Head]),
];

const FAMILIES: [Family; 3] = [
    Family {
        name: "llama",
        class: "LlamaForCausalLM",
        model_type: "llama",
        permuted: true,
        extra: &[],
        optional: &[("attention_bias", &ATTENTION_BIASES), ("mlp_bias", &MLP_BIASES)],
    },
    Family {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        model_type: "qwen2",
        permuted: false,
        extra: &QKV_BIASES,
        optional: &[],
    },
    Family {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        permuted: false,
        extra: &HEAD_NORMS,
        optional: &[("attention_bias", &ATTENTION_BIASES)],
    },
];

/// A tensor of the model, found and named.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Which of the GGUF model's tensors it is.
    pub(super) index: usize,
    /// Its name in transformers.
    pub(super) name: String,
    /// Its shape there.
    pub(super) shape: Vec<usize>,
    /// The heads that its rows are reordered as.
    pub(super) heads: Option<usize>,
}

/// Most names that a refusal lists.
const LISTED: usize = 6;

impl Family {
    /// The family of a model.
    pub(super) fn of(architecture: &str) -> Result<&'static Self> {
        FAMILIES.iter().find(|family| family.name == architecture).ok_or_else(|| {
            let known = FAMILIES.map(|family| family.name).join(", ");
            Error::refused(
                format!("a model of the architecture {} has no way back to Hugging Face yet", escaped(architecture)),
                format!("use the original model; the way back is known for {known}"),
            )
        })
    }

    /// Names every tensor of `model`. Refuses unknown, missing and misshapen ones. Also tells which choices of
    /// config.json the model made.
    pub(super) fn name_tensors(&self, model: &GgufModel, sizes: &Sizes) -> Result<(Vec<Found>, Vec<Choice>)> {
        let mut left: BTreeMap<&str, usize> =
            model.tensors.iter().enumerate().map(|(i, tensor)| (tensor.info().name.as_str(), i)).collect();
        left.remove(ROPE_FREQS);
        let mut tensors = Vec::new();
        let mut missing = Vec::new();
        let mut take = |name: String, (named, shape): (String, &[Axis]), needed: bool| {
            let Some(index) = left.remove(name.as_str()) else {
                if needed {
                    missing.push(name);
                }
                return;
            };
            tensors.push((index, name, named, shape.to_vec()));
        };
        for ((gguf, hf, shape), optional) in TOP {
            take(gguf.to_owned(), (hf.to_owned(), shape), !optional);
        }
        let mut choices = Vec::new();
        let groups = self.optional.iter().map(|(choice, group)| {
            let chosen = model.tensors.iter().any(|t| group.iter().any(|n| layer_part(&t.info().name) == Some(n.0)));
            choices.push((*choice, chosen));
            if chosen { *group } else { &[] }
        });
        let rows: Vec<&Named> = LAYER.iter().chain(self.extra).chain(groups.flatten()).collect();
        // A model has at least as many tensors as layers, whatever its metadata claims.
        for layer in 0..sizes.layers.min(model.tensors.len()) {
            for (gguf, hf, shape) in &rows {
                take(format!("blk.{layer}.{gguf}"), (format!("model.layers.{layer}.{hf}"), shape), true);
            }
        }
        refuse_names(&missing, "lacks", "the file is incomplete: download or convert the model again")?;
        let unknown: Vec<String> = left.into_keys().map(str::to_owned).collect();
        refuse_names(&unknown, "has no name in transformers for", "use the original model, and report this")?;
        let found = tensors.into_iter().map(|(index, gguf, name, shape)| {
            let shape: Vec<usize> = shape.into_iter().map(|axis| sizes.axis(axis)).collect();
            let stored = &model.tensors[index].info().shape;
            if trimmed(stored) != trimmed(&shape) {
                let problem = format!(
                    "tensor {} has the shape {stored:?}, but the model's metadata make it {shape:?}",
                    escaped(&gguf)
                );
                return Err(Error::refused(problem, "the file is inconsistent: download or convert the model again"));
            }
            let heads = self.permuted.then(|| rotated_heads(&gguf, sizes)).flatten();
            Ok(Found { index, name, shape, heads })
        });
        Ok((found.collect::<Result<_>>()?, choices))
    }
}

/// What follows the number of the layer in a name.
fn layer_part(name: &str) -> Option<&str> {
    name.strip_prefix("blk.")?.split_once('.').map(|(_, part)| part)
}

/// The heads that the rows of a tensor are rotated as.
fn rotated_heads(name: &str, sizes: &Sizes) -> Option<usize> {
    match layer_part(name)?.split('.').next()? {
        "attn_q" => Some(sizes.heads),
        "attn_k" => Some(sizes.kv_heads),
        _ => None,
    }
}

/// A shape without outermost axes of length 1, which some writers leave out.
fn trimmed(shape: &[usize]) -> &[usize] {
    &shape[shape.iter().take_while(|length| **length == 1).count()..]
}

fn refuse_names(names: &[String], problem: &str, remedy: &str) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut listed = names.iter().take(LISTED).map(|name| escaped(name)).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        listed += &format!(" and {} more", names.len() - LISTED);
    }
    Err(Error::refused(format!("the model {problem} {listed}"), remedy))
}
