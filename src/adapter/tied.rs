//! Tied embeddings: an output head that is the input embedding's tensor. A change to one side must not leak into the
//! other, so the two are written apart and the config's flag is cleared; a change to both alike keeps them tied.

use std::collections::BTreeMap;

use super::change::TensorSource;
use crate::checkpoint::{Checkpoint, TEXT_SECTIONS, Tensor};

/// Heads, and the embeddings that they may be tied to, by their names on disk.
const PAIRS: [(&str, &[&str]); 6] = [
    (
        "lm_head.weight",
        &[
            "model.embed_tokens.weight",
            "model.language_model.embed_tokens.weight",
            "language_model.model.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "model.text_model.embed_tokens.weight",
            "model.shared.weight",
            "transformer.wte.weight",
            "transformer.word_embeddings.weight",
            "backbone.embeddings.weight",
            "backbone.embedding.weight",
            "wte.weight",
            "word_embeddings.weight",
            "shared.weight",
            "embed_tokens.weight",
        ],
    ),
    ("proj_out.weight", &["model.decoder.embed_tokens.weight"]),
    ("llm.lm_head.weight", &["llm.model.embed_tokens.weight"]),
    ("thinker.lm_head.weight", &["thinker.model.embed_tokens.weight"]),
    ("language_model.lm_head.weight", &["language_model.model.embed_tokens.weight"]),
    ("embed_out.weight", &["gpt_neox.embed_in.weight"]),
];

/// Endings of the names of model classes that have an output head.
const WITH_HEAD: [&str; 3] = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"];

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
}

impl Pair {
    /// The base's pair, if it has an embedding that qft knows.
    pub(super) fn find(base: &Checkpoint) -> Option<Self> {
        let has = |name: &str| base.tensors.contains_key(name);
        let pairs = || PAIRS.iter().flat_map(|(head, embeddings)| embeddings.iter().map(move |e| (*head, *e)));
        let known = || pairs().filter(|(_, embedding)| has(embedding));
        // Whisper's head has another name than that of the other models with the same embedding.
        let whisper = model_type(base).is_some_and(|name| name == "whisper");
        let (head, embedding) = known()
            .find(|(head, _)| has(head))
            .or_else(|| known().find(|(head, _)| (*head == "proj_out.weight") == whisper))?;
        let tied = has_head(base) && (!has(head) || tie_flag(base) == Some(true));
        Some(Self { embedding: embedding.to_owned(), head: head.to_owned(), stored: has(head), tied })
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
        let head = tensors.get(&self.head).filter(|head| head.is_changed()).cloned();
        if head.is_none() && !self.stored {
            tensors.remove(&self.head);
        }
        match (embedding.is_changed(), head.as_ref()) {
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
                if embedding.low_rank.is_empty() && (embedding.rows.is_some() || resized(&embedding, original)) =>
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

/// Whether a head of the base may be tied to an embedding that [`Pair`] does not know: it stores no head, its class has
/// one, and its config does not say that they are apart.
pub(super) fn may_be_tied_unknown(base: &Checkpoint) -> bool {
    let stored = PAIRS.iter().any(|(head, _)| base.tensors.contains_key(*head));
    !stored && base.config.is_some() && has_head(base) && tie_flag(base) != Some(false)
}

fn model_type(base: &Checkpoint) -> Option<String> {
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

/// Whether the model's class has an output head; without a config, it may have one.
fn has_head(base: &Checkpoint) -> bool {
    let class =
        base.config.as_ref().and_then(|config| config.get(&["architectures"])?.get(0)?.as_str().map(str::to_owned));
    class.is_none_or(|class| WITH_HEAD.iter().any(|ending| class.ends_with(ending)))
}

fn resized(embedding: &TensorSource, original: &Tensor) -> bool {
    embedding.source.shape() != original.shape()
}
