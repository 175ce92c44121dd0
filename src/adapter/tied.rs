//! Tied embeddings: an output head that is the input embedding's tensor. A change to one side must not leak into the
//! other, so the two are written apart and the config's flag is cleared; a change to both alike keeps them tied.

use std::collections::BTreeMap;

use super::change::{TensorSource, same_values};
use super::heads;
use crate::checkpoint::{Checkpoint, TEXT_SECTIONS, Tensor};

/// Endings of the names of model classes that have an output head.
const WITH_HEAD: [&str; 10] = [
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForMaskedLM",
    "ForPreTraining",
    "ForTextToText",
    "ForBlockDiffusion",
    "MarianMTModel",
    "BertGenerationDecoder",
    "EncoderDecoderModel",
];

/// Why a change of an embedding is refused where its head is not known.
pub(super) const MAY_BE_TIED: &str = "is for an embedding that may be tied to a head by a rule that qft does not know; set \
                                      tie_word_embeddings in the base's config.json";

/// An embedding and its head.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// The embedding's name on disk.
    pub(super) embedding: String,
    /// The head's name on disk, whether it is there or not.
    pub(super) head: String,
    /// Whether the head has a tensor of its own on disk.
    stored: bool,
    /// Whether a loader would tie the two.
    pub(super) tied: bool,
    /// Whether the config ties the two, but the file has them with different values. transformers 5 leaves such a pair
    /// apart, as it was trained; transformers 4 and vLLM tie it.
    pub(super) contradicts_flag: bool,
    /// Whether only a section of the config ties the two. PEFT looks at the top, and leaves the head alone.
    by_section: bool,
}

impl Pair {
    /// The base's pair, if it has an embedding that qft knows.
    pub(super) fn find(base: &Checkpoint) -> Option<Self> {
        let has = |name: &str| base.tensors.contains_key(name);
        let kind = model_type(base).unwrap_or_default();
        let (head, embedding) = heads::among(has, &kind)?;
        // A head that is nowhere is tied, unless the config says that it is not: then it goes by a name that nobody knows.
        let flag = tie_flag(base);
        let kind = model_type(base).unwrap_or_default();
        let flagged =
            has_head(base) && !heads::is_never_tied(&kind) && (flag == Some(true) || (!has(head) && flag.is_none()));
        // Values are read only where the flag ties what the file has apart.
        let original = &base.tensors[embedding];
        let stored = base.tensors.get(head).filter(|_| flagged);
        let apart = stored.is_some_and(|stored| !same_values(stored, original, original.dtype()));
        let unsaid = heads::is_unsaid(&kind);
        Some(Self {
            embedding: embedding.to_owned(),
            head: head.to_owned(),
            stored: has(head),
            tied: flagged && !apart,
            contradicts_flag: apart,
            by_section: flag == Some(true) && (top_flag(base) != Some(true) || unsaid),
        })
    }

    /// Whether tensor `name` is the head of a tied pair that has no tensor of its own.
    pub(super) fn is_missing_head(&self, name: &str) -> bool {
        self.tied && !self.stored && name == self.head
    }

    /// Settles the pair after all changes: says whether the output is untied.
    pub(super) fn settle(&self, base: &Checkpoint, tensors: &mut BTreeMap<String, TensorSource>) -> bool {
        let (Some(embedding), Some(original)) =
            (tensors.get(&self.embedding).cloned(), base.tensors.get(&self.embedding))
        else {
            return false;
        };
        // PEFT goes by the flag of the whole model: it had the head's same rows trained with the embedding's.
        let by_flag = self.contradicts_flag && !self.by_section;
        if let Some(head) = tensors.get_mut(&self.head).filter(|head| by_flag && head.rows.is_none()) {
            head.rows.clone_from(&embedding.rows);
        }
        let head = tensors.get(&self.head).filter(|head| head.is_changed()).cloned();
        if head.is_none() && !self.stored {
            tensors.remove(&self.head);
        }
        let untied = self.sides(embedding, original, head.as_ref(), tensors);
        if untied && let Some(embedding) = tensors.get(&self.embedding).cloned() {
            for copy in heads::copies_of(&self.embedding, &model_type(base).unwrap_or_default()) {
                tensors.entry((*copy).to_owned()).or_insert_with(|| embedding.clone());
            }
        }
        let bias = heads::bias_of(&self.head).and_then(|(from, to)| Some((tensors.get(from)?.clone(), to)));
        if untied && let Some((bias, to)) = bias {
            tensors.entry(to.to_owned()).or_insert(bias);
        }
        untied
    }

