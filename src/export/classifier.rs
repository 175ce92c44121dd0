//! The head of a classifier or a reward model that an adapter brings to a base that generates text: the release must name
//! the class that has it, and its labels, or no loader puts it in its place.

use std::collections::BTreeMap;

use crate::adapter::{Adapter, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, escaped, shown};
use crate::rules::head_of;

/// What config.json must say of the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Classifier {
    /// The model class.
    pub(super) class: String,
    /// How many labels there are.
    pub(super) labels: usize,
}

/// The `task_type`s of PEFT with a head of their own, and the ending of the classes for them.
const TASKS: [(&str, &str); 3] = [
    ("SEQ_CLS", "ForSequenceClassification"),
    ("TOKEN_CLS", "ForTokenClassification"),
    ("QUESTION_ANS", "ForQuestionAnswering"),
];
/// Endings of the classes that such an adapter's base may name, the longest first.
const ENDINGS: [&str; 8] = [
    "ForConditionalGeneration",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "LMHeadModel",
    "ForCausalLM",
    "ForMaskedLM",
    "Model",
];

/// The classifier that `tensors` are, if an adapter made one of the base.
pub(super) fn find(
    base: &Checkpoint,
    adapters: &[Adapter],
    tensors: &BTreeMap<String, TensorSource>,
) -> Result<Option<Classifier>> {
    let brought = |name: &str| {
        let source = tensors.get(name)?;
        source.replaced_by.map(|_| source.source.shape())
    };
    let Some(head) = head_of(brought) else { return Ok(None) };
    let by = tensors.get(head.name).and_then(|source| adapters.get(source.replaced_by?));
    let (Some(adapter), Some(config)) = (by, &base.config) else { return Ok(None) };
    let named = config.get(&["architectures"]).and_then(|list| list.get(0)?.as_str().map(str::to_owned));
    let class = named.as_deref().unwrap_or_default();
    let task = adapter.config.task_type.as_deref().unwrap_or("none");
    let ending = TASKS.iter().find(|(name, _)| *name == task).map(|(_, ending)| *ending);
    let stem = ENDINGS.iter().find_map(|ending| class.strip_suffix(ending)).filter(|stem| !stem.is_empty());
    let labels = head.labels;
    match (ending, stem) {
        // A base of that class already, whose labels are as many: its config says all.
        (ending, _) if !class.is_empty() && class.ends_with(ending.unwrap_or("Classification")) => {
            let same = config.get(&[]).is_some_and(|config| crate::rules::labels_of(&config) == labels);
            Ok((!same).then(|| Classifier { class: class.to_owned(), labels }))
        }
        (Some(ending), Some(stem)) => Ok(Some(Classifier { class: format!("{stem}{ending}"), labels })),
        (None, _) => Err(Error::inconsistent(
            format!(
                "{} brings {}, the head of a classifier, but its task_type is {}",
                shown(&adapter.dir),
                head.name,
                escaped(task)
            ),
            "set task_type in adapter_config.json to what was trained: SEQ_CLS, TOKEN_CLS or QUESTION_ANS",
        )),
        (_, None) => Err(Error::inconsistent(
            format!(
                "{} brings {}, but the base's config.json does not say which class has it: architectures is {}",
                shown(&adapter.dir),
                head.name,
                escaped(named.as_deref().unwrap_or("absent"))
            ),
            "set architectures in the base's config.json to the class that was trained, and list its labels in id2label",
        )),
    }
}
