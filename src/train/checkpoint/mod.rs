//! Checkpoints of a run: what `output/<run>/checkpoint-N/` holds, written in one step, read back and checked, and
//! deleted when there are too many. The files that PEFT and [`crate::export`] read are in `adapter`.

mod adapter;
mod prune;
mod resume;
mod runs;
mod space;
mod state;
mod tensors;
mod write;

pub use adapter::load_factors;
pub use prune::prune;
pub use resume::{Moments, Resume, find_adapter, find_resumed};
pub use runs::{check_new, checkpoint_dir, lock, new_run, run_of, step_of};
pub use space::{Space, has_room};
pub use state::{Progress, SchedulerState};
pub use write::{Snapshot, write};

use std::path::{Path, PathBuf};

use crate::checkpoint::member_if_there;
use crate::error::{Error, Result};

/// The file of every setting, as ms-swift names it.
pub const ARGS: &str = "args.json";
/// The moments of the optimizer.
const OPTIMIZER: &str = "optimizer.safetensors";
/// The learning rate's schedule.
const SCHEDULER: &str = "scheduler.json";
/// Where the run stands, in qft's words.
const PROGRESS: &str = crate::adapter::RUN_STATE;
/// Where the run stands, in the HF Trainer's.
const TRAINER_STATE: &str = "trainer_state.json";
/// The model card.
const CARD: &str = "README.md";

/// The file `name` of the checkpoint in `dir`. It lacks one that is not there: its path is right.
fn member(dir: &Path, name: &str, remedy: &str) -> Result<PathBuf> {
    member_if_there(dir, name)?.ok_or_else(|| Error::malformed(dir, format!("lacks {name}"), remedy))
}
