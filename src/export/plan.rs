//! The plan of an export: every output tensor, its source, its changes and its place; every other file; every refusal
//! that can be made before the first byte is written. A pure function of the inputs and the options.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::beside::Beside;
use super::gguf::{GgufOptions, GgufOutput, of_model};
use super::merged::Merged;
use super::quantize::{check_files, deletion, file_stem};
use super::shard::{self, OutputTensor, Shard};
use crate::adapter::Adapter;
use crate::checkpoint::ModelFiles;
use crate::checkpoint::{Checkpoint, Companion, CompanionSource, LeftOut, TokenizerChoice, member_if_there};
use crate::digest::sha256;
use crate::error::{Error, Result, escaped, shown};
use crate::gguf::Lineage;
use crate::gguf::mixture::Choices;
use crate::merge::{Float, Overflow};
use crate::parallel::both;
use crate::quantized::decodable;
use crate::rules::{self, Content, Finding, Release, Weight};
use crate::size::ByteSize;
use crate::stream::{Overwrite, check_destination};
use crate::text::TurnEnd;

/// Most tensor bytes of a safetensors file, unless the user says otherwise.
pub const DEFAULT_SHARD: ByteSize = ByteSize(5_000_000_000);

/// What the user chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most tensor bytes of a safetensors shard; `None` for no safetensors and none of the files beside them.
    pub max_shard: Option<ByteSize>,
    /// Type to cast float tensors to; their own if `None`.
    pub dtype: Option<Float>,
    /// What happens to a finite value beyond the output type.
    pub overflow: Overflow,
    /// Whether an existing destination is exchanged.
    pub overwrite: Overwrite,
    /// The GGUF files to write; none if `None`.
    pub gguf: Option<GgufOptions>,
    /// Whether the destination is one GGUF file (or its parts) and not a directory.
    pub as_file: bool,
    /// Whose tokenizer the release has.
    pub tokenizer: TokenizerChoice,
}

impl Default for Options {
    /// Safetensors of 5 GB in their own types, no GGUF files; what overflows is refused, and nothing is overwritten.
    fn default() -> Self {
        Self {
            max_shard: Some(DEFAULT_SHARD),
            dtype: None,
            overflow: Overflow::Refuse,
            overwrite: Overwrite::No,
            gguf: None,
            as_file: false,
            tokenizer: TokenizerChoice::Auto,
        }
    }
}

impl Options {
    /// For one GGUF file of the base (or its parts) and nothing beside it.
    pub fn file(gguf: GgufOptions) -> Self {
        Self { max_shard: None, gguf: Some(gguf), as_file: true, tokenizer: TokenizerChoice::Base, ..Self::default() }
    }
}

/// A model or adapter as it was found.
#[derive(Debug, Clone, Default)]
pub struct Provenance {
    /// Its Hub id, if it was found by one.
    pub repo: Option<String>,
    /// Its commit, if it lies in the Hub's cache.
    pub revision: Option<String>,
}

/// An export to be planned: its inputs, and what the user chose.
#[derive(Debug)]
pub struct Export {
    base: Checkpoint,
    provenance: Provenance,
    adapters: Vec<Adapter>,
    options: Options,
}

/// Everything that an export will do.
#[derive(Debug)]
pub struct ExportPlan {
    /// The destination: a directory, or a GGUF file.
    pub out: PathBuf,
    /// What is merged into.
    pub base: Checkpoint,
    /// Where the base comes from.
    pub base_provenance: Provenance,
    /// The adapters, in the order in which they are applied.
    pub adapters: Vec<Adapter>,
    /// Every tensor of the merged model, by name.
    pub merged: Vec<OutputTensor>,
    /// The safetensors files; empty where none are written.
    pub shards: Vec<Shard>,
    /// The models in GGUF files, one for each type that was chosen.
    pub gguf: Vec<GgufOutput>,
    /// Files made by the export itself, by name: config.json, the index.
    pub texts: Vec<(String, String)>,
    /// Files copied as they are.
    pub companions: Vec<Companion>,
    /// Files of the inputs that are not copied, and why.
    pub left_out: Vec<LeftOut>,
    /// What was changed in config.json and `generation_config.json`, for users.
    pub config_changes: Vec<String>,
    /// Files at the destination that are no part of the model there, and go with it; of a GGUF file, those of an older
    /// model of its name.
    pub deletes: Vec<String>,
    /// What deserves a look.
    pub warnings: Vec<String>,
    /// What the user chose.
    pub options: Options,
}

