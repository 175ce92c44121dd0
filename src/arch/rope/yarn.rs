//! The factor by which `YaRN` scales what it rotates. transformers has it in `attention_factor`, or works it out;
//! llama.cpp multiplies the one that it works out by `rope.scaling.attn_factor`.

use serde_json::{Map, Value as Json};

use crate::arch::settings::number;
use crate::error::{Error, Result};

/// What llama.cpp multiplies its own factor by, after the architecture's name.
pub(crate) const ATTN_FACTOR: &str = "rope.scaling.attn_factor";

/// The key that the converter writes `attention_factor` to as it is.
pub(crate) const CONVERTERS: &str = "rope.scaling.yarn_attn_factor";

/// What both work out for contexts that are `factor` times longer, with `share` of the growth: `get_mscale`.
pub(crate) fn scale(factor: f64, share: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 }
}

/// The value of [`ATTN_FACTOR`] with which llama.cpp has the factor of `rope`; `None` where it has it without.
pub(crate) fn attn_factor(rope: &Map<String, Json>) -> Result<Option<f32>> {
    let get = |key: &str| rope.get(key).filter(|value| !value.is_null()).map(|value| number(key, value)).transpose();
    let Some(factor) = get("factor")? else { return Ok(None) };
    let plain = scale(factor, 1.0);
    // transformers passes over shares of zero.
    let shares = (get("mscale")?.filter(|share| *share != 0.0), get("mscale_all_dim")?.filter(|share| *share != 0.0));
    let wanted = match (get("attention_factor")?, shares) {
        (Some(given), _) => given,
        (None, (Some(share), Some(all))) => scale(factor, share) / scale(factor, all),
        (None, _) => plain,
    };
    let times = (wanted / plain) as f32;
    if !times.is_finite() || times <= 0.0 {
        let problem = format!("config.json: in the scaling of the rotary embedding, the attention factor is {wanted}");
        return Err(Error::inconsistent(problem, "take rope_scaling from the config.json of the model's source"));
    }
    Ok((times.to_bits() != 1f32.to_bits()).then_some(times))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn llama_cpp_gets_what_transformers_has() {
        let of = |rope: Json| attn_factor(rope.as_object().unwrap()).map_err(|e| e.to_string());
        let plain = 0.1 * 4f64.ln() + 1.0;
        assert_eq!(of(json!({"factor": 4.0})), Ok(None));
        assert_eq!(of(json!({"factor": 4.0, "attention_factor": plain})), Ok(None), "as it would be");
        assert_eq!(of(json!({"factor": 4.0, "attention_factor": 0.9})), Ok(Some((0.9 / plain) as f32)));
        assert_eq!(of(json!({"factor": 4, "attention_factor": 1})), Ok(Some((1.0 / plain) as f32)));
        // As DeepSeek's: both shares, which win over nothing else.
        let shares = json!({"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5});
        let expected = 1.0 / (0.1 * 0.5 * 40f64.ln() + 1.0);
        assert_eq!(of(shares), Ok(Some(expected as f32)));
        assert_eq!(
            of(json!({"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707})).unwrap().map(|f| f < 1.0),
            Some(true)
        );
        let both = json!({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": null});
        assert!(of(both).unwrap().is_some());
        assert_eq!(of(json!({"factor": 4.0, "mscale": 0.5})), Ok(None), "one share alone counts for nothing");
        assert_eq!(of(json!({"factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0})), Ok(None));
        assert_eq!(of(json!({"factor": 0.5})), Ok(None), "llama.cpp cancels its own below 1");
        assert_eq!(of(json!({"factor": 1.0, "attention_factor": 2.0})), Ok(Some(2.0)));
        for bad in [json!(0), json!(-1.0), json!("x")] {
            assert!(of(json!({"factor": 4.0, "attention_factor": bad})).is_err());
        }
    }
}
