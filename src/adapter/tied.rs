//! Tied embeddings: an output head that is the input embedding's tensor. A change to one side must not leak into the
//! other, so the two are written apart and the config's flag is cleared; a change to both alike keeps them tied.

use std::collections::BTreeMap;

use super::change::TensorSource;
use crate::checkpoint::{Checkpoint, Tensor};

/// Heads, and the embeddings that they may be tied to, by their names on disk.
const PAIRS: [(&str, &[&str]); 3] = [
    (
        "lm_head.weight",
        &[
            "model.embed_tokens.weight",
            "model.language_model.embed_tokens.weight",
            "language_model.model.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "transformer.wte.weight",
            "wte.weight",
            "embed_tokens.weight",
        ],
    ),
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
        let (head, embedding) = PAIRS.iter().find_map(|(head, embeddings)| {
            let embedding = embeddings.iter().find(|name| base.tensors.contains_key(**name))?;
            // The pair of the head that is there, or the first whose embedding is.
            let stored_elsewhere = PAIRS.iter().any(|(other, _)| other != head && base.tensors.contains_key(*other));
            (!stored_elsewhere).then(|| ((*head).to_owned(), (*embedding).to_owned()))
        })?;
        let stored = base.tensors.contains_key(&head);
        let flag = base.config.as_ref().and_then(|config| {
            [&["tie_word_embeddings"][..], &["text_config", "tie_word_embeddings"]]
                .iter()
                .find_map(|keys| config.get(keys)?.as_bool())
        });
        let class =
            base.config.as_ref().and_then(|config| config.get(&["architectures"])?.get(0)?.as_str().map(str::to_owned));
        let has_head = class.is_none_or(|class| WITH_HEAD.iter().any(|ending| class.ends_with(ending)));
        let tied = has_head && if stored { flag == Some(true) } else { flag != Some(false) };
        Some(Self { embedding, head, stored, tied })
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
        let head = tensors.get(&self.head).filter(|head| head.is_changed());
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
    let brought = !trained.low_rank.is_empty() && trained.replaced_by.is_some();
    let same = || trained.source.dtype() == original.dtype() && trained.source.bytes() == original.bytes();
    if brought && !same() {
        TensorSource { low_rank: Vec::new(), magnitude: None, rows: None, ..trained.clone() }
    } else {
        TensorSource::untouched(original)
    }
}

fn resized(embedding: &TensorSource, original: &Tensor) -> bool {
    embedding.source.shape() != original.shape()
}
