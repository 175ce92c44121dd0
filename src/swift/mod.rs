//! ms-swift's flags as rows of tables: what a flag takes ([`Kind`]), what becomes of it ([`Fate`]), and, by subject,
//! those that qft accepts with a note or refuses with what to do. What `qft train` does is in `train::settings`.

mod data;
mod devices;
mod export;
mod flag;
pub(crate) mod kind;
mod merging;
mod model;
mod optimizer;
mod serving;
mod trainer;
mod tuners;

pub use flag::{Fate, Flag};
pub(crate) use flag::{also, used};
pub use kind::Kind;

/// Flags whose values are not written anywhere: access tokens.
pub(crate) const SECRETS: [&str; 4] = ["hub_token", "swanlab_token", "swanlab_secret", "api_key"];

/// Those that `qft train` has no setting for.
pub(crate) const TRAIN: [&[Flag]; 8] = [
    &tuners::TUNERS,
    &model::MODEL,
    &data::DATA,
    &optimizer::OPTIMIZER,
    &devices::DEVICES,
    &trainer::TRAINER,
    &serving::SERVING,
    &merging::MERGING,
];

/// Those that `qft export` has no flag of its own for.
pub const EXPORT: [&[Flag]; 2] = [&export::EXPORT, &serving::SERVING];
