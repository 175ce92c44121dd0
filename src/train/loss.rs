//! The training loss on a model's hidden states: cross-entropy of the tokens that are to be predicted, and its
//! gradients with respect to the adapters' parameters.

#[cfg(test)]
mod tests;

use crate::engine::{Backward, Forward};
use crate::error::Result;
use crate::model::{Keep, Pass};

/// The loss of each target of the micro-batch, `weight * -ln p`, on the device.
pub fn losses<E: Forward>(pass: &Pass<'_, E>) -> Result<E::Vector> {
    let x = pass.hidden()?;
    pass.engine.cross_entropy(&x, pass.model.head(), pass.batch)
}

/// The same, and adds to `gradients` those of `scale` times the losses' sum with respect to the parameters.
pub fn gradients<E: Backward>(
    pass: &Pass<'_, E>,
    scale: f32,
    keep: Keep,
    gradients: &mut E::Vector,
) -> Result<E::Vector> {
    let (x, traces) = pass.traced(keep)?;
    let (losses, dx) = pass.engine.cross_entropy_back(&x, pass.model.head(), pass.batch, scale)?;
    drop(x);
    pass.backward(traces, dx, gradients)?;
    Ok(losses)
}
