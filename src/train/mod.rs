//! LoRA fine-tuning: from data and a frozen base to the checkpoints that [`crate::export`] merges.
//!
//! `data` turns rows into tokens and packs, `model` is the forward and the written-out backward pass over an `engine`,
//! which is what a device can do; `lora` says where each factor lies in the one vector that the optimizer works on.

mod base;
pub mod checkpoint;
pub mod data;
mod facts;
pub mod guard;
pub mod log;
pub mod lora;
mod plan;
mod prepare;
mod run;
pub mod schedule;
pub mod settings;
pub mod trainer;

pub use plan::TrainPlan;
pub use prepare::{Prepared, Rows};
pub use run::{How, TrainReport, run};
