//! The names that files of a model or of an adapter have.

/// File name of a model's config.
pub(super) const CONFIG: &str = "config.json";
/// File name of the index of a model's shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// File name of a model in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// File name of an adapter's config.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// File name of an adapter's weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// File name of an adapter's weights as older versions of PEFT saved them.
pub const ADAPTER_WEIGHTS_TORCH: &str = "adapter_model.bin";
