//! All-reduce of gradients: on the GPUs if these are connected, or else through the host. One of the rooms
//! with `unsafe`.

use crate::engine::Engine;
use crate::error::Result;
use crate::ranks::Ranks;

/// Replaces the vector by its sum over all ranks, the same bits on each.
pub(super) fn all_reduce<E: Engine>(engine: &E, vector: &mut E::Vector, ranks: &mut dyn Ranks) -> Result<()> {
    if ranks.count() == 1 {
        return Ok(());
    }
    // NCCL takes the GPU whose context is current, which is this one then.
    if let Some(buffer) = engine.buffer(vector)?
        && let Some(cards) = ranks.on_card()?
    {
        // SAFETY: a buffer's values are on the GPU that is current, and its stream is that GPU's.
        let sum = || unsafe { cards.sum(buffer.address(), buffer.len(), buffer.stream()) };
        return engine.timed("ranks", sum);
    }
    let mut values = engine.read(vector)?;
    ranks.sum(&mut values)?;
    engine.write(vector, &values)
}
