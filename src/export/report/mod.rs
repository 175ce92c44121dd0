//! How good the GGUF files of a run are, as data: a row a tensor, and what rows of one kind, layer or type add up to.
//! `page` shows it to users as HTML; the command line makes text of it.

mod heat;
mod kind;
mod markup;
mod page;
mod summary;

use std::collections::BTreeMap;
use std::path::Path;

use super::encoded::EncodedTensor;
use super::gguf::GgufOutput;
use crate::error::{Error, Result, shown};
use crate::ggml::{Quality, TensorType};
use crate::gguf::mixture::FileType;
use crate::gguf::{GgufModel, TensorInfo};
use crate::manifest::{QualitySums, Summary, WorstTensor};
use crate::stream::{Staging, check_file};
use kind::place;
pub use markup::{cosine, percent, scientific};

/// Tensors that are named as the worst.
const WORST: usize = 10;

/// One tensor of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityRow {
    /// Its name in the GGUF file.
    pub name: String,
    /// The layer that it belongs to, if it belongs to one.
    pub layer: Option<u32>,
    /// What it is in its layer or in the model: `attn_q`, `ffn_down`, `token_embd`.
    pub kind: String,
    /// How its values are encoded.
    pub encoding: TensorType,
    /// The type that it would have if its rows held a whole number of that type's blocks.
    pub instead_of: Option<TensorType>,
    /// Whether an imatrix weighed its errors.
    pub imatrix: bool,
    /// Its shape, outermost axis first.
    pub shape: Vec<usize>,
    /// Bytes that it takes in the file.
    pub bytes: u64,
    /// How good that is; absent if it holds the values as they were.
    pub quality: Option<Quality>,
}

impl QualityRow {
    fn new(tensor: &EncodedTensor, quality: Option<Quality>) -> Self {
        let (layer, kind) = place(&tensor.name);
        Self {
            name: tensor.name.clone(),
            layer,
            kind,
            encoding: tensor.kind,
            instead_of: tensor.instead_of,
            imatrix: tensor.importance.is_some(),
            shape: tensor.shape.clone(),
            bytes: tensor.len,
            quality,
        }
    }

    /// Number of its weights.
    pub fn weights(&self) -> u64 {
        self.shape.iter().map(|length| *length as u64).product()
    }
}

/// One model in GGUF files, and how good it is.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputQuality {
    /// The name of its first file.
    pub file: String,
    /// How many files it has.
    pub files: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The mixture, by llama.cpp's name.
    pub mixture: &'static str,
    /// Its tensors, in the order of their bytes.
    pub rows: Vec<QualityRow>,
}

impl OutputQuality {
    fn new(output: &GgufOutput, quality: &BTreeMap<String, BTreeMap<String, Quality>>) -> Self {
        let rows = output.parts.iter().flat_map(|part| {
            let measured = quality.get(&part.name);
            let of = move |t: &EncodedTensor| measured.and_then(|tensors| tensors.get(&t.name)).copied();
            part.tensors.iter().map(move |t| QualityRow::new(t, of(t)))
        });
        Self {
            file: output.parts.first().map_or(String::new(), |part| part.name.clone()),
            files: output.parts.len(),
            bytes: output.bytes(),
            mixture: output.choices.mixture.name(),
            rows: rows.collect(),
        }
    }

    /// Of `model`, which is that `mixture`, with the figures of `quality` by tensor.
    pub(crate) fn of_model(model: &GgufModel, mixture: FileType, quality: &BTreeMap<String, Quality>) -> Self {
        let row = |info: &TensorInfo| {
            let (layer, kind) = place(&info.name);
            QualityRow {
                name: info.name.clone(),
                layer,
                kind,
                encoding: info.kind,
                instead_of: None,
                imatrix: false,
                shape: info.shape.clone(),
                bytes: info.len as u64,
                quality: quality.get(&info.name).copied(),
            }
        };
        Self {
            file: model.files.first().map_or(String::new(), |file| file.name()),
            files: model.files.len(),
            bytes: model.files.iter().map(|file| file.all_bytes().len() as u64).sum(),
            mixture: mixture.name(),
            rows: model.tensors.iter().map(|tensor| row(tensor.info())).collect(),
        }
    }

    /// All tensors together.
    pub fn total(&self) -> Summary {
        Summary::of("all", &self.rows)
    }

    /// Tensors of one kind together, in the order in which a layer applies them.
    pub fn kinds(&self) -> Vec<Summary> {
        self.grouped(|row| (kind::rank(&row.kind), row.kind.as_str())).map(|((_, kind), all)| (kind, all)).sums()
    }

    /// Tensors of one layer together; those of no layer come last.
    pub fn layers(&self) -> Vec<Summary> {
        let layer = |row: &QualityRow| (row.layer.is_none(), row.layer);
        let name = |layer: Option<u32>| layer.map_or("none".to_owned(), |layer| layer.to_string());
        self.grouped(layer).map(|((_, layer), all)| (name(layer), all)).sums()
    }

