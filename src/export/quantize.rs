//! Quantizing a GGUF file: llama-quantize's job, streamed and published as an export is.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::encoded::{GgufPart, GgufWork, encoders};
use super::gguf::{GgufOptions, GgufOutput, of_gguf};
use super::{Report, file_identity};
use crate::digest::sha256;
use crate::error::{Error, Result, shown};
use crate::gguf::{GgufModel, PartName};
use crate::merge::Overflow;
use crate::stream::{self, Production, Run, Staging, Work, produce};

/// Everything that quantizing a file will do.
#[derive(Debug)]
pub struct QuantizePlan {
    /// The file to write; if it is cut into parts, their names begin as its does.
    pub out: PathBuf,
    /// What is read: one file, or all its parts.
    pub model: GgufModel,
    /// What is written.
    pub output: GgufOutput,
    /// Whether the errors of the encoding are measured.
    pub measure: bool,
    /// What happens to a finite value beyond the output type.
    pub overflow: Overflow,
    /// Files of an older model of this name, which go.
    pub deletes: Vec<String>,
    /// What deserves a look.
    pub warnings: Vec<String>,
    overwrite: bool,
}

impl QuantizePlan {
    /// Plans to write `model` to `out` as the first of `options.choices` says. Reads headers only.
    ///
    /// # Errors
    ///
    /// Where `out` may not be written, and where a tensor can't be encoded so.
    pub fn new(
        model: GgufModel,
        out: &Path,
        options: &GgufOptions,
        overflow: Overflow,
        overwrite: bool,
    ) -> Result<Self> {
        let stem = file_stem(out)?;
        let (outputs, mut warnings) = of_gguf(&model, options, &|_| stem.clone())?;
        let Some(output) = outputs.into_iter().next() else {
            return Err(Error::invalid("no type was chosen", "choose one with ⟦type⟧, such as q4_k_m"));
        };
        let inputs: Vec<&Path> = model.files.iter().map(|file| file.path()).collect();
        let deletes = check_files(out, &output, &inputs, overwrite)?;
        warnings.extend(deletes.iter().map(|name| deletion(name)));
        Ok(Self {
            out: out.to_owned(),
            model,
            output,
            measure: options.measure,
            overflow,
            deletes,
            warnings,
            overwrite,
        })
    }
}

/// The name of the file `out` without its ending, which must be that of a GGUF file.
pub(super) fn file_stem(out: &Path) -> Result<String> {
    let name = out.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_suffix(".gguf").filter(|stem| !stem.is_empty()).map(str::to_owned).ok_or_else(|| {
        Error::invalid(format!("{} is not a name of a GGUF file", shown(out)), "give ⟦out⟧ a name that ends in .gguf")
    })
}

/// Refuses destinations where something is, one for each part. Gives the files that are there of another split of the
/// same name, or of none: they go with what is replaced.
pub(super) fn check_files(out: &Path, output: &GgufOutput, inputs: &[&Path], overwrite: bool) -> Result<Vec<String>> {
    let stem = file_stem(out)?;
    let names: Vec<&str> = output.parts.iter().map(|part| part.name.as_str()).collect();
    let belongs = |name: &str| match PartName::parse(name) {
        Some(part) => part.stem == stem,
        None => name.strip_suffix(".gguf") == Some(&stem),
    };
    stream::check_files(out, &names, belongs, inputs, overwrite)
}

/// What is said of a file that [`check_files`] gave.
pub(super) fn deletion(name: &str) -> String {
    format!("{name} will be deleted, once the new one is in place: it is a part of the old model of this name")
}

impl QuantizePlan {
    /// Carries the plan out.
    ///
    /// # Errors
    ///
    /// On any the destination is as it was, but for [`Error::InPlace`] and [`Error::Halfway`].
    pub fn run(&self, how: &Run<'_>) -> Result<Report> {
        let started = Instant::now();
        how.check_cards()?;
        let staging = Staging::open_file(&self.out)?;
        let parts = &self.output.parts;
        let work = |part| -> Result<Box<dyn Work + '_>> {
            Ok(Box::new(GgufWork::new(part, 0, self.measure, self.overflow, how.vector)?))
        };
        let inputs = self.model.files.iter().map(|file| file_identity(file.path())).collect::<Result<Vec<_>>>()?;
        let headers: Vec<_> = parts.iter().map(GgufPart::identity).collect();
        let production = Production {
            works: parts.iter().map(work).collect::<Result<_>>()?,
            inputs: Vec::new(),
            encoders: encoders(parts.iter()),
            identity: sha256(json!([inputs, headers, self.overflow, self.measure]).to_string().as_bytes()),
            disk_bytes: self.output.bytes() + (1 << 16),
        };
        let produced = produce(&production, &staging, how, |produced| {
            self.model.check_unchanged()?;
            let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
            staging.publish_files(&names, &self.deletes, self.overwrite)?;
            Ok(produced)
        })?;
        Ok(Report::new(&self.out.with_file_name(&parts[0].name), produced, started))
    }
}
