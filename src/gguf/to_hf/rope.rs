//! Rotary scaling, from what a GGUF file has of it: keys for linear and yarn, and a tensor of factors for llama3, from
//! which the four numbers of the config are recovered.

use serde_json::{Map, Value, json};

use super::keys::{Keys, shortest};
use crate::arch::Scaling;
use crate::arch::rope::yarn;
use crate::error::{Error, Result, escaped};

/// What llama.cpp assumes where the file says nothing, as transformers does.
pub(crate) const DEFAULT_THETA: f64 = 10_000.0;

/// Keys of yarn: in the file below `rope.scaling.`, in the config.
const YARN: [(&str, &str); 4] = [
    ("original_context_length", "original_max_position_embeddings"),
    ("yarn_ext_factor", "extrapolation_factor"),
    ("yarn_beta_fast", "beta_fast"),
    ("yarn_beta_slow", "beta_slow"),
];

/// `rope_theta` of the config.
pub(crate) fn theta(keys: Keys<'_>) -> Result<Value> {
    Ok(keys.number_of_architecture("rope.freq_base")?.unwrap_or_else(|| json!(DEFAULT_THETA)))
}

/// `rope_scaling` of the config, with a warning where it is put differently than it was. `factors` are the values of
/// the tensor of frequency factors, `head` the columns of a head, `context` the longest context.
pub(crate) fn scaling(
    keys: Keys<'_>,
    factors: Option<&[f32]>,
    head: u64,
    context: u64,
) -> Result<(Option<Value>, Option<String>)> {
    let keyed = keyed(keys)?;
    let Some(factors) = factors else { return Ok((keyed, None)) };
    if factors.len() as u64 != head / 2 || !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        return Err(Error::inconsistent(
            format!(
                "rope_freqs.weight has {} factors or broken ones; heads of {head} columns need {}",
                factors.len(),
                head / 2
            ),
            "the file is inconsistent: download or convert the model again",
        ));
    }
    if factors.iter().all(|factor| factor.to_bits() == 1f32.to_bits()) {
        return Ok((keyed, None));
    }
    if keyed.is_some() {
        return Err(Error::unsupported(
            "the model scales its rotary frequencies both by keys and by the tensor rope_freqs.weight",
            "transformers has no such scaling: use the original model",
        ));
    }
    let theta = theta(keys)?.as_f64().unwrap_or(DEFAULT_THETA) as f32;
    if let Some(found) = recover(factors, theta) {
        return Ok((llama3(found), None));
    }
    // Any factors at all can be put as the lists of longrope.
    let list: Vec<Value> = factors.iter().filter_map(|factor| shortest(*factor)).collect();
    let longrope = json!({
        "rope_type": "longrope",
        "short_factor": list,
        "long_factor": list,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    });
    let warning =
        "the factors of rope_freqs.weight are not those of llama3's scaling; config.json has them as longrope";
    Ok((Some(longrope), Some(warning.to_owned())))
}

/// Scaling by keys alone.
fn keyed(keys: Keys<'_>) -> Result<Option<Value>> {
    let key = |name: &str| keys.number_of_architecture(&format!("rope.scaling.{name}"));
    let linear = |factor| Ok(Some(json!({"rope_type": "linear", "factor": factor})));
    let kind = keys.text_of_architecture("rope.scaling.type")?;
    // The older key stands in for the newer, whatever the type.
    let old = keys.number_of_architecture("rope.scale_linear")?.filter(|factor| factor.as_f64() != Some(1.0));
    let factor = key("factor")?.or(old).filter(|factor| factor.as_f64() != Some(0.0));
    let times = keys.number_of_architecture(yarn::ATTN_FACTOR)?.and_then(|times| times.as_f64());
    let times = times.filter(|times| times.to_bits() != 1f64.to_bits());
    if let Some(times) = times.filter(|_| kind != Some("yarn") || factor.is_none()) {
        return Err(Error::unsupported(
            format!("the model scales its rotary embedding by {times} (rope.scaling.attn_factor) without YaRN"),
            "transformers has no such scaling: use the original model",
        ));
    }
    match (kind, factor) {
        (Some("none"), _) | (Some("linear") | None, None) => Ok(None),
        (Some("linear") | None, Some(factor)) => linear(factor),
        (Some("yarn"), Some(factor)) => {
            let mut scaling = Map::new();
            scaling.insert("rope_type".to_owned(), json!("yarn"));
            let plain = yarn::scale(factor.as_f64().unwrap_or(1.0), 1.0);
            scaling.insert("factor".to_owned(), factor);
            for (stored, name) in YARN {
                if let Some(value) = key(stored)? {
                    scaling.entry(name).or_insert(value);
                }
            }
            // llama.cpp multiplies what it works out from the factor; transformers has the product. The converter's key
            // counts for nothing there.
            if let Some(times) = times {
                scaling.extend(shortest((times * plain) as f32).map(|whole| ("attention_factor".to_owned(), whole)));
            }
            Ok(Some(Value::Object(scaling)))
        }
        (Some(kind), _) => Err(Error::unsupported(
            format!("the model's rotary scaling {} can't be converted", escaped(kind)),
            "use the original model; linear, yarn and llama3's scaling can be converted",
        )),
    }
}

