//! The whole model, forward and backward, for one micro-batch.

use super::layer::{Context, Kept, Trace};
use super::weights::Model;
use crate::arch::Spec;
use crate::engine::Engine;
use crate::engine::dropout::Dropout;
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

impl<E: Engine> Pass<'_, E> {
    /// The loss of each target, `weight * -ln p`, on the device.
    pub fn losses(&self) -> Result<E::Vector> {
        let context = self.context();
        let mut x = self.engine.embed(&self.model.embeddings, self.batch)?;
        for layer in &self.model.layers {
            x = layer.forward(&context, &x, Kept { attended: false, gate_up: false })?.0;
        }
        let (y, _) = self.engine.normalize(&x, &self.model.norm, self.model.spec.epsilon, 0)?;
        Ok(self.engine.cross_entropy(&y, self.model.head(), self.batch, 0.0, false)?.0)
    }

    /// The same, and adds to `gradients` those of `scale` times the losses' sum with respect to the parameters.
    pub fn gradients(&self, scale: f32, keep: Keep, gradients: &mut E::Vector) -> Result<E::Vector> {
        let (engine, model, context) = (self.engine, self.model, self.context());
        let mut traces: Vec<(E::Matrix, Trace<E>)> = Vec::with_capacity(model.layers.len());
        let mut x = engine.embed(&model.embeddings, self.batch)?;
        for layer in &model.layers {
            let (y, trace) = layer.forward(&context, &x, keep.of_layer())?;
            traces.push((x, trace));
            x = y;
        }
        let (y, inverse) = engine.normalize(&x, &model.norm, model.spec.epsilon, 0)?;
        let (losses, dy) = engine.cross_entropy(&y, model.head(), self.batch, scale, true)?;
        drop(y);
        let Some(dy) = dy else { return Ok(losses) };
        let none = engine.zeros_like(&x)?;
        let mut dx = engine.normalize_back(&dy, &x, &model.norm, &inverse, none)?;
        drop((dy, x));
        for (layer, (x, trace)) in model.layers.iter().zip(traces).rev() {
            dx = layer.backward(&context, &x, trace, dx, gradients)?;
        }
        Ok(losses)
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

impl<E: Engine> Model<E> {
    fn head(&self) -> &E::Matrix {
        self.head.as_ref().unwrap_or(&self.embeddings)
    }
}
