//! The whole model, forward and backward, for one micro-batch.

use super::layer::{Context, Kept, Trace};
use super::weights::Model;
use crate::arch::Spec;
use crate::engine::dropout::Dropout;
use crate::engine::{Backward, Engine, Forward};
use crate::error::Result;

/// What of a layer's work is kept for the backward pass rather than computed again: memory for time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// The inputs of layers alone.
    Inputs,
    /// And what attention leaves: the products of the MLP are computed again.
    #[default]
    Attention,
    /// Everything but what is cheap.
    All,
}

impl Keep {
    /// The most that fits into `free` bytes of a device that computes in bf16, for micro-batches of up to `tokens`
    /// tokens; of a device that doesn't say, what attention leaves.
    pub fn within(spec: &Spec, tokens: usize, free: Option<u64>) -> Self {
        let Some(free) = free else { return Self::Attention };
        // Attention, the MLP and their gradients in the layer at work, and a chunk of logits.
        let work = (8 * spec.width + 20 * spec.hidden) as u128;
        let bytes = |keep: &Self| tokens as u128 * ((spec.layers * keep.bytes(spec)) as u128 + work) + (1 << 30);
        let fits = |keep: &Self| bytes(keep) <= u128::from(free / 20 * 19);
        [Self::All, Self::Attention].into_iter().find(fits).unwrap_or(Self::Inputs)
    }

    /// Bytes that a token leaves in a layer.
    fn bytes(self, spec: &Spec) -> usize {
        let heads = spec.heads;
        let attended = 2 * (heads.row() + heads.query * heads.size + spec.hidden) + 4 * heads.query;
        match self {
            Self::Inputs => 2 * spec.hidden,
            Self::Attention => 2 * spec.hidden + attended,
            Self::All => 2 * spec.hidden + attended + 4 * spec.width,
        }
    }

    fn of_layer(self) -> Kept {
        Kept { attended: self != Self::Inputs, gate_up: self == Self::All }
    }
}

/// One micro-batch, on its way through a model.
pub struct Pass<'p, E: Engine> {
    /// The model.
    pub model: &'p Model<E>,
    /// Its device.
    pub engine: &'p E,
    /// The micro-batch.
    pub batch: &'p E::Placed,
    /// Dropout of the adapters' inputs; `None` to evaluate.
    pub dropout: Option<Dropout>,
}

/// What a forward pass leaves for the backward pass.
pub struct Traces<E: Engine> {
    /// Of each layer: its input, and what it keeps.
    layers: Vec<(E::Matrix, Trace<E>)>,
    /// The last layer's output, and the inverse roots of its norm.
    last: E::Matrix,
    inverse: E::Vector,
}

impl<E: Forward> Pass<'_, E> {
    /// The hidden states after the last norm, `[T, hidden]`.
    pub fn hidden(&self) -> Result<E::Matrix> {
        let context = self.context();
        let mut x = self.engine.embed(&self.model.embeddings, self.batch)?;
        for layer in &self.model.layers {
            x = layer.forward(&context, &x, Kept { attended: false, gate_up: false })?.0;
        }
        Ok(self.engine.normalize(&x, &self.model.norm, self.model.spec.epsilon, 0)?.0)
    }

    /// The logits of some rows of the micro-batch, in their order: `[rows, vocabulary]`.
    pub fn logits(&self, rows: &[u32]) -> Result<E::Matrix> {
        self.engine.logits(&self.hidden()?, self.model.head(), rows)
    }

    fn context(&self) -> Context<'_, E> {
        Context {
            engine: self.engine,
            batch: self.batch,
            heads: self.model.spec.heads,
            epsilon: self.model.spec.epsilon,
            tables: &self.model.tables,
            dropout: self.dropout.as_ref(),
        }
    }
}

impl<E: Backward> Pass<'_, E> {
    /// The hidden states after the last norm, and what [`Self::backward`] needs.
    pub fn traced(&self, keep: Keep) -> Result<(E::Matrix, Traces<E>)> {
        let (model, context) = (self.model, self.context());
        let mut layers = Vec::with_capacity(model.layers.len());
        let mut x = self.engine.embed(&model.embeddings, self.batch)?;
        for layer in &model.layers {
            let (y, trace) = layer.forward(&context, &x, keep.of_layer())?;
            layers.push((x, trace));
            x = y;
        }
        let (y, inverse) = self.engine.normalize(&x, &model.norm, model.spec.epsilon, 0)?;
        Ok((y, Traces { layers, last: x, inverse }))
    }

    /// Adds the gradients of the adapters' parameters to `gradients`, from that of the hidden states.
    pub fn backward(&self, traces: Traces<E>, dy: E::Matrix, gradients: &mut E::Vector) -> Result<()> {
        let (engine, model, context) = (self.engine, self.model, self.context());
        let Traces { layers, last, inverse } = traces;
        let none = engine.zeros_like(&last)?;
        let mut dx = engine.normalize_back(&dy, &last, &model.norm, &inverse, none)?;
        drop((dy, last));
        for (layer, (x, trace)) in model.layers.iter().zip(layers).rev() {
            dx = layer.backward(&context, &x, trace, dx, gradients)?;
        }
        Ok(())
    }
}

impl<E: Engine> Model<E> {
    /// The table of the last product, `[vocabulary, hidden]`.
    pub fn head(&self) -> &E::Matrix {
        self.head.as_ref().unwrap_or(&self.embeddings)
    }
}
