//! Space on the disk for the checkpoints of a run: how much they take, and how much is free. Checked while a run is
//! planned, and again before each is written.

use std::path::Path;

use crate::error::{Error, Result, shown};
use crate::size::ByteSize;
use crate::stream::free_space;

/// Bytes that are kept free beside the tensors.
pub(super) const SLACK: u64 = 16 << 20;

/// Bytes of a checkpoint of `parameters` values, with or without the optimizer's moments.
pub(super) fn checkpoint_bytes(parameters: usize, moments: bool) -> u64 {
    (parameters as u64).saturating_mul(if moments { 12 } else { 4 })
}

/// What the checkpoints of a run take at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Space {
    /// Bytes of one.
    pub each: u64,
    /// How many there are at a time, with the one that is being written.
    pub most: u64,
    /// Bytes that are free on their disk. No part of what a plan says to machines: it is no fact of the inputs.
    #[serde(skip)]
    pub free: u64,
}

impl Space {
    /// Of a run that saves `saves` checkpoints of `parameters` values in `dir`, which may not be there yet, and keeps
    /// `limit` of them.
    pub fn new(dir: &Path, parameters: usize, moments: bool, saves: u64, limit: Option<u64>) -> Result<Self> {
        let kept = limit.filter(|limit| *limit > 0).map_or(saves, |limit| saves.min(limit.saturating_add(1)));
        Ok(Self { each: checkpoint_bytes(parameters, moments), most: kept.max(1), free: free_space(dir)? })
    }

    /// Refuses where there is no free space for one checkpoint in `dir`.
    pub fn check(&self, dir: &Path) -> Result<()> {
        let needed = self.each.saturating_add(SLACK);
        if needed <= self.free {
            return Ok(());
        }
        let (dir, size, rest) = (shown(dir), ByteSize(needed), ByteSize(self.free));
        Err(Error::NoSpace {
            problem: format!("a checkpoint in {dir} requires {size}, and its disk has {rest} free"),
            remedy: "free some space, or give another ⟦output_dir⟧".to_owned(),
            needed: Some(needed),
            free: Some(self.free),
        })
    }

    /// What the user should know where the disk has no space for all of them.
    pub fn note(&self) -> Option<String> {
        let all = self.each.saturating_mul(self.most).saturating_add(SLACK);
        (all > self.free).then(|| {
            format!(
                "the checkpoints may take {} ({} of {}), and their disk has {} free: ⟦save_total_limit⟧ keeps fewer, \
                 and ⟦save_only_model⟧ makes them a third of the size",
                ByteSize(all),
                self.most,
                ByteSize(self.each),
                ByteSize(self.free)
            )
        })
    }
}

/// Whether there is free space for one more checkpoint in `run`.
pub fn has_room(run: &Path, parameters: usize, moments: bool) -> bool {
    free_space(run).is_ok_and(|free| free >= checkpoint_bytes(parameters, moments).saturating_add(SLACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_asked_for_one_and_told_for_all() {
        let space = |free, most| Space { each: 12 << 20, most, free };
        let run = Path::new("a/run");
        assert!(space(28 << 20, 1).check(run).is_ok() && space(28 << 20, 1).note().is_none());
        let error = space((28 << 20) - 1, 1).check(run).unwrap_err();
        assert!(
            matches!(error, Error::NoSpace { .. }) && error.to_string().contains("a/run requires 29.4 MB"),
            "{error}"
        );
        assert!(space(28 << 20, 2).note().unwrap().contains("may take 41.9 MB (2 of 12.6 MB)"));
        let dir = tempfile::tempdir().unwrap();
        let most = |saves, limit| Space::new(&dir.path().join("not/there"), 1000, true, saves, limit).unwrap().most;
        assert_eq!(
            (most(7, None), most(7, Some(2)), most(7, Some(9)), most(0, Some(1)), most(7, Some(0))),
            (7, 3, 7, 1, 7)
        );
        assert!(has_room(dir.path(), 1000, true) && !has_room(dir.path(), usize::MAX, true));
    }
}
