//! Reading a PEFT LoRA and resolving it to one typed change per base tensor. Reads no base values; `merge` has the
//! arithmetic.

mod apply;
mod change;
mod complete;
mod config;
mod experts;
mod fused;
mod heads;
mod keys;
mod problem;
mod rename;
mod resolve;
mod runs;
mod tied;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::checkpoint::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH};
pub use change::{FactorPlan, LowRankPlan, TensorSource};
pub use config::AdapterConfig;
pub use heads::embedding_among;
pub use resolve::{Resolution, resolve};
pub use runs::newest_checkpoint;
pub(crate) use runs::{Place, RUN_STATE};
pub use tied::head_apart;

use crate::checkpoint::{SafetensorsFile, WeightFiles};
use crate::error::{Error, Result};

/// Opens the weights of the adapter in `dir`: safetensors, or else what older versions of PEFT saved with torch.
pub fn open_weights(dir: &Path) -> Result<Arc<SafetensorsFile>> {
    // Links may lead anywhere, as a base's may: nothing of them is copied, and what is read must be an adapter.
    let [weights, torch] = [ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH].map(|name| dir.join(name));
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    match (is_there(&weights), is_there(&torch)) {
        (true, _) => SafetensorsFile::open(&weights),
        (false, true) => SafetensorsFile::open_torch(&torch),
        (false, false) => Err(Error::malformed(
            dir,
            format!("holds neither {ADAPTER_WEIGHTS} nor {ADAPTER_WEIGHTS_TORCH}"),
            "save or download the complete adapter again; or make its weights from a DeepSpeed checkpoint with its \
             zero_to_fp32.py",
        )),
    }
}

/// What to do with a model that stands where an adapter is expected: the result of training all weights.
const WHOLE_MODEL: &str = "this is a complete model, not an adapter, so there is nothing to merge; name it with ⟦base⟧, \
                           without ⟦merge_lora⟧ and ⟦adapter⟧";

/// Whether the weights of a whole model are in `dir`, and no adapter.
fn is_whole_model(dir: &Path) -> bool {
    !dir.join(ADAPTER_CONFIG).exists() && WeightFiles::find(dir).is_ok()
}

/// One adapter on disk, with the weight that the user gives it.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The adapter's directory.
    pub dir: PathBuf,
    /// Its `adapter_config.json`.
    pub config: AdapterConfig,
    /// Its tensors.
    pub file: Arc<SafetensorsFile>,
    /// Factor on all its deltas; 1 unless the user gives another.
    pub weight: f64,
}

impl Adapter {
    /// Opens the adapter in `dir`. Reads the config and the header of the weights.
    pub fn open(dir: &Path, weight: f64) -> Result<Self> {
        let config_path = dir.join(ADAPTER_CONFIG);
        if config_path.symlink_metadata().is_err() {
            if is_whole_model(dir) {
                return Err(Error::malformed(dir, format!("holds no {ADAPTER_CONFIG}"), WHOLE_MODEL));
            }
            return Err(Error::malformed(
                dir,
                format!("holds no {ADAPTER_CONFIG}"),
                "give the directory that PEFT or ms-swift saved the adapter in, such as output/.../checkpoint-200",
            ));
        }
        let config = AdapterConfig::read(&config_path)?;
        Ok(Self { dir: dir.to_owned(), config, file: open_weights(dir)?, weight })
    }
}
