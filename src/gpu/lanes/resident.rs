//! Bytes that stay on the GPUs while a tensor is being made: made once, uploaded once a GPU by the first lane that
//! needs them, freed with the tensor.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use super::block::Trouble;

/// What one GPU keeps: device memory, or nothing where a GPU is simulated.
pub(crate) type Kept = Arc<dyn Any + Send + Sync>;

/// What every GPU keeps of one tensor.
#[derive(Default)]
pub(crate) struct Resident(Mutex<Vec<(usize, Kept)>>);

impl Resident {
    /// What GPU number `card` keeps; `upload` makes it if there is nothing yet, while other lanes wait.
    pub(crate) fn get(&self, card: usize, upload: impl FnOnce() -> Result<Kept, Trouble>) -> Result<Kept, Trouble> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = kept.iter().find(|(number, _)| *number == card) {
            return Ok(Arc::clone(found));
        }
        let made = upload()?;
        kept.push((card, Arc::clone(&made)));
        Ok(made)
    }
}
