//! How Llama 3 scales its rotary embedding: frequencies as transformers computes them, and the factors on them that a GGUF
//! has as the tensor `rope_freqs.weight`.

use serde_json::Value as Json;

use super::power::powers;
use crate::arch::settings::{Settings, number};
use crate::arch::{GgufTensor, Rows};
use crate::error::{Error, Result};

/// The tensor of factors, for a scaling of type llama3. Every step rounds to f32 as the converter's does
/// (`generate_extra_tensors` in conversion/llama.py, on PyTorch).
pub(crate) fn factors(settings: &Settings) -> Result<Option<GgufTensor>> {
    let rope = settings.rope();
    if !rope.get("rope_type").and_then(Json::as_str).is_some_and(|kind| kind.eq_ignore_ascii_case("llama3")) {
        return Ok(None);
    }
    let get = |key: &str, default: f64| rope.get(key).map_or(Ok(default), |value| number(key, value));
    let base = get("rope_theta", 10_000.0)? as f32;
    // Any real base is; beyond, powers would overflow.
    if !(1.0..1e30).contains(&base) {
        return Err(Error::inconsistent(
            format!("config.json has a rope_theta of {base}"),
            "check rope_theta in config.json",
        ));
    }
    let scaling = Scaling {
        factor: get("factor", 8.0)?,
        low: get("low_freq_factor", 1.0)?,
        high: get("high_freq_factor", 4.0)?,
        length: get("original_max_position_embeddings", 8192.0)?,
    };
    scaling.check()?;
    let dim = settings.head_dim()?;
    // The tensors' shapes bound it too, but they are checked elsewhere.
    if dim > 1 << 20 {
        return Err(Error::inconsistent(
            format!("config.json has heads of {dim} values"),
            "check head_dim in config.json",
        ));
    }
    let values = scaling.factors(base, dim);
    Ok(Some(GgufTensor {
        name: "rope_freqs.weight".to_owned(),
        shape: vec![values.len()],
        rows: Rows::Values(values),
        always_f32: true,
    }))
}

/// The parameters of a scaling of type llama3, by their names in the config: `factor`, `low_freq_factor`,
/// `high_freq_factor`, `original_max_position_embeddings`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scaling {
    pub(crate) factor: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) length: f64,
}

impl Scaling {
    /// Refuses parameters of which the formula makes zeros, ones or no numbers.
    fn check(&self) -> Result<()> {
        let refuse = |problem: String| {
            let problem = format!("config.json: in the rotary embedding's scaling (rope_scaling), {problem}");
            Err(Error::inconsistent(problem, "take rope_scaling from the config.json of the model's source"))
        };
        for (name, value) in [
            ("factor", self.factor),
            ("low_freq_factor", self.low),
            ("high_freq_factor", self.high),
            ("original_max_position_embeddings", self.length),
        ] {
            // As the formula sees it.
            let narrow = value as f32;
            if !narrow.is_finite() || narrow <= 0.0 {
                return refuse(format!("{name} is {value}, and must be above 0"));
            }
        }
        if (self.high - self.low) as f32 <= 0.0 {
            return refuse(format!(
                "high_freq_factor is {}, and must be above low_freq_factor, which is {}",
                self.high, self.low
            ));
        }
        Ok(())
    }

    /// The scaled `frequency`, an angle a position (`_compute_llama3_parameters` in transformers'
    /// `modeling_rope_utils.py`).
    pub(super) fn scaled(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < self.length / self.high {
            return frequency;
        }
        if wavelength > self.length / self.low {
            return frequency / self.factor;
        }
        let smooth = (self.length / wavelength - self.low) / (self.high - self.low);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }

    /// The factors of the frequencies of heads of `dim` values, at most 2^20, with `base`, from 1 to 1e30.
    pub(crate) fn factors(&self, base: f32, dim: u64) -> Vec<f32> {
        let exponents: Vec<f32> = (0..dim).step_by(2).map(|i| i as f32 / dim as f32).collect();
        powers(base, &exponents).into_iter().map(|power| self.factor(power)).collect()
    }

    /// The factor of the frequency `1 / power`.
    fn factor(&self, power: f32) -> f32 {
        // A number over a tensor is its reciprocal times the number, in PyTorch.
        let frequency = 1.0 / power;
        let wave = (1.0 / frequency) * (2.0 * std::f64::consts::PI) as f32;
        if wave < (self.length / self.high) as f32 {
            1.0
        } else if wave > (self.length / self.low) as f32 {
            self.factor as f32
        } else {
            let smooth = ((1.0 / wave) * self.length as f32 - self.low as f32) / (self.high - self.low) as f32;
            1.0 / ((1.0 - smooth) / self.factor as f32 + smooth)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_that_scale_nothing_are_refused_by_name() {
        let made = |key: &str, value: Json| {
            let mut scaling = json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            });
            scaling[key] = value;
            let config = json!({
                "model_type": "llama", "hidden_size": 128, "num_attention_heads": 2, "rope_scaling": scaling
            });
            let factors = factors(&Settings::complete(&config).unwrap());
            factors.map(|tensor| tensor.unwrap().shape).map_err(|error| error.to_string())
        };
        assert_eq!(made("factor", json!(8)), Ok(vec![32]));
        for (key, value) in [
            ("factor", json!(0)),
            ("factor", json!(-8.0)),
            ("factor", json!(1e300)),
            ("factor", json!("8")),
            ("low_freq_factor", json!(0.0)),
            ("low_freq_factor", json!(1e-60)),
            ("low_freq_factor", json!(4.0)),
            ("high_freq_factor", json!(1)),
            ("high_freq_factor", json!(0.5)),
            ("high_freq_factor", json!(-1)),
            ("original_max_position_embeddings", json!(0)),
            ("original_max_position_embeddings", json!(-8192)),
        ] {
            let said = made(key, value.clone()).unwrap_err();
            assert!(said.contains("config.json") && said.contains(key) && said.contains("remedy"), "{value}: {said}");
        }
    }
}
