//! LoRA fine-tuning: from data and a frozen base to the checkpoints that [`crate::export`] merges.
//!
//! `data` turns rows into tokens and packs; `lora` says where each factor lies in the one vector that the optimizer
//! works on; `loss` is computed from the result of [`crate::model`] over an [`crate::engine`].

mod all_reduce;
mod base;
pub mod checkpoint;
pub mod data;
mod facts;
pub mod guard;
pub mod log;
pub mod lora;
pub mod loss;
mod plan;
mod prepare;
mod run;
pub mod schedule;
pub mod settings;
#[cfg(test)]
mod throughput;
pub mod trainer;

pub use plan::{Preparing, TrainPlan, TrainSummary};
pub use prepare::{DataSummary, Prepared, Rows};
pub use run::{How, TrainReport, run};
