//! The GPU that a run trains on, if it is to and can.

use super::super::log::TrainProgress;
use super::super::settings::Compute;
use crate::arch::Heads;
use crate::engine::CudaEngine;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::Device;

/// `error`, told for a run that is under way: no other device takes over from a GPU there.
pub(super) fn card_failed(error: Error, again: &str) -> Error {
    match error {
        Error::Card { problem } => {
            let remedy = format!("{again}, on the GPU or with ⟦device cpu⟧");
            Error::new(ErrorKind::Device { lost: true }, problem, remedy)
        }
        error => error,
    }
}

/// The GPU to train on; `None` is the processor. Only a GPU that was demanded must be there.
pub(super) fn open_card(
    device: Device,
    compute: Option<Compute>,
    heads: Heads,
    progress: &dyn TrainProgress,
) -> Result<Option<CudaEngine>> {
    if device == Device::Cpu || matches!(device, Device::Simulated { .. }) {
        return Ok(None);
    }
    if compute == Some(Compute::F32) {
        if device.demands_card() {
            return Err(Error::invalid(
                "GPUs train in bf16",
                "drop ⟦torch_dtype float32⟧ and ⟦bf16 false⟧, or use ⟦device cpu⟧",
            ));
        }
        return Ok(None);
    }
    progress.phase("opening the GPU");
    // A model that the GPU has no kernels for is told before its weights are read.
    match CudaEngine::open(device).and_then(|card| card.supports(heads).map(|()| card)) {
        Ok(card) => Ok(Some(card)),
        Err(error) if device.demands_card() => Err(error),
        Err(error) => {
            let text = error.to_string();
            progress.note(&format!("training on the processor: {}", text.lines().next().unwrap_or_default()));
            Ok(None)
        }
    }
}