    /// Puts both sides in their places; says whether they are apart.
    fn sides(
        &self,
        embedding: TensorSource,
        original: &Tensor,
        head: Option<&TensorSource>,
        tensors: &mut BTreeMap<String, TensorSource>,
    ) -> bool {
        match (embedding.is_changed(), head) {
            _ if !self.tied => false,
            (false, None) => false,
            (true, Some(head)) if head.same_result(&embedding) => {
                if self.stored {
                    return false;
                }
                tensors.remove(&self.head);
                false
            }
            // Rows of new values, and a new vocabulary, are meant for both sides.
            (true, None)
                if embedding.low_rank.is_empty()
                    && ((embedding.rows.is_some() && !self.by_section) || resized(&embedding, original)) =>
            {
                if self.stored {
                    tensors.insert(self.head.clone(), embedding);
                }
                false
            }
            (true, None) => {
                if !self.stored {
                    tensors.insert(self.head.clone(), untrained(&embedding, original));
                }
                true
            }
            (false, Some(head)) => {
                let side = untrained(head, original);
                tensors.insert(self.embedding.clone(), side);
                true
            }
            (true, Some(_)) => true,
        }
    }
}

/// The side of the pair that was not trained, given the one that was: the base's tensor. Where the trained side brings
/// its own (`base_layer`) and differs from the file's, that is the base that both sides were.
fn untrained(trained: &TensorSource, original: &Tensor) -> TensorSource {
    let same = || trained.source.dtype() == original.dtype() && trained.source.bytes() == original.bytes();
    if trained.is_base_layer && !same() {
        TensorSource { low_rank: Vec::new(), magnitude: None, rows: None, ..trained.clone() }
    } else {
        TensorSource::untouched(original)
    }
}

/// The head that the config of `base` ties to the embedding, but which has values of its own. Reads both.
pub fn head_apart(base: &Checkpoint) -> Option<String> {
    Pair::find(base).filter(|pair| pair.contradicts_flag).map(|pair| pair.head)
}

/// Whether a head of the base may be tied to an embedding that [`Pair`] does not know: it stores no head, its class has
/// one, and its config does not say that they are apart.
pub(super) fn may_be_tied_unknown(base: &Checkpoint) -> bool {
    let stored = heads::names().any(|head| base.tensors.contains_key(head));
    !stored && base.config.is_some() && has_head(base) && tie_flag(base) != Some(false)
}

pub(super) fn model_type(base: &Checkpoint) -> Option<String> {
    base.config.as_ref()?.string(&["model_type"])
}

/// `tie_word_embeddings`: true if any section of the config says so.
fn tie_flag(base: &Checkpoint) -> Option<bool> {
    let config = base.config.as_ref()?;
    let key = "tie_word_embeddings";
    let places = TEXT_SECTIONS.iter().map(|section| vec![*section, key]).chain([vec![key]]);
    let flags: Vec<bool> = places.filter_map(|keys| config.get(&keys)?.as_bool()).collect();
    (!flags.is_empty()).then(|| flags.contains(&true))
}

fn top_flag(base: &Checkpoint) -> Option<bool> {
    base.config.as_ref()?.get(&["tie_word_embeddings"])?.as_bool()
}

/// Whether the model's class has an output head; without a config, it may have one.
fn has_head(base: &Checkpoint) -> bool {
    let class =
        base.config.as_ref().and_then(|config| config.get(&["architectures"])?.get(0)?.as_str().map(str::to_owned));
    class.is_none_or(|class| WITH_HEAD.iter().any(|ending| class.ends_with(ending)))
}

fn resized(embedding: &TensorSource, original: &Tensor) -> bool {
    embedding.source.shape() != original.shape()
}
