//! The audit of a GGUF file's keys: what the model computes, how it cuts texts, what it was made of, and its mixture. What
//! a user chose freely, a name above all, is told where it is not what qft would have chosen.

use crate::arch::HfTensor;
use crate::checkpoint::ModelFiles;
use crate::error::{Result, escaped};
use crate::export::vocabulary;
use crate::gguf::convert::Conversion;
use crate::gguf::mixture::{FileType, finish_metadata};
use crate::gguf::{GgufFile, GgufModel, Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, Value};
use crate::gguf::{Lineage, convert};

/// What the keys of a file are held against.
pub(super) struct Source<'a> {
    pub(super) files: &'a ModelFiles,
    pub(super) tensors: &'a [HfTensor],
    /// Where the model may come from: as its manifest says, or as it was found for the audit.
    pub(super) lineages: [Vec<Lineage>; 2],
}

/// What was found about the keys.
pub(super) struct Keys {
    /// The first that is wrong.
    pub(super) problem: Option<String>,
    /// What nothing tells, each after "not checked: ".
    pub(super) unchecked: Vec<String>,
    /// The mixture that the file says it is.
    pub(super) mixture: Option<FileType>,
    /// Whether they name another base than the manifest.
    pub(super) contradicts: bool,
    /// All keys as the inputs give them.
    pub(super) expected: Metadata,
}

/// What a file is called: by `--name`, or by the directory that it was written to.
const NAMES: [&str; 6] = [
    "general.name",
    "general.organization",
    "general.basename",
    "general.finetune",
    "general.version",
    "general.size_label",
];
/// Beginning of the keys about an imatrix, whose name and data the file alone knows.
const IMATRIX: &str = "quantize.imatrix.";
const PRE: &str = "tokenizer.ggml.pre";
const FILE_TYPE: &str = "general.file_type";

/// Holds the keys of `model` against those that `source` gives.
pub(super) fn compare_keys(model: &GgufModel, source: &Source<'_>) -> Result<Keys> {
    let found = &model.metadata;
    let given = found.get(FILE_TYPE).and_then(Value::as_u64);
    let mixture = FileType::all().find(|mixture| Some(u64::from(mixture.file_type_id())) == given);
    let mut unchecked = Vec::new();
    let Some(mixture) = mixture else {
        let problem = Some(format!("has no {FILE_TYPE} that qft writes"));
        return Ok(Keys { problem, unchecked, mixture: None, contradicts: false, expected: Metadata::default() });
    };
    let vocabulary = if let Ok(vocabulary) = vocabulary(source.files, None) {
        vocabulary.keys
    } else {
        // It is no tokenizer that qft recognizes: the user named it.
        unchecked.push(format!("{PRE}: qft does not recognize the tokenizer, so ⟦pre⟧ named it"));
        vocabulary(source.files, found.get(PRE).and_then(Value::as_str))?.keys
    };
    let expect = |name: Option<&str>, lineage: &[Lineage]| {
        let (file_type, name) = (mixture.file_type_id(), name.map(str::to_owned));
        let options = convert::Options { file_type, name, lineage: lineage.to_vec() };
        let Conversion { before_vocab, after_vocab, .. } = convert::convert(source.files, source.tensors, &options)?;
        let keys: Metadata = [before_vocab, vocabulary.clone(), after_vocab].into_iter().flatten().collect();
        let quantized = mixture.base_type().is_quantized();
        Ok(if quantized { finish_metadata(keys, mixture.file_type_id(), None) } else { keys })
    };
    let named = |keys: &Metadata| NAMES.iter().find(|key| keys.get(key) != found.get(key)).copied();
    let [mut expected, other]: [Metadata; 2] = [expect(None, &source.lineages[0])?, expect(None, &source.lineages[1])?];
    let mut lineage = &source.lineages[0];
    let contradicts = problem(found, &expected).is_some() && problem(found, &other).is_none();
    if contradicts {
        (expected, lineage) = (other, &source.lineages[1]);
    }
    if named(&expected).is_some() {
        expected = expect(found.get(NAMES[0]).and_then(Value::as_str), lineage)?;
        let key = named(&expected).unwrap_or(NAMES[0]);
        unchecked.push(format!("{key}: ⟦name⟧ or the name of a directory may have given it"));
    }
    if found.iter().any(|(key, _)| key.starts_with(IMATRIX)) {
        unchecked.push(format!("{IMATRIX}*: the file alone says what its imatrix was called and made of"));
    }
    let problem = problem(found, &expected).or_else(|| model.files.iter().skip(1).find_map(|part| beside_split(part)));
    Ok(Keys { problem, unchecked, mixture: Some(mixture), contradicts, expected })
}

/// The first key of `found` that is not as in `expected`.
fn problem(found: &Metadata, expected: &Metadata) -> Option<String> {
    let compared = |key: &str| !NAMES.contains(&key) && !key.starts_with(IMATRIX);
    let other = expected.iter().find(|(key, value)| compared(key) && found.get(key) != Some(*value));
    if let Some((key, _)) = other {
        return Some(format!("has another {} than the base and the adapters give", escaped(key)));
    }
    let extra = found.iter().find(|(key, _)| compared(key) && expected.get(key).is_none());
    extra.map(|(key, _)| format!("has a key that comes from neither the base nor the adapters: {}", escaped(key)))
}

/// A key of a later part of a split file that is not about the split.
fn beside_split(part: &GgufFile) -> Option<String> {
    let (key, _) = part.metadata().iter().find(|(key, _)| ![SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].contains(key))?;
    Some(format!("has a part, {}, with a key of its own: {}", escaped(&part.name()), escaped(key)))
}
