//! The one integration binary: it drives the real `qft` in temporary directories, a module a capability.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::pedantic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod audit;
mod blocks;
mod brought;
mod brought_bases;
mod crash;
mod device;
mod documents;
mod examples;
mod export;
mod fused;
mod gguf;
mod gguf_keys;
mod gguf_release;
mod golden;
mod hostile;
mod house;
mod hub;
mod inspect;
// The tracer knows the registers of one processor.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod killed;
mod merge;
mod readme;
mod remedies;
mod remedies_train;
mod report;
mod store;
mod swift;
mod tied;
mod to_hf;
mod train;
mod train_disk;
mod train_golden;
mod train_ranks;
mod train_resume;
mod train_rows;
mod typed;
mod verify;
mod workbench;