    /// Tensors of one type together, those with the most bytes first.
    pub fn types(&self) -> Vec<Summary> {
        let mut types = self.grouped(|row| row.encoding).map(|(kind, all)| (kind.name(), all)).sums();
        types.sort_by_key(|summary| std::cmp::Reverse(summary.bytes));
        types
    }

    /// The ten whose decoded values point the furthest away from their own, worst first. Those without an error are not
    /// among them.
    pub fn worst(&self) -> Vec<&QualityRow> {
        let mut rows: Vec<(&QualityRow, Quality)> =
            self.rows.iter().filter_map(|row| Some((row, row.quality.filter(|q| q.rmse > 0.0)?))).collect();
        rows.sort_by(|(a, p), (b, q)| {
            let worse = p.cosine.total_cmp(&q.cosine).then(q.relative().total_cmp(&p.relative()));
            worse.then(a.name.cmp(&b.name))
        });
        rows.into_iter().take(WORST).map(|(row, _)| row).collect()
    }

    fn grouped<'a, K: Ord>(
        &'a self,
        key: impl Fn(&'a QualityRow) -> K,
    ) -> impl Iterator<Item = (K, Vec<&'a QualityRow>)> {
        let mut groups: BTreeMap<K, Vec<&QualityRow>> = BTreeMap::new();
        self.rows.iter().for_each(|row| groups.entry(key(row)).or_default().push(row));
        groups.into_iter()
    }

    /// The sums and the worst, for programs. The figures of each tensor are elsewhere.
    pub fn sums(&self) -> QualitySums {
        let worst = |row: &QualityRow| WorstTensor {
            tensor: row.name.clone(),
            kind: row.encoding.name().to_owned(),
            relative: row.quality.map(|q| q.relative()),
            cosine: row.quality.map(|q| q.cosine),
        };
        QualitySums {
            file: self.file.clone(),
            mixture: self.mixture.to_owned(),
            total: self.total(),
            kinds: self.kinds(),
            layers: self.layers(),
            types: self.types(),
            worst: self.worst().into_iter().map(worst).collect(),
        }
    }
}

/// Groups of rows that become a summary each.
trait Sums {
    fn sums(self) -> Vec<Summary>;
}

impl<'a, N: Into<String>, I: Iterator<Item = (N, Vec<&'a QualityRow>)>> Sums for I {
    fn sums(self) -> Vec<Summary> {
        self.map(|(name, rows)| Summary::of(name, rows)).collect()
    }
}

/// How good every GGUF output of a run is.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityReport {
    /// The outputs, in the order in which they were asked for.
    pub outputs: Vec<OutputQuality>,
}

impl QualityReport {
    /// The report on `outputs`, of which `quality` has what was measured, by file and tensor.
    pub fn new(outputs: &[GgufOutput], quality: &BTreeMap<String, BTreeMap<String, Quality>>) -> Self {
        Self { outputs: outputs.iter().map(|output| OutputQuality::new(output, quality)).collect() }
    }

    /// Sums and the worst tensors of each output, for programs.
    pub fn sums(&self) -> Vec<QualitySums> {
        self.outputs.iter().map(OutputQuality::sums).collect()
    }

    /// All of it as one HTML page that needs nothing else. The same report gives the same bytes anywhere.
    pub fn to_html(&self) -> String {
        page::page(self)
    }
}

/// Refuses a page that would not be one or would replace something: before the run, so that nothing is done in vain.
///
/// # Errors
///
/// If its name does not end in `.html`, if something is there and `overwrite` is not set, and if it is an input.
pub fn check_page(page: &Path, inputs: &[&Path], overwrite: bool) -> Result<()> {
    let ending = page.extension().unwrap_or_default().to_ascii_lowercase();
    if ending != "html" && ending != "htm" {
        return Err(Error::invalid(
            format!("{} is not a name of a page", shown(page)),
            "give ⟦report_html⟧ a name that ends in .html",
        ));
    }
    check_file("report_html", page, inputs, overwrite)
}

/// Writes `text` to the file `page`, whole or not at all.
///
/// # Errors
///
/// Those of [`check_page`], and those of the disk.
pub fn write_page(page: &Path, text: &str, overwrite: bool) -> Result<()> {
    check_page(page, &[], overwrite)?;
    let name = page.file_name().unwrap_or_default().to_string_lossy();
    let staging = Staging::open_file(page)?;
    let written = staging
        .clear(|_| false)
        .and_then(|()| staging.write(&name, text.as_bytes()))
        .and_then(|()| staging.publish_files(&[&name], &[], overwrite));
    if written.as_ref().is_err_and(|error| !error.has_moved()) {
        staging.remove();
    }
    written
}

#[cfg(test)]
mod tests;
