//! Writing a planned directory: weights are streamed, all else is written beside them, and all is published by rename.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::{GgufSource, ToHfPlan};
use crate::digest::{Hex, sha256};
use crate::error::Result;
use crate::export::{Parts, Shard, file_identity};
use crate::gpu::Assist;
use crate::manifest::{CHECKSUMS, checksums};
use crate::merge::Float;
use crate::stream::{Produced, Production, Run, Staging, Work, produce};

/// What was written.
#[derive(Debug)]
pub struct ToHfReport {
    /// The directory.
    pub out: PathBuf,
    /// Its files by name, with size and SHA-256.
    pub files: BTreeMap<String, (u64, Hex)>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Seconds from start to publication.
    pub seconds: f64,
}

impl ToHfPlan {
    /// Carries the plan out.
    ///
    /// # Errors
    ///
    /// On any the destination is as it was, but for [`crate::Error::InPlace`] and [`crate::Error::Halfway`].
    pub fn run(&self, how: &Run<'_>) -> Result<ToHfReport> {
        let started = Instant::now();
        let staging = Staging::open(&self.out)?;
        let work = |shard| Box::new(ShardWork::new(shard, self.options.dtype)) as Box<dyn Work>;
        let production = Production {
            works: self.shards.iter().map(work).collect(),
            inputs: Vec::new(),
            encoders: Vec::new(),
            identity: identity(self)?,
            disk_bytes: self.disk_bytes(),
        };
        let files = produce(&production, &staging, how, |produced| publish(self, &staging, produced))?;
        let bytes = files.values().map(|(size, _)| size).sum();
        Ok(ToHfReport { out: self.out.clone(), files, bytes, seconds: started.elapsed().as_secs_f64() })
    }
}

/// Writes every other file, and publishes the directory.
fn publish(plan: &ToHfPlan, staging: &Staging, produced: Produced) -> Result<BTreeMap<String, (u64, Hex)>> {
    plan.model.check_unchanged()?;
    let mut files = produced.files;
    for companion in &plan.companions {
        files.insert(companion.name.clone(), staging.copy(&companion.path, &companion.name)?);
    }
    for (name, text) in &plan.texts {
        staging.write(name, text)?;
        files.insert(name.clone(), (text.len() as u64, sha256(text)));
    }
    let sums = checksums(&files);
    staging.write(CHECKSUMS, sums.as_bytes())?;
    files.insert(CHECKSUMS.to_owned(), (sums.len() as u64, sha256(sums.as_bytes())));
    staging.publish(plan.options.overwrite.is_allowed())?;
    Ok(files)
}

/// A digest of all that decides the bytes of the weight files.
fn identity(plan: &ToHfPlan) -> Result<Hex> {
    let inputs = plan.model.files.iter().map(|file| file_identity(file.path())).collect::<Result<Vec<_>>>()?;
    let headers: Vec<Hex> = plan.shards.iter().map(|shard| sha256(&shard.header)).collect();
    Ok(sha256(json!([inputs, headers, plan.options.tie, env!("CARGO_PKG_VERSION")]).to_string().as_bytes()))
}

/// A weight file.
struct ShardWork<'a> {
    shard: &'a Shard<GgufSource>,
    parts: Parts<'a>,
    float: Float,
}

impl<'a> ShardWork<'a> {
    fn new(shard: &'a Shard<GgufSource>, float: Float) -> Self {
        let parts = Parts::new(&shard.header, shard.tensors.iter().map(|t| (t.offset, t.len)));
        Self { shard, parts, float }
    }
}

impl Work for ShardWork<'_> {
    fn name(&self) -> &str {
        &self.shard.name
    }

    fn len(&self) -> u64 {
        self.shard.len()
    }

    fn fill(&self, range: Range<usize>, out: &mut [u8], _: &mut Assist<'_>) -> Result<()> {
        self.parts.fill(range, out, |i, part, out| {
            let tensor = &self.shard.tensors[i];
            tensor.source.fill(&tensor.name, self.float, part, out)
        })
    }

    fn output(&self) -> usize {
        0
    }

    fn factor_bytes(&self) -> usize {
        0
    }
}
