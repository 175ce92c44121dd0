//! The audit: whether a release is what its base and its adapters give. Every tensor is computed again and compared
//! byte for byte; of a directory with a manifest, every other file and every entry of the manifest, too. What can't be
//! checked is named.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use qft::adapter::Adapter;
//! use qft::audit::{Audit, Verdict};
//! use qft::checkpoint::Checkpoint;
//! use qft::export::Run;
//!
//! let base = Checkpoint::open(Path::new("base"))?;
//! let adapter = Adapter::open(Path::new("output/checkpoint-100"), 1.0)?;
//! let audited = Audit::of(Path::new("release"), base).adapters([adapter]).run(&Run::default())?;
//! assert!(matches!(audited.verdict, Verdict::Agrees { .. }));
//! # Ok::<(), qft::Error>(())
//! ```

mod files;
mod gguf;
mod keys;
mod manifest;
mod recipe;
mod weights;

use std::path::Path;

pub use recipe::Recipe;
pub use weights::Difference;

use crate::adapter::Adapter;
use crate::checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE, TokenizerChoice};
use crate::error::{Error, Result};
use crate::export::{Provenance, Run};
use crate::gguf::GgufModel;
use crate::gguf::imatrix::Imatrix;
use crate::manifest::claims::Claims;
use crate::manifest::{CHECKSUMS, MANIFEST};
use crate::merge::{Float, Overflow};
use crate::verify::Problem;
use files::audit_files;
use gguf::audit_gguf;
use weights::audit_weights;

/// An audit to be run: a release, and what it is held against.
#[derive(Debug)]
pub struct Audit {
    recipe: Recipe,
    base: Checkpoint,
    provenance: Provenance,
    adapters: Vec<Adapter>,
    imatrix: Option<Imatrix>,
}

/// What an audit found.
#[derive(Debug)]
pub struct Audited {
    /// How it ended.
    pub verdict: Verdict,
    /// What is wrong beside that: with files that the audit needs.
    pub problems: Vec<Problem>,
    /// In what the inputs are not those of the manifest, and what could not be checked.
    pub notes: Vec<String>,
}

/// How an audit ended.
#[derive(Debug)]
pub enum Verdict {
    /// All that was compared is what the inputs give.
    Agrees {
        /// Whether all files were compared, and not tensors alone.
        files: bool,
    },
    /// This is the first that is not.
    Differs(Difference),
    /// The release can't be opened; that is among the problems.
    LeftOut,
    /// It can't be computed what the inputs give.
    Failed(Error),
}

/// What a release is said to be made of.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    base: &'a Checkpoint,
    provenance: &'a Provenance,
    /// In the order in which they were applied.
    adapters: &'a [Adapter],
    /// Type that float tensors were cast to; their own if `None`.
    dtype: Option<Float>,
    overflow: Overflow,
    tokenizer: TokenizerChoice,
    /// The manifest of a release that qft made, whose files are compared, too.
    claims: Option<&'a Claims>,
}

impl Audit {
    /// Of `release`, a directory or one GGUF file, against `base` without adapters.
    pub fn of(release: &Path, base: Checkpoint) -> Self {
        Self::new(Recipe::read(release), base)
    }

    /// Of the release that has this recipe, against `base` without adapters.
    pub fn new(recipe: Recipe, base: Checkpoint) -> Self {
        Self { recipe, base, provenance: Provenance::default(), adapters: Vec::new(), imatrix: None }
    }

    /// Says where the base was found. What the manifest says of that is only held against what is known.
    #[must_use]
    pub fn found(self, provenance: Provenance) -> Self {
        Self { provenance, ..self }
    }

    /// With these adapters, in the order in which they were applied, each with its weight.
    #[must_use]
    pub fn adapters(self, adapters: impl IntoIterator<Item = Adapter>) -> Self {
        Self { adapters: adapters.into_iter().collect(), ..self }
    }

    /// With the importance matrix that the release's GGUF files were made with, if they were.
    #[must_use]
    pub fn imatrix(self, imatrix: Option<Imatrix>) -> Self {
        Self { imatrix, ..self }
    }

