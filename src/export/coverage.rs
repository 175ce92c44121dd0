//! How much of a GGUF output an importance matrix covers: nothing means that it is another model's.

use std::collections::BTreeMap;

use crate::error::{Error, Result, escaped};
use crate::gguf::imatrix::Imatrix;

/// Names that are told of many.
const TOLD: usize = 3;
/// Tensors that llama-imatrix has no entry for, unless it is asked.
const OFTEN_WITHOUT: [&str; 2] = ["token_embd.weight", "output.weight"];

/// The weights of each tensor that is encoded in blocks, by name; `None` where the matrix has none.
pub(super) type Weighed = BTreeMap<String, Option<Vec<f32>>>;

/// What an importance matrix has of an output.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Coverage {
    /// Entries that weigh a tensor.
    pub(super) used: u32,
    /// Tensors that are encoded in blocks.
    encoded: usize,
    /// Those of them that it has nothing for.
    without: Vec<String>,
    /// Its entries for tensors that the model does not have.
    strangers: Vec<String>,
}

impl Coverage {
    /// What `imatrix` has of the tensors `weighed`, in a model that has tensors of such names as `is_there` says.
    pub(super) fn of(imatrix: &Imatrix, weighed: &Weighed, is_there: impl Fn(&str) -> bool) -> Self {
        let without: Vec<String> =
            weighed.iter().filter(|(_, weights)| weights.is_none()).map(|(name, _)| name.clone()).collect();
        Self {
            used: u32::try_from(weighed.len() - without.len()).unwrap_or(u32::MAX),
            encoded: weighed.len(),
            without,
            strangers: imatrix.names().filter(|name| !is_there(name)).map(str::to_owned).collect(),
        }
    }

    /// Refuses a matrix that has nothing for any tensor; warns of those that it has nothing for, and of entries for
    /// others. `file` is its name.
    pub(super) fn check(&self, file: &str) -> Result<Vec<String>> {
        let (file, encoded, strangers) = (escaped(file), self.encoded, self.strangers.len());
        if encoded > 0 && self.used == 0 {
            let problem = format!(
                "the importance matrix {file} has no entry for any of the {encoded} tensors that are encoded in blocks; \
                 its entries are for {}",
                first(&self.strangers)
            );
            return Err(Error::inconsistent(
                problem,
                "give the importance matrix of this model, or leave out ⟦imatrix⟧",
            ));
        }
        let mut warnings = Vec::new();
        if self.without.iter().any(|name| !OFTEN_WITHOUT.contains(&name.as_str())) {
            warnings.push(format!(
                "the importance matrix {file} has no entry for {} of the {encoded} tensors that are encoded in blocks: \
                 {}",
                self.without.len(),
                first(&self.without)
            ));
        }
        if strangers > 0 {
            warnings.push(format!(
                "{strangers} entries of the importance matrix {file} are for tensors that the model does not have: {}",
                first(&self.strangers)
            ));
        }
        Ok(warnings)
    }
}

/// The first of `names`, and how many more there are.
fn first(names: &[String]) -> String {
    let listed = names.iter().take(TOLD).map(|name| escaped(name)).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "tensors that are not encoded".to_owned(),
        len if len > TOLD => format!("{listed} and {} more", len - TOLD),
        _ => listed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage(without: &[&str], encoded: usize, strangers: usize) -> Coverage {
        let without: Vec<String> = without.iter().map(|name| (*name).to_owned()).collect();
        Coverage {
            used: (encoded - without.len()) as u32,
            encoded,
            without,
            strangers: (0..strangers).map(|i| format!("blk.{i}.x")).collect(),
        }
    }

    #[test]
    fn what_fits_nothing_is_refused_and_gaps_are_counted() {
        let refusal = coverage(&["a", "b"], 2, 5).check("other.gguf").unwrap_err().to_string();
        for mention in ["other.gguf", "any of the 2 tensors", "blk.0.x, blk.1.x, blk.2.x and 2 more", "this model"] {
            assert!(refusal.contains(mention), "{refusal}");
        }
        assert_eq!(coverage(&["output.weight", "token_embd.weight"], 9, 0).check("x").unwrap(), [""; 0]);
        let said = coverage(&["blk.0.a", "output.weight"], 9, 1).check("x").unwrap();
        assert!(said[0].contains("2 of the 9") && said[0].contains("blk.0.a"), "{said:?}");
        assert!(said[1].starts_with("1 entries") && said[1].contains("blk.0.x"), "{said:?}");
        assert_eq!(coverage(&[], 0, 3).check("x").unwrap().len(), 1, "nothing is encoded, and so nothing is missing");
    }
}