/// How far a factor may be from the one that the parameters give, relative to it: converters round in their own ways.
const TOLERANCE: f32 = 2e-5;
/// What the models that Meta released have: low, high, original context.
const RELEASED: (f64, f64, f64) = (1.0, 4.0, 8192.0);

/// The parameters of the llama3 scaling that gives `factors`, one a frequency. Only two of the last three can be told
/// from the factors, so those of the released models are tried first, and then the low one is taken to be 1.
fn recover(factors: &[f32], theta: f32) -> Option<Scaling> {
    let head = 2 * factors.len() as u64;
    if !(1.0..1e30).contains(&theta) || head > 1 << 20 {
        return None;
    }
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let (low, high, length) = RELEASED;
    let released = Scaling { factor: f64::from(factor), low, high, length };
    let fits = |candidate: &Scaling| {
        let close = |(wanted, found): (f32, &f32)| (wanted - found).abs() <= wanted * TOLERANCE;
        candidate.factors(theta, head).into_iter().zip(factors).all(close)
    };
    [Some(released), fit(factors, factor, theta)].into_iter().flatten().find(fits)
}

/// The parameters by a line through the first and the last factor between the bands: there, the share of the unscaled
/// frequency is linear in the turns of a frequency a position, which are the inverse of its wave length.
fn fit(factors: &[f32], factor: f32, theta: f32) -> Option<Scaling> {
    let scale = 1.0 / f64::from(factor);
    let share = |value: f32| (1.0 / f64::from(value) - scale) / (1.0 - scale);
    let turns = |i: usize| f64::from(theta).powf(-(i as f64) / factors.len() as f64) / std::f64::consts::TAU;
    let mut between = factors.iter().enumerate().filter(|(_, value)| **value > 1.0 && **value < factor);
    let (first, last) = (between.next()?, between.next_back()?);
    let slope = (share(*first.1) - share(*last.1)) / (turns(first.0) - turns(last.0));
    let offset = slope * turns(last.0) - share(*last.1);
    let high = ((1.0 + offset) / offset * 1000.0).round() / 1000.0;
    let length = (slope * (high - 1.0)).round();
    let sound = high > 1.0 && (1.0..1e12).contains(&length);
    sound.then_some(Scaling { factor: f64::from(factor), low: 1.0, high, length })
}

