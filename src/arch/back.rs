//! The reverse conversion (to-hf): the tensors of a GGUF by their names in transformers, from the tables of the
//! conversion. A tensor without a name is refused, and so is a name without its tensor.

use std::collections::BTreeMap;

use super::family::Family;
use super::names::LISTED;
use super::registry::FAMILIES;
use super::row::{Bias, Heads, OUTSIDE, Row, Sizes};
use crate::error::{Error, Result, escaped};

/// The embeddings.
pub(crate) const EMBEDDINGS: &str = "model.embed_tokens.weight";
/// The head's weight; a model without is tied.
pub(crate) const HEAD: &str = "lm_head.weight";
/// Factors of the rotary frequencies, which converters make from the config.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

const INCOMPLETE: &str = "the file is incomplete: download or convert the model again";
const INCONSISTENT: &str = "the file is inconsistent: download or convert the model again";

/// A tensor of the model, found and named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Which of the GGUF model's tensors it is.
    pub(crate) index: usize,
    /// Its name in transformers.
    pub(crate) name: String,
    /// Its shape there.
    pub(crate) shape: Vec<usize>,
    /// The heads that its rows are reordered as.
    pub(crate) heads: Option<usize>,
}

/// A tensor of a GGUF: its name and its shape, outermost axis first.
pub(crate) type Stored<'a> = (&'a str, &'a [usize]);

/// Something that config.json says, and whether it is so.
pub(crate) type Switch = (&'static str, bool);

/// A family, seen from its files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Back(&'static Family);

impl Back {
    /// The family that `general.architecture` names.
    pub(crate) fn of(architecture: &str) -> Result<Self> {
        if let Some(family) = FAMILIES.iter().find(|family| family.name == architecture) {
            return Ok(Self(family));
        }
        let mut known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        known.dedup();
        Err(Error::unsupported(
            format!("a model of the architecture {} can't be converted to Hugging Face yet", escaped(architecture)),
            format!("use the original model; qft converts {}", known.join(", ")),
        ))
    }

    /// `architectures` of config.json.
    pub(crate) fn class(self) -> &'static str {
        self.0.architectures[0]
    }

    /// `model_type` of config.json.
    pub(crate) fn model_type(self) -> &'static str {
        self.0.classes[0].model_type
    }

    /// Names every tensor of a model. Refuses unknown, missing and misshapen ones. Also tells how the switches of
    /// config.json are set: a switch is on if any layer has one of its biases, and then every layer must have all.
    pub(crate) fn name_tensors(self, stored: &[Stored<'_>], sizes: &Sizes) -> Result<(Vec<Found>, Vec<Switch>)> {
        let mut left: BTreeMap<&str, usize> = stored.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
        left.remove(ROPE_FREQS);
        let switches = self.switches(stored);
        let on = |bias: Bias| match bias {
            Bias::Never => false,
            Bias::Always => true,
            Bias::If(switch) => switches.contains(&(switch, true)),
        };
        // A model has at least as many tensors as layers, whatever its metadata claims.
        let layers = sizes.layers.min(stored.len() as u64);
        let outside = OUTSIDE.iter().map(|row| (row, None));
        let inside = (0..layers).flat_map(|layer| self.0.layer.iter().map(move |row| (row, Some(layer))));
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for (row, layer) in outside.chain(inside) {
            for bias in [Some(false), on(row.bias).then_some(true)].into_iter().flatten() {
                let name = row.our_name(layer, bias);
                match left.remove(name.as_str()) {
                    Some(index) => found.push(self.found(stored[index], index, row, (layer, bias), sizes)?),
                    None if row.must || bias => missing.push(name),
                    None => {}
                }
            }
        }
        refuse(&missing, "lacks", INCOMPLETE)?;
        let unknown: Vec<String> = left.into_keys().map(str::to_owned).collect();
        refuse(&unknown, "has no name in transformers for", "use the original model: nothing is left out silently")?;
        Ok((found, switches))
    }

    /// The switches of the family.
    fn switches(self, stored: &[Stored<'_>]) -> Vec<Switch> {
        let mut switches: Vec<Switch> = Vec::new();
        for row in self.0.layer {
            let Bias::If(switch) = row.bias else { continue };
            let ending = format!(".{}.bias", row.ours);
            let on = stored.iter().any(|(name, _)| name.ends_with(&ending));
            match switches.iter_mut().find(|(name, _)| *name == switch) {
                Some((_, any)) => *any |= on,
                None => switches.push((switch, on)),
            }
        }
        switches
    }

    fn found(
        self,
        (name, stored): Stored<'_>,
        index: usize,
        row: &Row,
        (layer, bias): (Option<u64>, bool),
        sizes: &Sizes,
    ) -> Result<Found> {
        let axes = if bias { 1 } else { row.axes };
        let shape: Vec<usize> = row.shape[..axes].iter().map(|dim| sizes.size(*dim) as usize).collect();
        if trimmed(stored) != trimmed(&shape) {
            let problem = format!(
                "tensor {} has the shape {:?}, and the model's metadata require {shape:?}",
                escaped(name),
                stored
            );
            return Err(Error::inconsistent(problem, INCONSISTENT));
        }
        let heads = match row.heads {
            Heads::Query => Some(sizes.query_heads as usize),
            Heads::Key => Some(sizes.key_heads as usize),
            Heads::None => None,
        };
        Ok(Found { index, name: row.their_name(layer, bias), shape, heads: heads.filter(|_| self.0.permutes) })
    }
}

/// A shape without outermost axes of length 1, which some writers leave out.
fn trimmed(shape: &[usize]) -> &[usize] {
    &shape[shape.iter().take_while(|length| **length == 1).count()..]
}

fn refuse(names: &[String], problem: &str, remedy: &str) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut listed = names.iter().take(LISTED).map(|name| escaped(name)).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        listed += &format!(" and {} more", names.len() - LISTED);
    }
    Err(Error::inconsistent(format!("the model {problem} {listed}"), remedy))
}
