//! qft turns a LoRA fine-tune into a release: it merges the adapter into its base, reshards, checks, and publishes.
//!
//! The way through the library is [`checkpoint`] and [`adapter`] (read what is there), [`export::Export`] (decide
//! everything), [`export::ExportPlan`] (do it), [`export::Report`] (say what was done). [`verify`], [`audit`] and
//! [`inspect`] look at the result. Nothing here prints or ends the process.
//!
//! An [`Error`] says what is wrong, where, and what to do; [`Error::kind`] says of which [`ErrorKind`] it is, and whether a
//! retry may help. Messages mark the settings that they name: [`error::name_settings`] calls them what a program does.

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