/// A llama3 scaling as `rope_scaling`.
fn llama3(scaling: Scaling) -> Option<Value> {
    Some(json!({
        "rope_type": "llama3",
        "factor": shortest(scaling.factor as f32)?,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.length as i64,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::keys::tests::keys;
    use super::*;
    use crate::gguf::{Metadata, Value as V};

    fn metadata(pairs: &[(&str, V)]) -> Metadata {
        let all = [("general.architecture", V::string("llama"))];
        all.iter().chain(pairs).map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    #[test]
    fn the_parameters_of_llama3_come_back() {
        let theta = [("llama.rope.freq_base", V::F32(500_000.0))];
        let metadata = metadata(&theta);
        let scaling = |factors: &[f32], head| scaling(keys(&metadata), Some(factors), head, 4096);
        for (factor, high, length, head) in
            [(8.0, 4.0, 8192.0, 128), (32.0, 4.0, 8192.0, 64), (4.0, 8.0, 4096.0, 128), (2.5, 3.0, 1024.0, 64)]
        {
            let made = Scaling { factor, low: 1.0, high, length };
            let values = made.factors(500_000.0, head);
            assert_eq!(recover(&values, 500_000.0), Some(made));
            let (found, warning) = scaling(&values, head).unwrap();
            assert_eq!((&found.unwrap()["rope_type"], warning), (&json!("llama3"), None));
        }
        let odd: Vec<f32> = (0..32).map(|i| 1.0 + (i % 3) as f32).collect();
        let (found, warning) = scaling(&odd, 64).unwrap();
        assert_eq!(found.unwrap()["long_factor"].as_array().unwrap().len(), 32);
        assert!(warning.is_some());
        assert_eq!(scaling(&[1.0; 32], 64).unwrap(), (None, None));
        for broken in [&odd[..31], &[], &[1.0; 64], &[f32::NAN; 32], &[0.0; 32]] {
            assert!(scaling(broken, 64).unwrap_err().to_string().contains("rope_freqs.weight"), "{broken:?}");
        }
    }

    #[test]
    fn keys_give_linear_and_yarn() {
        let made = |pairs: &[(&str, V)]| keyed(keys(&metadata(pairs))).map_err(|e| e.to_string());
        let kind = |kind: &str| ("llama.rope.scaling.type", V::string(kind));
        let factor = ("llama.rope.scaling.factor", V::F32(4.0));
        assert_eq!(made(&[]), Ok(None));
        assert_eq!(made(&[kind("none"), factor.clone()]), Ok(None));
        let linear = json!({"rope_type": "linear", "factor": 4.0});
        assert_eq!(made(&[kind("linear"), factor.clone()]), Ok(Some(linear.clone())));
        let old = ("llama.rope.scale_linear", V::F32(4.0));
        assert_eq!(made(std::slice::from_ref(&old)), Ok(Some(linear.clone())));
        assert_eq!(made(&[kind("linear"), old]), Ok(Some(linear)));
        let original = ("llama.rope.scaling.original_context_length", V::U32(32768));
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        assert_eq!(made(&[kind("yarn"), factor.clone(), original]), Ok(Some(yarn)));
        assert!(made(&[kind("longrope"), factor]).is_err());
    }

    #[test]
    fn the_factor_of_attention_is_what_llama_cpp_multiplies() {
        let made = |name: &str, pairs: &[(&str, V)]| {
            let all: Vec<_> =
                [("llama.rope.scaling.type", V::string(name)), ("llama.rope.scaling.factor", V::F32(4.0))]
                    .into_iter()
                    .chain(pairs.iter().cloned())
                    .collect();
            keyed(keys(&metadata(&all))).map(|found| found.unwrap().get("attention_factor").and_then(Value::as_f64))
        };
        let plain = 0.1 * 4f64.ln() + 1.0;
        let key = "llama.rope.scaling.attn_factor";
        let factor = made("yarn", &[(key, V::F32(0.9))]).unwrap().unwrap();
        assert!((factor - 0.9 * plain).abs() < 1e-6, "{factor}");
        assert_eq!(made("yarn", &[(key, V::F32(1.0))]).unwrap(), None, "what transformers works out");
        let converters = [("llama.rope.scaling.yarn_attn_factor", V::F32(0.9))];
        assert_eq!(made("yarn", &converters).unwrap(), None, "llama.cpp does not read it");
        let both =
            [("llama.rope.scaling.attn_factor", V::F32(0.5)), ("llama.rope.scaling.yarn_attn_factor", V::F32(0.9))];
        assert!((made("yarn", &both).unwrap().unwrap() - 0.5 * plain).abs() < 1e-6, "the one that llama.cpp reads");
        let error = made("linear", &both[..1]).unwrap_err().to_string();
        assert!(error.contains("attn_factor") && error.contains("0.5"), "{error}");
    }
}
