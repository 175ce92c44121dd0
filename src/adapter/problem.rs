//! What of an adapter can't be merged, and the remedy: a refusal lists the problems, and names each remedy once.

use super::{Adapter, rename};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, escaped, shown};

/// Problems that a refusal lists; the rest is counted.
const LISTED: usize = 12;

/// Something about an adapter that can't be merged.
pub(super) struct Problem {
    pub(super) text: String,
    /// The name that the base lacks, if that is the problem: its neighbours are listed.
    pub(super) lacking: Option<String>,
    pub(super) way: Way,
}

/// The way out of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The adapter is not whole, or belongs to another base.
    Base,
    /// The adapter is right, and the form of the base is what qft can't change.
    Form,
    /// A weight was given to what has none.
    Weight,
    /// Two adapters have a say where only one can.
    Together,
    /// A tensor has a type that can't be computed with.
    Type,
    /// A setting is wrong, and the problem says which.
    Own,
}

impl Way {
    fn remedy(self) -> &'static str {
        match self {
            Self::Base => {
                "check that the adapter is complete and was trained on this base (adapter_config.json names it); if it \
                 is, serve it beside the base with PEFT"
            }
            Self::Form => "serve the adapter beside the base with PEFT, or train without these modules",
            Self::Weight => "drop the weight after = from ⟦adapter⟧",
            Self::Together => "merge one adapter, then the next one into that release, with ⟦base⟧",
            Self::Type => "save the tensors of other types in BF16, F16 or F32",
            Self::Own => "change the setting that is named above",
        }
    }
}

/// Refuses to merge `adapters` into `base`, for `problems`.
pub(super) fn refusal(base: &Checkpoint, adapters: &[Adapter], problems: &[Problem]) -> Error {
    let mut text = format!("the adapter can't be merged into {}:", shown(&base.dir));
    for Problem { text: problem, lacking, .. } in problems.iter().take(LISTED) {
        text.push_str("\n  ");
        text.push_str(problem);
        let near = lacking.as_ref().map(|name| rename::nearest(&base.tensors, name)).unwrap_or_default();
        if !near.is_empty() {
            text.push_str("; nearest: ");
            text.push_str(&near.iter().map(|name| escaped(name)).collect::<Vec<_>>().join(", "));
        }
    }
    if problems.len() > LISTED {
        text.push_str(&format!("\n  and {} more", problems.len() - LISTED));
    }
    let mut ways: Vec<Way> = Vec::new();
    for Problem { way, .. } in problems {
        if !ways.contains(way) {
            ways.push(*way);
        }
    }
    // Tensors that are 16-bit on a quantized base merge; those that an adapter changes and that are not have other types,
    // shapes or names.
    let method = base.quantization().filter(|_| ways.iter().any(|way| matches!(way, Way::Base | Way::Type)));
    let mut remedies = Vec::new();
    if let Some(method) = method {
        text.push_str(&format!("\n  the base is quantized ({method})"));
        ways.retain(|way| !matches!(way, Way::Base | Way::Type));
        let original = adapters.iter().find_map(|adapter| adapter.config.unquantized_base());
        let original = original.map(|name| format!(", such as {}", escaped(name))).unwrap_or_default();
        remedies.push(format!("give the 16-bit model that it was made from as ⟦base⟧{original}"));
    }
    remedies.extend(ways.iter().map(|way| way.remedy().to_owned()));
    Error::inconsistent(text, remedies.join("; "))
}
