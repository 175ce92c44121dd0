//! The main job: plan an export, stream it to a staging directory, publish it. Prints nothing.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use qft::adapter::Adapter;
//! use qft::checkpoint::Checkpoint;
//! use qft::export::{Export, Options, Run};
//! use qft::size::ByteSize;
//!
//! let base = Checkpoint::open(Path::new("base"))?;
//! let adapter = Adapter::open(Path::new("output/checkpoint-100"), 1.0)?;
//! let options = Options { max_shard: Some(ByteSize(2_000_000_000)), ..Options::default() };
//! let plan = Export::of(base).adapters([adapter]).options(options).plan(Path::new("release"))?;
//! let report = plan.run(&Run::default())?;
//! println!("{} files in {}", report.files.len(), report.out.display());
//! # Ok::<(), qft::Error>(())
//! ```

mod beside;
mod block;
mod classifier;
mod config_edit;
mod coverage;
mod encoded;
mod gguf;
mod manifest;
mod merged;
mod plan;
mod quantize;
mod report;
mod shard;
mod stop;
mod summary;
pub mod to_hf;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use encoded::{EncodedTensor, GgufPart, Values};
pub use gguf::{GgufOptions, GgufOutput};
pub use plan::{DEFAULT_SHARD, Export, ExportPlan, Options, Provenance};
pub use quantize::QuantizePlan;
pub use report::{OutputQuality, QualityReport, QualityRow, check_page, cosine, percent, scientific, write_page};
pub use shard::{OutputTensor, PlacedTensor, Shard};
pub use summary::{
    AdapterSummary, BaseSummary, ChangedTensor, EncodedSummary, GgufFileSummary, GgufSummary, Needs, PlanSummary,
    ShardSummary,
};

pub(crate) use beside::Beside;
pub(crate) use block::{MergedTensor, Parts};
pub(crate) use encoded::Encoder;
pub(crate) use gguf::{hf_tensors, values_of, vocabulary};
pub(crate) use manifest::{Described, Digests, described};
pub(crate) use merged::Merged;
pub(crate) use plan::{lineage, small_files};
pub(crate) use shard::{index, split};

use serde_json::{Value, json};

use crate::adapter::{ADAPTER_CONFIG, Adapter};
use crate::checkpoint::release;
use crate::digest::{Hex, sha256};
use crate::error::{Error, Result};
use crate::files::read_small;
use crate::ggml::Quality;
use crate::manifest::{CHECKSUMS, MANIFEST, checksums};
use crate::parallel::both;
pub use crate::stream::{CardShare, CardUse, Overwrite, Run, Timings};
use crate::stream::{Input, InputDigest, Produced, Production, Staging, Work, produce};
use block::ShardWork;
use encoded::GgufWork;

/// What an export did.
#[derive(Debug)]
pub struct Report {
    /// The directory, or the first of the GGUF files.
    pub out: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Its files by name, with size and SHA-256.
    pub files: BTreeMap<String, (u64, Hex)>,
    /// Files taken over from an interrupted run.
    pub resumed: usize,
    /// How good the encoding of each tensor is, by GGUF file and tensor, where that was measured.
    pub quality: BTreeMap<String, BTreeMap<String, Quality>>,
    /// Seconds from start to publication.
    pub seconds: f64,
    /// Seconds of all workers, by stage.
    pub timings: Timings,
    /// What GPUs had to do with it.
    pub cards: CardUse,
}

impl Report {
    fn new(out: &Path, produced: Produced, started: Instant) -> Self {
        let Produced { files, records, resumed, timings, cards, .. } = produced;
        Self {
            out: out.to_owned(),
            bytes: files.values().map(|(size, _)| size).sum(),
            files,
            resumed,
            quality: qualities(records),
            seconds: started.elapsed().as_secs_f64(),
            timings,
            cards,
        }
    }
}

/// What the works of GGUF files recorded.
fn qualities(records: BTreeMap<String, Value>) -> BTreeMap<String, BTreeMap<String, Quality>> {
    let read = |(name, record)| Some((name, serde_json::from_value(record).ok()?));
    records.into_iter().filter_map(read).collect()
}

impl ExportPlan {
    /// Carries the plan out.
    ///
    /// # Errors
    ///
    /// On any the destination is as it was, but for [`Error::InPlace`] and [`Error::Halfway`]. After
    /// [`Error::Interrupted`] a run that resumes takes over what is finished.
    pub fn run(&self, how: &Run<'_>) -> Result<Report> {
        let started = Instant::now();
        how.check_cards()?;
        let staging = if self.options.as_file { Staging::open_file(&self.out) } else { Staging::open(&self.out) }?;
        let names = inputs_in_order(self);
        let production = production(self, &names, how)?;
        let inputs = || self.base.files.iter().chain(self.adapters.iter().map(|adapter| &adapter.file));
        let publish = |produced| both(|| release(inputs(), how.jobs), || publish(self, &staging, &names, produced)).1;
        let produced = produce(&production, &staging, how, publish)?;
        let first = self.weight_files().next().filter(|_| self.options.as_file);
        let out = first.map_or_else(|| self.out.clone(), |(name, _)| self.out.with_file_name(name));
        Ok(Report::new(&out, produced, started))
    }
}

type Files = BTreeMap<String, (u64, Hex)>;