    /// Runs it. Nothing is resumed, and no GPU helps, whatever `how` says.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] alone: what else goes wrong is in the verdict.
    pub fn run(&self, how: &Run<'_>) -> Result<Audited> {
        let release = self.recipe.release.as_path();
        let mut notes = self.recipe.deviations(&self.adapters);
        if !self.recipe.lists_adapters() && self.adapters.is_empty() {
            notes.push(format!(
                "no {MANIFEST} lists its adapters: audited against the base alone; if it has any, name each with ⟦adapter⟧"
            ));
        }
        let mut problems = Vec::new();
        let (safetensors, gguf) = match open(release) {
            Ok(opened) => opened,
            Err(error) => {
                problems.push(Problem::of(release, &error));
                return Ok(Audited { verdict: Verdict::LeftOut, problems, notes });
            }
        };
        let claims = self.recipe.claims.as_ref();
        let files = claims.is_some() && !release.is_file();
        if claims.is_none() && !release.is_file() {
            notes.push(format!(
                "not checked: the files beside the weights, and the keys of GGUF files; there is no {MANIFEST} that says how \
                 the release was made"
            ));
            // An export writes both, so that one was taken away.
            if release.join(CHECKSUMS).exists() {
                let problem =
                    format!("is missing: an export writes it beside {CHECKSUMS}, and its entries can't be audited");
                problems.push(Problem { file: MANIFEST.to_owned(), problem });
            }
        }
        let verdict = match self.compare(safetensors.as_ref(), gguf, how) {
            Ok((difference, unchecked)) => {
                notes.extend(unchecked.into_iter().map(|line| format!("not checked: {line}")));
                difference.map_or(Verdict::Agrees { files }, Verdict::Differs)
            }
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            // An audit clamps where the manifest says that the export did.
            Err(error @ Error::Overflow { .. }) => {
                let remedy = format!(
                    "give the base and the adapters that the release was made from; if it was made with ⟦allow_overflow⟧, \
                     restore its {MANIFEST}, which says so"
                );
                Verdict::Failed(Error::new(error.kind(), error.split().0, remedy))
            }
            Err(error) => Verdict::Failed(error),
        };
        Ok(Audited { verdict, problems, notes })
    }

    /// The first difference in the safetensors, then in each GGUF model, then in all other files of a directory; and what
    /// could not be checked.
    fn compare(
        &self,
        safetensors: Option<&Checkpoint>,
        gguf: Vec<GgufModel>,
        how: &Run<'_>,
    ) -> Result<(Option<Difference>, Vec<String>)> {
        let Self { recipe: Recipe { release, claims, .. }, base, provenance, adapters, imatrix } = self;
        let claims = claims.as_ref();
        let inputs = Inputs {
            base,
            provenance,
            adapters,
            dtype: claims.and_then(Claims::dtype),
            overflow: claims.map(Claims::overflow).unwrap_or_default(),
            tokenizer: claims.map(Claims::tokenizer).unwrap_or_default(),
            claims,
        };
        if let Some(safetensors) = safetensors
            && let Some(difference) = audit_weights(safetensors, &inputs, how)?
        {
            return Ok((Some(difference), Vec::new()));
        }
        let mut unchecked = Vec::new();
        let mut models = Vec::new();
        for model in gguf {
            let mut found = audit_gguf(&model, imatrix.as_ref(), &inputs, how)?;
            unchecked.append(&mut found.unchecked);
            if found.difference.is_some() {
                return Ok((found.difference, unchecked));
            }
            models.push((model, found));
        }
        if release.is_file() {
            return Ok((None, unchecked));
        }
        let found = audit_files(release, &models, &inputs, how)?;
        unchecked.extend(found.unchecked);
        Ok((found.difference, unchecked))
    }
}

/// The safetensors of a release and its GGUF models; the former if there are any, or nothing else.
fn open(release: &Path) -> Result<(Option<Checkpoint>, Vec<GgufModel>)> {
    let gguf = if release.is_file() { vec![GgufModel::open(release)?] } else { GgufModel::all_in(release)? };
    let has_safetensors = [SINGLE_FILE, INDEX_FILE].iter().any(|name| release.join(name).exists());
    let safetensors = (has_safetensors || gguf.is_empty()).then(|| Checkpoint::open(release)).transpose()?;
    Ok((safetensors, gguf))
}