impl Export {
    /// Of `base` without adapters, with the default options.
    pub fn of(base: Checkpoint) -> Self {
        Self { base, provenance: Provenance::default(), adapters: Vec::new(), options: Options::default() }
    }

    /// Says where the base was found, which the manifest and GGUF files tell.
    #[must_use]
    pub fn found(self, provenance: Provenance) -> Self {
        Self { provenance, ..self }
    }

    /// Merges these adapters, in this order.
    #[must_use]
    pub fn adapters(self, adapters: impl IntoIterator<Item = Adapter>) -> Self {
        Self { adapters: adapters.into_iter().collect(), ..self }
    }

    /// As the user chose.
    #[must_use]
    pub fn options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// Plans the export to `out`. Reads headers and small files only.
    ///
    /// # Errors
    ///
    /// Every refusal that can be made before the first byte is written: a tensor of an adapter that fits nowhere, a
    /// release that would not load, a destination that may not be overwritten.
    pub fn plan(self, out: &Path) -> Result<ExportPlan> {
        let Self { base, provenance: base_provenance, adapters, mut options } = self;
        check_outputs(&options)?;
        if let Some(gguf) = &mut options.gguf {
            gguf.measure |= !options.as_file;
        }
        let inputs: Vec<&Path> =
            std::iter::once(base.dir.as_path()).chain(adapters.iter().map(|a| a.dir.as_path())).collect();
        let mut deletes =
            if options.as_file { Vec::new() } else { check_destination(out, &inputs, options.overwrite)? };
        if options.dtype.is_some()
            && let Some(method) = base.quantization()
            && decodable(&base).is_empty()
        {
            return Err(Error::unsupported(
                format!("the base is quantized ({method}), and can't be cast"),
                "drop ⟦dtype⟧, or give the 16-bit model that it was made from",
            ));
        }
        let Merged { tensors: merged, config, mut config_changes, mut warnings, keeps_vocabulary } =
            Merged::new(&base, &adapters, options.dtype)?;
        let Beside { mut texts, mut companions, left_out, turn_end, changes } =
            Beside::new(&base, &adapters, config.as_deref(), options.tokenizer)?;
        // GGUF files alone have no generation_config.json that could be changed.
        if options.max_shard.is_some() {
            config_changes.extend(changes);
        }
        let shards = match options.max_shard {
            Some(max) => shard::split(merged.clone(), max.0),
            None => Vec::new(),
        };
        let gguf = || {
            let Some(gguf) = &options.gguf else { return Ok((Vec::new(), Vec::new(), Vec::new())) };
            let model = ModelFiles {
                directory: model_name(out, &base, options.as_file),
                config: config.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
                paths: small_files(&base, &adapters, &companions)?,
            };
            let ordered = in_converters_order(&merged, &shards, adapters.is_empty());
            let stem = if options.as_file { Some(file_stem(out)?) } else { None };
            let stem = |choices: &Choices| stem.clone().unwrap_or_else(|| format!("model-{}", choices.mixture));
            let (outputs, mut notes) =
                of_model(&model, &ordered, || lineage(&base_provenance, &adapters), gguf, &stem)?;
            let mut older = Vec::new();
            for output in outputs.iter().filter(|_| options.as_file) {
                older.extend(check_files(out, output, &inputs, options.overwrite.is_allowed())?);
            }
            notes.extend(older.iter().map(|name| deletion(name)));
            Ok((outputs, notes, older))
        };
        texts.extend(shard::index(&shards).map(|(name, text)| (name.to_owned(), text)));
        let (findings, gguf) = both(|| findings(&merged, &companions, &texts, turn_end.as_ref()), gguf);
        let (gguf, notes, older) = gguf?;
        deletes.extend(older);
        warnings.extend(judge(findings, options.max_shard.is_some(), keeps_vocabulary)?.into_iter().chain(notes));
        let left_out = if options.max_shard.is_some() {
            companions.retain(|companion| texts.iter().all(|(name, _)| *name != companion.name));
            left_out
        } else {
            (texts, companions) = (Vec::new(), Vec::new());
            Vec::new()
        };
        warnings.extend(adapters.iter().filter_map(|adapter| base_mismatch(&base, &base_provenance, adapter)));
        Ok(ExportPlan {
            out: out.to_owned(),
            base,
            base_provenance,
            adapters,
            merged,
            shards,
            gguf,
            texts,
            companions,
            left_out,
            config_changes,
            deletes,
            warnings,
            options,
        })
    }
}