/// Everything that a plan streams.
fn production<'a>(plan: &'a ExportPlan, names: &[&str], how: &Run<'_>) -> Result<Production<'a>> {
    let Options { overflow, .. } = plan.options;
    let mut works: Vec<Box<dyn Work>> = Vec::new();
    works.extend(plan.shards.iter().map(|s| Box::new(ShardWork::new(s, overflow, how.vector)) as Box<dyn Work>));
    let measure = plan.options.gguf.as_ref().is_some_and(|gguf| gguf.measure);
    for (i, output) in plan.gguf.iter().enumerate() {
        for part in &output.parts {
            works.push(Box::new(GgufWork::new(part, i + 1, measure, overflow, how.vector)?));
        }
    }
    let tensors = names.iter().map(|name| plan.base.tensors[*name].bytes());
    let base = tensors.map(|bytes| Input { bytes, digest: InputDigest::Blake3 });
    let adapters = plan.adapters.iter().map(|a| Input { bytes: a.file.bytes(), digest: InputDigest::Sha256 });
    Ok(Production {
        works,
        inputs: base.chain(adapters).collect(),
        encoders: encoded::encoders(plan.gguf.iter().flat_map(|output| &output.parts)),
        identity: identity(plan)?,
        disk_bytes: plan.disk_bytes(),
    })
}

/// Writes every other file of the output, adds them to `produced`, and publishes it.
fn publish(plan: &ExportPlan, staging: &Staging, names: &[&str], mut produced: Produced) -> Result<Produced> {
    for file in plan.base.files.iter().chain(plan.adapters.iter().map(|adapter| &adapter.file)) {
        file.check_unchanged()?;
    }
    if plan.options.as_file {
        let names: Vec<&str> = plan.weight_files().map(|(name, _)| name).collect();
        staging.publish_files(&names, &plan.deletes, plan.options.overwrite.is_allowed())?;
        return Ok(produced);
    }
    let files = &mut produced.files;
    write_companions(plan, staging, files)?;
    let (base, weights) = produced.inputs.split_at(names.len());
    let digests = Digests {
        files: files.clone(),
        base: names.iter().map(|name| (*name).to_owned()).zip(base.iter().cloned()).collect(),
        base_config: plan.base.config.as_ref().map(|config| sha256(config.text().as_bytes())),
        adapters: digest_adapters(plan, weights)?,
    };
    let text = manifest::text(plan, &digests, &qualities(produced.records.clone()));
    staging.write(MANIFEST, text.as_bytes())?;
    files.insert(MANIFEST.to_owned(), (text.len() as u64, sha256(text.as_bytes())));
    let sums = checksums(files);
    staging.write(CHECKSUMS, sums.as_bytes())?;
    files.insert(CHECKSUMS.to_owned(), (sums.len() as u64, sha256(sums.as_bytes())));
    staging.publish(plan.options.overwrite.is_allowed())?;
    Ok(produced)
}

/// A digest of all that decides the bytes of the streamed files: their headers, the settings of base and adapters, and
/// the identity of every weight file.
fn identity(plan: &ExportPlan) -> Result<Hex> {
    let mut inputs = vec![json!(plan.base.config.as_ref().map(|config| sha256(config.text().as_bytes())))];
    for weights in &plan.base.files {
        inputs.push(file_identity(weights.path())?);
    }
    for adapter in &plan.adapters {
        inputs.push(file_identity(adapter.file.path())?);
        inputs.push(file_identity(&adapter.dir.join(ADAPTER_CONFIG))?);
        inputs.push(json!(adapter.weight));
    }
    let mut headers: Vec<Hex> = plan.shards.iter().map(|shard| sha256(&shard.header)).collect();
    headers.extend(plan.gguf.iter().flat_map(|output| &output.parts).map(GgufPart::identity));
    let measure = plan.options.gguf.as_ref().is_some_and(|gguf| gguf.measure);
    let options = json!([plan.options.overflow, measure, env!("CARGO_PKG_VERSION")]);
    Ok(sha256(json!([inputs, headers, options]).to_string().as_bytes()))
}

/// Device, inode, size and times of the last change of an input: of its content, which a copy may set back, and of its
/// inode, which nothing can.
pub(crate) fn file_identity(path: &Path) -> Result<Value> {
    let meta = fs::metadata(path).map_err(Error::io("look at", path))?;
    Ok(json!([meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()]))
}

/// The names of all base tensors: first those that the output is made of, in its order, so that their pages are read
/// once; then those that an adapter replaces.
fn inputs_in_order(plan: &ExportPlan) -> Vec<&str> {
    let mut seen = std::collections::BTreeSet::new();
    let placed = plan.shards.iter().flat_map(|s| &s.tensors).map(|t| &t.source);
    let encoded = plan.gguf.iter().flat_map(|output| &output.parts).flat_map(|part| &part.tensors);
    let encoded = encoded.filter_map(|t| match &t.values {
        Values::Merged { source, .. } => Some(source.as_ref()),
        _ => None,
    });
    let used = placed.chain(encoded).filter(|source| source.replaced_by.is_none()).map(|source| source.source.name());
    used.chain(plan.base.tensors.keys().map(String::as_str)).filter(|name| seen.insert(*name)).collect()
}

/// Writes config, index and the companions, and records their digests.
fn write_companions(plan: &ExportPlan, staging: &Staging, files: &mut Files) -> Result<()> {
    for companion in &plan.companions {
        files.insert(companion.name.clone(), staging.copy(&companion.path, &companion.name)?);
    }
    for (name, text) in &plan.texts {
        staging.write(name, text.as_bytes())?;
        files.insert(name.clone(), (text.len() as u64, sha256(text.as_bytes())));
    }
    Ok(())
}

fn digest_adapters(plan: &ExportPlan, weights: &[Hex]) -> Result<Vec<(Hex, Hex)>> {
    let config = |adapter: &Adapter| Ok(sha256(&read_small(&adapter.dir.join(ADAPTER_CONFIG))?));
    plan.adapters.iter().zip(weights).map(|(adapter, weights)| Ok((config(adapter)?, weights.clone()))).collect()
}
