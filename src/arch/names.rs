//! The tensors of a Hugging Face model as those of a GGUF: names, shapes, which rows are reordered and which tensors
//! stay F32. A tensor without a place is refused, and so is a place without its tensor.

use std::collections::HashSet;

use safetensors::Dtype;

use super::family::Family;
use super::registry::BY_LLAMA_CPP;
use super::row::{Bias, Heads, OUTSIDE, Row, Sizes};
use crate::arch::settings::Settings;
use crate::arch::{GgufTensor, HfTensor, Rows};
use crate::error::{Error, Result, escaped};
use crate::merge::TO_FLOATS;

/// Endings of tensors that the converter leaves out as well: they are computed or constant.
const LEFT_OUT: [&str; 3] = [".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// The place of a tensor.
struct Place {
    row: &'static Row,
    layer: Option<u64>,
    bias: bool,
}

impl Place {
    /// The place of the tensor `name`, which may lack the first part, "model", as models without a head do.
    fn find(family: &Family, name: &str) -> Option<Self> {
        let (stem, bias) = match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
            (Some(stem), _) => (stem, false),
            (_, Some(stem)) => (stem, true),
            _ => return None,
        };
        let stem = stem.strip_prefix("model.").filter(|stem| *stem != "lm_head").unwrap_or(stem);
        let (rows, layer, stem): (&'static [Row], _, _) = match stem.strip_prefix("layers.") {
            Some(rest) => {
                let (layer, rest) = rest.split_once('.')?;
                let number = layer.parse::<u64>().ok().filter(|number| number.to_string() == layer)?;
                (family.layer, Some(number), rest)
            }
            None => (&OUTSIDE, None, stem),
        };
        let row = rows.iter().find(|row| row.theirs == stem)?;
        (!bias || row.bias != Bias::Never).then_some(Self { row, layer, bias })
    }

    /// Its name in the GGUF.
    fn name(&self) -> String {
        self.row.our_name(self.layer, self.bias)
    }
}

/// Whether the tensor `name` is one of the family, or one that is computed or constant.
pub(super) fn is_known(family: &Family, name: &str) -> bool {
    LEFT_OUT.iter().any(|ending| name.ends_with(ending)) || Place::find(family, name).is_some()
}

/// The GGUF's tensors for the `tensors` of a model, in the same order.
pub(crate) fn place(
    family: &Family,
    settings: &Settings,
    tensors: &[HfTensor],
    warnings: &mut Vec<String>,
) -> Result<Vec<GgufTensor>> {
    let sizes = Sizes::of(settings)?;
    let (mut placed, mut lost) = (Vec::with_capacity(tensors.len()), Vec::new());
    let mut names = HashSet::new();
    for tensor in tensors.iter().filter(|tensor| !LEFT_OUT.iter().any(|ending| tensor.name.ends_with(ending))) {
        let found = Place::find(family, &tensor.name).filter(|place| place.layer.is_none_or(|l| l < sizes.layers));
        let Some(place) = found else {
            lost.push(tensor.name.as_str());
            continue;
        };
        let name = place.name();
        if !names.insert(name.clone()) {
            let problem = format!("two tensors would be {name}; the second is {}", escaped(&tensor.name));
            return Err(Error::inconsistent(problem, "remove one of them from the model"));
        }
        check(&place, tensor, &sizes)?;
        let heads = if family.permutes { place.row.heads } else { Heads::None };
        let heads = match heads {
            Heads::None => None,
            Heads::Query => Some(sizes.query_heads as usize),
            Heads::Key => Some(sizes.key_heads as usize),
        };
        if heads.is_some() && !sizes.head.is_multiple_of(2) {
            let problem = format!("heads of {} values can't be reordered for llama.cpp: they must be even", sizes.head);
            return Err(Error::inconsistent(problem, "check head_dim in config.json"));
        }
        placed.push(GgufTensor {
            always_f32: tensor.shape.len() <= 1 || name.ends_with("_norm.weight") || !name.ends_with(".weight"),
            shape: tensor.shape.clone(),
            rows: Rows::Tensor { name: tensor.name.clone(), heads },
            name,
        });
    }
    refuse_lost(family, &lost, sizes.layers)?;
    refuse_missing(family, settings, &names, sizes.layers)?;
    if !names.contains("output.weight") && !settings.is_on("tie_word_embeddings") {
        warnings.push(
            "the model has no lm_head.weight though config.json does not tie it to the embedding: programs that read \
             the GGUF will use the embedding"
                .to_owned(),
        );
    }
    Ok(placed)
}

