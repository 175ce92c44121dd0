//! What a llama-shaped model and its LoRA consist of: names, shapes, config.

use std::borrow::Cow;
use std::collections::BTreeSet;

use half::bf16;
use safetensors::{Dtype, View};
use serde_json::{Value, json};

use super::noise;

/// The dimensions of a model, with the names that transformers knows it by.
pub(crate) struct Shape {
    pub(crate) architecture: &'static str,
    pub(crate) model_type: &'static str,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocab: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) qkv_bias: bool,
}

/// The settings of a LoRA.
pub(crate) struct Lora {
    pub(crate) rank: usize,
    pub(crate) alpha: usize,
    /// The base as its config names it.
    pub(crate) base: &'static str,
}

/// A linear layer of a base.
pub(super) struct Module {
    pub(super) path: String,
    pub(super) out: usize,
    pub(super) input: usize,
}

/// One tensor. Its bytes are made when they are asked for.
pub(super) struct Tensor {
    pub(super) name: String,
    shape: Vec<usize>,
    kind: Kind,
    seed: u64,
}

enum Kind {
    /// bf16 noise.
    Weight,
    /// bf16 ones.
    Norm,
    /// f32 noise.
    Factor,
}

impl Shape {
    /// The seven projections of a layer, with their outputs and inputs.
    fn projections(&self) -> [(&'static str, usize, usize); 7] {
        let Self { hidden, intermediate, .. } = *self;
        let kv = hidden / self.heads * self.kv_heads;
        [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", intermediate, hidden),
            ("mlp.up_proj", intermediate, hidden),
            ("mlp.down_proj", hidden, intermediate),
        ]
    }

    /// The tensors of a base, in the order of the layers.
    pub(super) fn base(&self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize], kind| {
            let seed = tensors.len() as u64 + 1;
            tensors.push(Tensor { name, shape: shape.to_vec(), kind, seed });
        };
        add("model.embed_tokens.weight".to_owned(), &[self.vocab, self.hidden], Kind::Weight);
        for layer in 0..self.layers {
            let at = format!("model.layers.{layer}");
            for (name, out, input) in self.projections() {
                add(format!("{at}.{name}.weight"), &[out, input], Kind::Weight);
                if self.qkv_bias && ["q_proj", "k_proj", "v_proj"].iter().any(|end| name.ends_with(end)) {
                    add(format!("{at}.{name}.bias"), &[out], Kind::Weight);
                }
            }
            add(format!("{at}.input_layernorm.weight"), &[self.hidden], Kind::Norm);
            add(format!("{at}.post_attention_layernorm.weight"), &[self.hidden], Kind::Norm);
        }
        add("model.norm.weight".to_owned(), &[self.hidden], Kind::Norm);
        add("lm_head.weight".to_owned(), &[self.vocab, self.hidden], Kind::Weight);
        tensors
    }

    /// How many weights a base has.
    pub(crate) fn weights(&self) -> usize {
        self.base().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    /// All projections of a base, by their paths.
    pub(super) fn modules(&self) -> Vec<Module> {
        let of = |layer| {
            let module = move |(name, out, input)| Module { path: format!("model.layers.{layer}.{name}"), out, input };
            self.projections().map(module)
        };
        (0..self.layers).flat_map(of).collect()
    }

    /// `config.json`.
    pub(super) fn config(&self) -> Value {
        json!({
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 32_768,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "use_cache": true,
        })
    }
}

impl Lora {
    /// The tensors of a LoRA on `modules`.
    pub(super) fn tensors(&self, modules: &[Module]) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        for Module { path, out, input } in modules {
            for (factor, shape) in [("lora_A", [self.rank, *input]), ("lora_B", [*out, self.rank])] {
                // Far from the seeds of the base.
                let seed = (1 << 32) + tensors.len() as u64;
                let name = format!("base_model.model.{path}.{factor}.weight");
                tensors.push(Tensor { name, shape: shape.to_vec(), kind: Kind::Factor, seed });
            }
        }
        tensors
    }

    /// `adapter_config.json` of a LoRA on `modules`.
    pub(super) fn config(&self, modules: &[Module]) -> Value {
        let names: BTreeSet<&str> = modules.iter().filter_map(|module| module.path.rsplit('.').next()).collect();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.1,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "target_modules": names,
        })
    }
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        match self.kind {
            Kind::Weight | Kind::Norm => Dtype::BF16,
            Kind::Factor => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let len = self.data_len();
        Cow::Owned(match self.kind {
            Kind::Weight => noise::bytes(self.seed, len, 0.02, |v| bf16::from_f32(v).to_le_bytes()),
            Kind::Norm => bf16::ONE.to_le_bytes().repeat(len / 2),
            Kind::Factor => noise::bytes(self.seed, len, 0.01, f32::to_le_bytes),
        })
    }
}
