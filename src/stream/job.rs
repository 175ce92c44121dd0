//! A job: what is to be written with which means, and what came out: seconds by stage, and what the GPUs did.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::Work;
use super::inputs::Input;
use crate::digest::Hex;
use crate::error::Result;
use crate::gpu::{Cards, EncoderKind};
use crate::progress::Progress;

/// Bytes that are worked on at once: a segment of a file. Several fit the last-level cache.
pub(crate) const BLOCK_LEN: usize = 2 << 20;

/// What to write and how.
pub(super) struct Job<'a> {
    /// The files to write, each with its part of the progress.
    pub(super) works: Vec<(usize, &'a dyn Work)>,
    /// Inputs to digest as they stream past, in about the order in which the files use them.
    pub(super) inputs: &'a [Input<'a>],
    pub(super) directory: &'a Path,
    pub(super) jobs: usize,
    pub(super) cards: &'a Cards,
    /// Encoders that the works will use: GPUs prepare for them.
    pub(super) encoders: &'a [EncoderKind],
    pub(super) cancel: &'a AtomicBool,
    pub(super) progress: &'a dyn Progress,
    /// Called with each file's place in `works` and its digest, once it is complete and on disk.
    pub(super) finished: &'a (dyn Fn(usize, &Hex) -> Result<()> + Sync),
}

/// Seconds of all threads, by stage.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Timings {
    /// Reading the base and copying, merging or encoding on the processor.
    pub fill: f64,
    /// Reading the base into memory that GPUs read from, in threads of the lanes.
    pub read: f64,
    /// Uploads of lanes.
    pub upload: f64,
    /// Kernels of lanes.
    pub kernel: f64,
    /// Downloads of lanes.
    pub download: f64,
    /// All that lanes did while they did not wait for others: the four above, and copying what does not change.
    pub lanes: f64,
    /// Waiting of lanes for workers and writers.
    pub lane_idle: f64,
    /// Digests of outputs.
    pub digest: f64,
    /// Digests of inputs.
    pub input_digest: f64,
    /// Waiting of workers for each other, for lanes and for writers.
    pub idle: f64,
    /// Writing, in threads of its own.
    pub write: f64,
    /// Making sure that the disk has it.
    pub sync: f64,
}

/// What GPUs had to do with a job.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct CardUse {
    /// The GPUs that helped, by their places among those that could.
    pub cards: BTreeMap<usize, CardShare>,
    /// Blocks that they made.
    pub made: u64,
    /// Blocks that they left to the processor.
    pub left: u64,
    /// What went wrong with them.
    pub warnings: Vec<String>,
}

/// What one GPU had to do with a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CardShare {
    /// Its name.
    pub name: String,
    /// Blocks that it made.
    pub made: u64,
}