/// Refuses a tensor of a type or shape that its place does not have.
fn check(place: &Place, tensor: &HfTensor, sizes: &Sizes) -> Result<()> {
    if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        let problem = format!(
            "tensor {} has the type {:?}: a GGUF can be made of F32, F16 and BF16 only",
            escaped(&tensor.name),
            tensor.dtype
        );
        let remedy = if tensor.dtype == Dtype::F64 { TO_FLOATS } else { "give the 16-bit model that it was made from" };
        return Err(Error::unsupported(problem, remedy));
    }
    let axes = if place.bias { 1 } else { place.row.axes };
    let expected: Vec<u64> = place.row.shape[..axes].iter().map(|dim| sizes.size(*dim)).collect();
    if tensor.shape.iter().map(|n| *n as u64).ne(expected.iter().copied()) {
        let problem = format!(
            "tensor {} has the shape {:?}, and config.json requires {expected:?}",
            escaped(&tensor.name),
            tensor.shape
        );
        return Err(Error::inconsistent(problem, "take config.json and weights from the same model"));
    }
    Ok(())
}

/// Most names that a message lists.
pub(crate) const LISTED: usize = 8;

fn list(names: &[&str]) -> String {
    let mut text = names.iter().take(LISTED).map(|name| escaped(name)).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    text
}

fn refuse_lost(family: &Family, lost: &[&str], layers: u64) -> Result<()> {
    if lost.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "{} tensors have no name in a GGUF of {} with {layers} layers: {}",
        lost.len(),
        family.name,
        list(lost)
    );
    let remedy = if lost.iter().any(|name| name.contains("experts") || name.contains("block_sparse_moe")) {
        format!("mixtures of experts are not converted yet: {BY_LLAMA_CPP}")
    } else {
        format!(
            "check architectures and num_hidden_layers in config.json (nothing is left out silently), or {BY_LLAMA_CPP}"
        )
    };
    Err(Error::unsupported(problem, remedy))
}

