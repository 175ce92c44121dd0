//! Weights that a base stores in eight bits: which tensors belong together, so that a merge can decode them. The arithmetic
//! of decoding is `merge`'s. Block FP8 only (DeepSeek-V3, Qwen3-FP8): other forms are refused by name.

use safetensors::Dtype;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::merge::Float;

/// Ending of the name of a weight's scales, which are factors: `value = code * scale`.
const SCALES: &str = "_scale_inv";

/// The scales of a weight, one for each block of it.
#[derive(Debug, Clone)]
pub struct Scales {
    /// The tensor that holds them, as rows of blocks.
    pub tensor: Tensor,
    /// Their type.
    pub float: Float,
    /// Rows and columns of a block.
    pub block: (usize, usize),
}

/// A weight that can be decoded.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Its name.
    pub name: String,
    /// Its scales.
    pub scales: Scales,
}

/// The weights of `base` that can be decoded, if its config says how. Layout: transformers' `FineGrainedFP8Config`.
pub fn decodable(base: &Checkpoint) -> Vec<Encoded> {
    let config = base.config.as_ref().and_then(|config| config.get(&["quantization_config"]));
    let Some(block) = config.as_ref().and_then(block_of) else { return Vec::new() };
    let pairs = base.tensors.iter().filter_map(|(name, weight)| {
        let tensor = base.tensors.get(&format!("{name}{SCALES}"))?;
        let float = Float::of(tensor.dtype())?;
        let (&[rows, columns], &[down, across]) = (weight.shape(), tensor.shape()) else { return None };
        let fits = rows.div_ceil(block.0) == down && columns.div_ceil(block.1) == across;
        let scales = Scales { tensor: tensor.clone(), float, block };
        (weight.dtype() == Dtype::F8_E4M3 && fits).then(|| Encoded { name: name.clone(), scales })
    });
    pairs.collect()
}

/// The block of a config for block FP8.
fn block_of(config: &Value) -> Option<(usize, usize)> {
    let side = |at: usize| config.get("weight_block_size")?.get(at)?.as_u64().and_then(|n| usize::try_from(n).ok());
    let (rows, columns) = (side(0)?, side(1)?);
    let is_fp8 = config.get("quant_method")?.as_str() == Some("fp8");
    (is_fp8 && rows > 0 && columns > 0).then_some((rows, columns))
}

/// The name of the scales of weight `name`.
pub fn scales_of(name: &str) -> String {
    format!("{name}{SCALES}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_block_is_the_config_s() {
        let config = json!({"quant_method": "fp8", "weight_block_size": [128, 64]});
        assert_eq!(block_of(&config), Some((128, 64)));
        for other in [
            json!({"quant_method": "fp8"}),
            json!({"quant_method": "fp8", "weight_block_size": [0, 1]}),
            json!({"quant_method": "fp8", "weight_block_size": null}),
            json!({"quant_method": "gptq", "weight_block_size": [128, 128]}),
        ] {
            assert_eq!(block_of(&other), None, "{other}");
        }
    }
}