impl ExportPlan {
    /// Bytes of all tensors of the safetensors files.
    pub fn tensor_bytes(&self) -> u64 {
        self.shards.iter().flat_map(|s| &s.tensors).map(|t| t.len).sum()
    }

    /// Every file that is streamed, with its length: in the order in which works are made of them.
    pub fn weight_files(&self) -> impl Iterator<Item = (&str, u64)> {
        let gguf = self.gguf.iter().flat_map(|output| &output.parts).map(|part| (part.name.as_str(), part.len));
        self.shards.iter().map(|s| (s.name.as_str(), s.len())).chain(gguf)
    }

    /// Bytes of the whole output, a little rounded up for manifest and checksums.
    pub fn disk_bytes(&self) -> u64 {
        let companions: u64 = self.companions.iter().filter_map(|c| c.path.metadata().ok()).map(|m| m.len()).sum();
        let texts: u64 = self.texts.iter().map(|(_, text)| text.len() as u64).sum();
        let manifest = 1024 * (self.gguf.len() as u64 + 1) * self.merged.len() as u64;
        self.weight_files().map(|(_, len)| len).sum::<u64>() + companions + texts + manifest + (1 << 16)
    }

    /// Number of tensors that an adapter changes.
    pub fn changed(&self) -> usize {
        self.merged.iter().filter(|t| t.source.is_changed()).count()
    }

    /// Number of tensors of the merged model.
    pub fn tensors(&self) -> usize {
        self.merged.len()
    }
}

/// Refuses options that ask for no output, or for one that is no model.
fn check_outputs(options: &Options) -> Result<()> {
    let problem = match (options.max_shard, &options.gguf) {
        (Some(ByteSize(0)), _) => "shards of 0 bytes hold no tensor",
        (None, None) => "neither safetensors nor a GGUF file is to be written",
        (_, None) if options.as_file => "a single file is to be written, and no GGUF",
        (Some(_), _) if options.as_file => "a single file is to be written, and shards as well",
        _ => return Ok(()),
    };
    Err(Error::invalid(problem, "choose shards, GGUF files in a directory, or one GGUF file"))
}

/// What the release rules find in the release to be.
fn findings(
    merged: &[OutputTensor],
    companions: &[Companion],
    texts: &[(String, String)],
    turn_end: Option<&TurnEnd>,
) -> Vec<Finding> {
    let files = companions.iter().map(|companion| (companion.name.as_str(), Content::At(&companion.path)));
    let texts = texts.iter().map(|(name, text)| (name.as_str(), Content::Text(text)));
    rules::check(&Release {
        tensors: merged.iter().map(|t| (t.name.as_str(), (t.dtype, t.shape.as_slice()))).collect(),
        files: files.chain(texts).collect(),
        untied_head: None,
        adapters_tokenizer: companions
            .iter()
            .any(|companion| companion.source == CompanionSource::Adapter && companion.name.starts_with("tokenizer")),
        turn_end: turn_end.cloned(),
    })
}

