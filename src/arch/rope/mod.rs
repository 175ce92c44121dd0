//! Rotary position embeddings: the tables of cos and sin, in f32 (bf16 can't hold every position above 256). What Llama 3
//! does to frequencies is in `llama3`, `YaRN`'s factor in `yarn`.

pub(crate) mod llama3;
mod power;
pub(crate) mod yarn;

use std::path::Path;

use serde_json::Value;

use self::llama3::Scaling;
use crate::checkpoint::ConfigText;
use crate::error::{Error, Result, escaped};

/// How positions turn into angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Angle of each pair of values at position 1.
    pub frequencies: Vec<f32>,
}

impl Rope {
    /// Reads what the config says of rope, in transformers' old keys (`rope_theta`, `rope_scaling`) or its new ones
    /// (`rope_parameters`), for heads of `size` values. Where both are there, transformers 5 takes the old ones
    /// (`convert_rope_params_to_dict` in `modeling_rope_utils.py`).
    pub(crate) fn read(config: &ConfigText, path: &Path, size: usize) -> Result<Self> {
        let scaling = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| match config.get(&[key]) {
            Some(Value::Object(object)) if !object.is_empty() => Some((key, object)),
            _ => None,
        });
        let (place, scaling) = scaling.unwrap_or_default();
        let number = |key: &str| scaling.get(key).and_then(Value::as_f64);
        let theta = number("rope_theta").or_else(|| config.get(&["rope_theta"])?.as_f64()).unwrap_or(10_000.0);
        if !(1.0..1e30).contains(&theta) {
            let problem = format!("has a rope_theta of {theta}");
            return Err(Error::malformed(path, problem, "restore config.json from its source"));
        }
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
        let plain = (0..size / 2).map(|i| theta.powf(-(2.0 * i as f64) / size as f64));
        let frequencies: Vec<f64> = match kind.unwrap_or("default") {
            "default" => plain.collect(),
            "linear" => {
                let factor = positive(path, "factor", number("factor").unwrap_or(1.0))?;
                plain.map(|frequency| frequency / factor).collect()
            }
            "llama3" => {
                let or = |key, default| positive(path, key, number(key).unwrap_or(default));
                let scaling = Scaling {
                    factor: or("factor", 8.0)?,
                    low: or("low_freq_factor", 1.0)?,
                    high: or("high_freq_factor", 4.0)?,
                    length: or("original_max_position_embeddings", 8192.0)?,
                };
                if scaling.low >= scaling.high {
                    let problem = "has a rope low_freq_factor that is not below its high_freq_factor";
                    return Err(Error::malformed(path, problem, "restore config.json from its source"));
                }
                plain.map(|frequency| scaling.scaled(frequency)).collect()
            }
            other => {
                return Err(Error::unsupported(
                    format!("config.json has rope scaling of type {:?}", escaped(other)),
                    format!(
                        "train without it: set rope_type in {place} to \"default\" in a copy of config.json, and \
                         restore it to serve the model"
                    ),
                ));
            }
        };
        Ok(Self { frequencies: frequencies.into_iter().map(|frequency| frequency as f32).collect() })
    }

    /// Cos and sin for `positions` positions: `[positions, size / 2]` each, row-major.
    pub fn tables(&self, positions: usize) -> [Vec<f32>; 2] {
        let angles = (0..positions).flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        [cos, sin]
    }
}

fn positive(path: &Path, key: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::malformed(path, format!("has a rope {key} of {value}"), "restore config.json from its source"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(text: &str) -> Result<Rope> {
        Rope::read(&ConfigText::parse(Path::new("config.json"), text.to_owned()).unwrap(), Path::new("config.json"), 8)
    }

    #[test]
    fn tables_are_exact_far_out() {
        let rope = rope(r#"{"rope_theta": 1000000.0}"#).unwrap();
        let [cos, sin] = rope.tables(3073);
        assert_eq!((cos[0], sin[0], cos.len()), (1.0, 0.0, 3073 * 4));
        assert!((f64::from(cos[3072 * 4]) - 3072f64.cos()).abs() < 1e-6);
        assert!((f64::from(sin[3071 * 4 + 1]) - (3071.0 * 1e6f64.powf(-0.25)).sin()).abs() < 1e-4);
    }

    #[test]
    fn scaling_is_read_old_and_new() {
        let plain = rope("{}").unwrap();
        let half = rope(r#"{"rope_scaling": {"type": "linear", "factor": 2.0}}"#).unwrap();
        assert!(plain.frequencies.iter().zip(&half.frequencies).all(|(a, b)| (a / b - 2.0).abs() < 1e-6));
        let new =
            rope(r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}}"#).unwrap();
        assert_eq!(new.frequencies[0].to_bits(), 1f32.to_bits());
        let yarn = r#""rope_type": "yarn", "rope_theta": 1e6"#;
        for key in ["rope_scaling", "rope_parameters"] {
            let refused = rope(&format!(r#"{{"{key}": {{{yarn}}}}}"#)).unwrap_err().to_string();
            assert!(refused.contains("yarn") && refused.contains(&format!("rope_type in {key}")), "{refused}");
            let remedied = yarn.replace("yarn", "default");
            let theta = rope(&format!(r#"{{"{key}": {{{remedied}}}}}"#)).unwrap();
            assert_eq!(theta, rope(r#"{"rope_theta": 1e6}"#).unwrap());
        }
        assert!(rope(r#"{"rope_scaling": {"rope_type": "linear", "factor": 0}}"#).is_err());
    }

    #[test]
    fn scaling_goes_before_parameters_as_in_transformers() {
        // The theta beside the scaling counts, not that of the parameters.
        let both = r#""rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}"#;
        let of = |scaling: &str| rope(&format!(r#"{{"rope_scaling": {scaling}, {both}}}"#)).unwrap();
        let linear = r#"{"rope_type": "linear", "factor": 4.0}"#;
        assert_eq!(of(linear), rope(&format!(r#"{{"rope_theta": 5e5, "rope_scaling": {linear}}}"#)).unwrap());
        for nothing in ["null", "{}"] {
            assert_eq!(of(nothing), rope(r#"{"rope_theta": 1e6}"#).unwrap(), "{nothing}");
        }
    }
}
