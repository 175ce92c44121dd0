//! qft turns a LoRA fine-tune into a release: it trains the adapter, merges it into its base, reshards, encodes to GGUF, checks,
//! and publishes. This is the library of the command `qft`.
//!
//! | to | begin with |
//! | --- | --- |
//! | merge an adapter, reshard, encode | [`export::Export`] |
//! | encode a GGUF file anew | [`export::QuantizePlan`] |
//! | convert a GGUF file to a directory that transformers loads | [`export::to_hf`] |
//! | check a release, and recompute it | [`verify::verify`], [`audit::Audit`] |
//! | see what is in a file | [`inspect::inspect`] |
//! | train a LoRA | [`train::TrainPlan`] |
//! | find a model on disk, in a cache or on a Hub | [`checkpoint::Locator`], [`checkpoint::Checkpoint`] |
//!
//! Each job has the same three steps. A plan reads headers and small files, decides everything, and refuses what can be
//! refused. Running it writes the output, which is put in place as a whole. A report says what was done.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use qft::adapter::Adapter;
//! use qft::checkpoint::Checkpoint;
//! use qft::export::{Export, Run};
//!
//! let base = Checkpoint::open(Path::new("base"))?;
//! let adapter = Adapter::open(Path::new("output/checkpoint-100"), 1.0)?;
//! let plan = Export::of(base).adapters([adapter]).plan(Path::new("release"))?;
//! println!("{} tensors change, {} bytes are needed", plan.changed(), plan.disk_bytes());
//! let report = plan.run(&Run::default())?;
//! println!("{} files in {}", report.files.len(), report.out.display());
//! # Ok::<(), qft::Error>(())
//! ```
//!
//! The directory `examples` has whole programs. Nothing here prints or ends the process; a [`progress::Progress`] is told how
//! far a job is, and a flag of [`export::Run`] cancels it.
//!
//! # Errors
//!
//! An [`Error`] says what is wrong, where, and what to do; [`Error::kind`] says of which [`ErrorKind`] it is, and whether a
//! retry may help. Messages mark the settings that they name: [`error::name_settings`] calls them what a program does.
//!
//! # What is promised
//!
//! The same inputs and settings give the same bytes, on any number of threads and on GPUs: docs/numerics.md says how. Formats
//! are described in docs/formats.md. The parts and their arrows are in docs/design.md.

pub mod adapter;
pub mod arch;
pub mod audit;
pub mod caught;
pub mod checkpoint;
pub mod digest;
pub mod engine;
pub mod error;
pub mod export;
pub mod files;
pub mod ggml;
pub mod gguf;
pub mod gpu;
pub mod inspect;
pub mod manifest;
mod markup;
pub mod merge;
pub mod model;
mod parallel;
pub mod progress;
pub mod quantized;
pub mod ranks;
pub mod rules;
pub mod size;
mod spelling;
pub mod store;
mod stream;
pub mod swift;
pub mod text;
pub mod train;
pub mod verify;

pub use error::{Error, ErrorKind, Result};

const _: () = assert!(usize::BITS == 64, "qft maps whole models and needs a 64-bit target");