/// Refuses what no loader takes, if safetensors are written; gives all else that is about what is written as warnings.
/// A base whose vocabulary is kept as it came may be of a class that has rows of its own.
fn judge(findings: Vec<Finding>, strictly: bool, keeps_vocabulary: bool) -> Result<Vec<String>> {
    let refused = |finding: &&Finding| {
        strictly && finding.weight == Weight::Refuse && !(keeps_vocabulary && finding.rule == "vocabulary")
    };
    if let Some(finding) = findings.iter().find(refused) {
        let problem = format!("the release would not load: {}: {}", finding.file, finding.problem);
        return Err(Error::inconsistent(problem, finding.remedy.clone()));
    }
    let line = |Finding { file, problem, remedy, .. }: Finding| match file {
        "." => format!("{problem}; {remedy}"),
        file => format!("{file}: {problem}; {remedy}"),
    };
    Ok(findings.into_iter().filter(|finding| strictly || !finding.is_of_directories()).map(line).collect())
}

/// The name from which a converter would guess the model's: of the directory that is read or written.
fn model_name(out: &Path, base: &Checkpoint, as_file: bool) -> String {
    let dir = if as_file { &base.dir } else { out };
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    real.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The small files of the model to be: the companions, and the model card, which is not one since it speaks of the model
/// that it came with. An adapter's own card wins.
pub(crate) fn small_files(
    base: &Checkpoint,
    adapters: &[Adapter],
    companions: &[Companion],
) -> Result<BTreeMap<String, PathBuf>> {
    const CARD: &str = "README.md";
    let mut files: BTreeMap<String, PathBuf> =
        companions.iter().map(|companion| (companion.name.clone(), companion.path.clone())).collect();
    for dir in std::iter::once(&base.dir).chain(adapters.iter().map(|adapter| &adapter.dir)) {
        if let Some(card) = member_if_there(dir, CARD)? {
            files.insert(CARD.to_owned(), card);
        }
    }
    Ok(files)
}

/// The tensors in the order in which llama.cpp's converter would meet them: file by file, by name in each. The files are
/// the export's shards, or those of the base where nothing is merged and no shards are written.
fn in_converters_order<'m>(merged: &'m [OutputTensor], shards: &[Shard], as_base: bool) -> Vec<&'m OutputTensor> {
    let shard_of: BTreeMap<&str, &str> =
        shards.iter().flat_map(|s| s.tensors.iter().map(|t| (t.name.as_str(), s.name.as_str()))).collect();
    let file = |t: &OutputTensor| match shard_of.get(t.name.as_str()) {
        Some(shard) => (*shard).to_owned(),
        None if as_base => t.source.source.file().name(),
        None => String::new(),
    };
    let mut ordered: Vec<&OutputTensor> = merged.iter().collect();
    ordered.sort_by_cached_key(|t| (file(t), t.name.clone()));
    ordered
}

/// What a GGUF file says of its model's descent. Reads the adapters' files.
pub(crate) fn lineage(base: &Provenance, adapters: &[Adapter]) -> Vec<Lineage> {
    let of = |adapter: &Adapter| Lineage {
        base: base.repo.clone().or_else(|| adapter.config.base_model.clone()),
        base_revision: base.revision.clone(),
        adapter: None,
        sha256: Some(sha256(adapter.file.bytes())),
        rank: adapter.config.uniform_rank(),
        alpha: adapter.config.uniform_alpha(),
        weight: Some(adapter.weight as f32),
    };
    adapters.iter().map(of).collect()
}

/// A warning where the adapter names another base than the one given.
fn base_mismatch(base: &Checkpoint, provenance: &Provenance, adapter: &Adapter) -> Option<String> {
    let named = adapter.config.base_model.as_deref()?;
    let last = |text: &str| text.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_lowercase();
    let known = [base.dir.to_string_lossy().into_owned(), provenance.repo.clone().unwrap_or_default()];
    let same = known.iter().any(|k| last(k).replace("___", ".") == last(named)) || Path::new(named) == base.dir;
    let is_hub_id = named.matches('/').count() == 1 && !named.starts_with(['.', '/']);
    (!same && is_hub_id && provenance.repo.is_some()).then(|| {
        format!("{} was trained on {}, the base is {}", shown(&adapter.dir), escaped(named), escaped(&known[1]))
    })
}