fn refuse_missing(family: &Family, settings: &Settings, names: &HashSet<String>, layers: u64) -> Result<()> {
    const REMEDY: &str = "get the complete model, or correct config.json";
    // Before names are made for as many layers as a file says.
    if layers.saturating_mul(family.layer.len() as u64) > 2 * (names.len() as u64 + 1) + 1000 {
        let problem = format!("config.json says {layers} layers; the model has {} tensors", names.len());
        return Err(Error::inconsistent(problem, REMEDY));
    }
    let outside = OUTSIDE.iter().map(|row| (row, None));
    let inside = (0..layers).flat_map(|layer| family.layer.iter().map(move |row| (row, Some(layer))));
    let mut missing = Vec::new();
    for (row, layer) in outside.chain(inside) {
        let bias = match row.bias {
            Bias::Never => false,
            Bias::Always => true,
            Bias::If(switch) => settings.is_on(switch),
        };
        let wanted = [row.must.then_some(false), bias.then_some(true)];
        let places = wanted.into_iter().flatten().map(|bias| Place { row, layer, bias }.name());
        missing.extend(places.filter(|name| !names.contains(name)));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    Err(Error::inconsistent(
        format!("the model lacks {} tensors of a {}: {}", missing.len(), family.name, list(&missing)),
        REMEDY,
    ))
}

#[cfg(test)]
mod tests {
    use super::super::row::Dim;
    use super::super::{llama::LLAMA, qwen2::QWEN2};
    use super::*;
    use serde_json::json;

    /// A model of one layer: 4 heads of 2, 2 of which have keys.
    fn model(family: &Family) -> (Settings, Vec<HfTensor>) {
        let model_type = family.name;
        let config = json!({"model_type": model_type, "vocab_size": 10, "hidden_size": 8, "intermediate_size": 6,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true});
        let settings = Settings::complete(&config).unwrap();
        let sizes = Sizes::of(&settings).unwrap();
        let tensor = |name: String, dims: &[Dim]| HfTensor {
            name,
            dtype: Dtype::BF16,
            shape: dims.iter().map(|dim| sizes.size(*dim) as usize).collect(),
        };
        let mut tensors: Vec<HfTensor> = OUTSIDE[..2]
            .iter()
            .map(|row| tensor(format!("model.{}.weight", row.theirs), &row.shape[..row.axes]))
            .collect();
        for row in family.layer {
            let stem = format!("model.layers.0.{}", row.theirs);
            tensors.push(tensor(format!("{stem}.weight"), &row.shape[..row.axes]));
            if row.bias == Bias::Always {
                tensors.push(tensor(format!("{stem}.bias"), &row.shape[..1]));
            }
        }
        (settings, tensors)
    }

    /// Why the model is refused after a change.
    fn refusal(family: &Family, change: impl Fn(&mut Vec<HfTensor>)) -> String {
        let (settings, mut tensors) = model(family);
        change(&mut tensors);
        place(family, &settings, &tensors, &mut Vec::new()).unwrap_err().to_string()
    }

    #[test]
    fn every_tensor_has_a_place_and_every_place_a_tensor() {
        let (settings, tensors) = model(&QWEN2);
        assert_eq!(place(&QWEN2, &settings, &tensors, &mut Vec::new()).unwrap().len(), tensors.len());
        for i in 0..tensors.len() {
            let name = tensors[i].name.clone();
            let refused = refusal(&QWEN2, |tensors| drop(tensors.remove(i)));
            let ours = Place::find(&QWEN2, &name).unwrap().name();
            assert!(refused.contains(&ours), "{name}: {refused}");
        }
        for name in [
            "model.layers.1.input_layernorm.weight",
            "model.layers.00.input_layernorm.weight",
            "model.layers.0.input_layernorm.bias",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.q_proj.weight.absmax",
            "model.lm_head.weight",
            "lm_head.bias",
            "x",
        ] {
            let extra = HfTensor { name: name.to_owned(), dtype: Dtype::BF16, shape: vec![8] };
            let refused = refusal(&QWEN2, |tensors| tensors.push(extra.clone()));
            assert!(refused.contains("no name in") && refused.contains(name), "{refused}");
        }
        let expert = "model.layers.0.mlp.experts.0.up_proj.weight";
        let extra = HfTensor { name: expert.to_owned(), dtype: Dtype::BF16, shape: vec![8] };
        assert!(refusal(&QWEN2, |tensors| tensors.push(extra.clone())).contains("mixtures of experts"));
    }

    #[test]
    fn shapes_and_types_are_checked() {
        for i in 0..model(&LLAMA).1.len() {
            let refused = refusal(&LLAMA, |tensors| tensors[i].shape[0] += 1);
            assert!(refused.contains("config.json requires"), "{refused}");
            assert!(refusal(&LLAMA, |tensors| tensors[i].dtype = Dtype::U8).contains("U8"));
        }
        let twice = refusal(&LLAMA, |tensors| {
            let mut again = tensors[0].clone();
            again.name = "embed_tokens.weight".to_owned();
            tensors.push(again);
        });
        assert!(twice.contains("token_embd.weight"), "{twice}");
    }

    #[test]
    fn a_number_of_layers_costs_nothing() {
        let config = json!({"model_type": "llama", "num_hidden_layers": u32::MAX});
        let settings = Settings::complete(&config).unwrap();
        assert!(place(&LLAMA, &settings, &[], &mut Vec::new()).unwrap_err().to_string().contains("4294967295 layers"));
    }

    #[test]
    fn what_is_computed_is_left_out() {
        let (settings, mut tensors) = model(&LLAMA);
        let count = tensors.len();
        for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attention.bias"] {
            tensors.push(HfTensor { name: name.to_owned(), dtype: Dtype::F32, shape: vec![1] });
        }
        assert_eq!(place(&LLAMA, &settings, &tensors, &mut Vec::new()).unwrap().len(), count);
    }
}
