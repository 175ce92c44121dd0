//! A model on a device: frozen weights, stacked by the inputs that they share.

use crate::arch::Rope;
use crate::arch::{Projection, Spec};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::engine::{Adapters, Engine, widened};
use crate::error::{Error, Result, escaped};

/// A layer's frozen weights.
pub(super) struct Layer<E: Engine> {
    pub(super) attention_norm: E::Vector,
    pub(super) qkv: Stack<E>,
    pub(super) out: Stack<E>,
    pub(super) mlp_norm: E::Vector,
    pub(super) gate_up: Stack<E>,
    pub(super) down: Stack<E>,
}

impl<E: Engine> Layer<E> {
    /// Its stacks, in the order of the layout.
    fn stacks(&self) -> [&Stack<E>; 4] {
        [&self.qkv, &self.out, &self.gate_up, &self.down]
    }

    fn stacks_mut(&mut self) -> [&mut Stack<E>; 4] {
        [&mut self.qkv, &mut self.out, &mut self.gate_up, &mut self.down]
    }
}

/// Projections that share an input.
pub(super) struct Stack<E: Engine> {
    pub(super) adapters: Adapters,
    pub(super) frozen: E::Frozen,
}

/// A model on a device, with adapters or without.
pub struct Model<E: Engine> {
    /// Its sizes.
    pub spec: Spec,
    pub(super) embeddings: E::Matrix,
    /// `None` where the embeddings are the head.
    pub(super) head: Option<E::Matrix>,
    pub(super) norm: E::Vector,
    pub(super) layers: Vec<Layer<E>>,
    pub(super) tables: [E::Vector; 2],
}

/// The stacks of a layer: projections that share an input, in the order of the computation.
pub const STACKS: [&[Projection]; 4] = [
    &[Projection::Q, Projection::K, Projection::V],
    &[Projection::O],
    &[Projection::Gate, Projection::Up],
    &[Projection::Down],
];

/// The adapters of a layer, one for each of [`STACKS`].
pub type LayerAdapters = [Adapters; STACKS.len()];

impl<E: Engine> Model<E> {
    /// Puts the weights of `base` on the device, for sequences of up to `positions` tokens. `adapters` are of each layer, or
    /// none for the model as it is; `loaded` is told after each layer.
    pub fn load(
        engine: &E,
        base: &Checkpoint,
        spec: &Spec,
        adapters: &[LayerAdapters],
        positions: usize,
        loaded: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let source = Source { base, spec };
        let embeddings = engine.table(&source.get("model.embed_tokens.weight", &[spec.vocabulary, spec.hidden])?)?;
        let head = match source.find("lm_head.weight") {
            Some(_) if !spec.tied => {
                Some(engine.table(&source.get("lm_head.weight", &[spec.vocabulary, spec.hidden])?)?)
            }
            _ if spec.tied => None,
            _ => return Err(source.missing("lm_head.weight")),
        };
        let none = LayerAdapters::default();
        let mut layers = Vec::with_capacity(spec.layers);
        for number in 0..spec.layers {
            let own = adapters.get(number).unwrap_or(&none);
            let stack = |place: usize| source.stack(engine, number, &own[place], STACKS[place]);
            let [qkv, out, gate_up, down] = [stack(0)?, stack(1)?, stack(2)?, stack(3)?];
            let norm = |name| source.norm(engine, &format!("model.layers.{number}.{name}.weight"));
            let (attention_norm, mlp_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
            layers.push(Layer { attention_norm, qkv, out, mlp_norm, gate_up, down });
            loaded(number + 1);
        }
        let norm = source.norm(engine, "model.norm.weight")?;
        let [cos, sin] = Rope::tables(&spec.rope, positions);
        let tables = [engine.vector(&cos)?, engine.vector(&sin)?];
        Ok(Self { spec: spec.clone(), embeddings, head, norm, layers, tables })
    }

    /// Fills in the magnitudes of a fresh adapter, in `parameters`: the norms of the base's rows.
    pub fn fill_magnitudes(&self, engine: &E, parameters: &mut [f32]) -> Result<()> {
        for stack in self.layers.iter().flat_map(Layer::stacks) {
            if stack.adapters.slots.iter().all(|slot| slot.magnitude.is_none()) {
                continue;
            }
            let norms = engine.row_norms(&stack.frozen)?;
            for (slot, norms) in stack.adapters.slots.iter().zip(norms) {
                if let Some(place) = &slot.magnitude {
                    parameters[place.clone()].copy_from_slice(&norms);
                }
            }
        }
        Ok(())
    }

    /// Takes over the adapter's parameters, at the start and after each step.
    pub fn bind(&mut self, engine: &E, parameters: &E::Vector) -> Result<()> {
        for stack in self.layers.iter_mut().flat_map(Layer::stacks_mut) {
            if !stack.adapters.slots.is_empty() {
                engine.bind(&mut stack.frozen, parameters)?;
            }
        }
        Ok(())
    }
}

/// Tensors of the base, with their shapes checked.
struct Source<'b> {
    base: &'b Checkpoint,
    spec: &'b Spec,
}

impl Source<'_> {
    fn find(&self, name: &str) -> Option<&Tensor> {
        self.base.tensors.get(name)
    }

    fn missing(&self, name: &str) -> Error {
        let remedy = "get the complete model, as AutoModelForCausalLM saves it, or correct num_hidden_layers or \
                      tie_word_embeddings in config.json";
        Error::malformed(&self.base.dir, format!("lacks tensor {}", escaped(name)), remedy)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.find(name).ok_or_else(|| self.missing(name))?;
        if tensor.shape() != shape {
            let found = tensor.shape();
            let problem = format!("tensor {} has shape {found:?}, and config.json requires {shape:?}", escaped(name));
            let remedy = "take config.json and weights from the same model";
            return Err(Error::malformed(tensor.file().path(), problem, remedy));
        }
        Ok(tensor.clone())
    }

    fn norm<E: Engine>(&self, engine: &E, name: &str) -> Result<E::Vector> {
        engine.vector(&widened(&self.get(name, &[self.spec.hidden])?)?)
    }

    fn stack<E: Engine>(
        &self,
        engine: &E,
        layer: usize,
        adapters: &Adapters,
        projections: &[Projection],
    ) -> Result<Stack<E>> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for projection in projections {
            let path = projection.path(layer);
            let shape = self.spec.shape(*projection);
            weights.push(self.get(&format!("{path}.weight"), &shape)?);
            let bias = format!("{path}.bias");
            biases.push(self.find(&bias).map(|_| self.get(&bias, &shape[..1])).transpose()?);
        }
        Ok(Stack { frozen: engine.freeze(&weights, &biases, adapters)?, adapters: adapters.clone() })
    }
}
