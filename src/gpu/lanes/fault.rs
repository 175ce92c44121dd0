//! Troubles on demand, so that what follows them can be tested, on a GPU and without one.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::{Block, Lane, Stages, Trouble};
use crate::ggml::ErrorSums;

/// A trouble at some block of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    /// Counted from 1, in the order in which the GPUs' lanes begin blocks.
    block: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One lane runs out of memory.
    OutOfMemory,
    /// The GPUs are lost: that block fails and every later one.
    Lost,
    /// A value does not fit its type.
    Value,
}

/// What is written before the `@`.
const KINDS: [(&str, Kind); 3] = [("oom", Kind::OutOfMemory), ("lost", Kind::Lost), ("value", Kind::Value)];

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, block) = text.split_once('@').unwrap_or((text, ""));
        let kind = KINDS.iter().find(|row| row.0 == name).map(|row| row.1);
        match (kind, block.parse()) {
            (Some(kind), Ok(block)) if block > 0 => Ok(Self { kind, block }),
            _ => Err("write oom@N, lost@N or value@N, for the N-th block, counted from 1".to_owned()),
        }
    }
}

/// A fault, and how many blocks the lanes of all GPUs have begun.
pub(crate) struct Faults {
    fault: Fault,
    begun: AtomicU64,
}

impl Faults {
    pub(super) fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self { fault, begun: AtomicU64::new(0) })
    }

    /// Counts a block, and says whether it fails.
    fn begin(&self) -> Result<(), Trouble> {
        let block = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let lost = || Trouble::Device("the GPU was lost (a fault that was injected)".to_owned());
        match self.fault.kind {
            Kind::Lost if block >= self.fault.block => Err(lost()),
            _ if block != self.fault.block => Ok(()),
            Kind::OutOfMemory => Err(Trouble::Device("out of memory (a fault that was injected)".to_owned())),
            Kind::Value => Err(Trouble::Value),
            Kind::Lost => Err(lost()),
        }
    }
}

/// A lane that fails when it is told to.
pub(super) struct Faulty<'c> {
    pub(super) lane: Box<dyn Lane + 'c>,
    pub(super) faults: Arc<Faults>,
}

impl Lane for Faulty<'_> {
    fn capacity(&self) -> usize {
        self.lane.capacity()
    }

    fn run(&mut self, block: &Block<'_>, out: &mut [u8]) -> Result<Vec<ErrorSums>, Trouble> {
        self.faults.begin()?;
        self.lane.run(block, out)
    }

    fn hash(&mut self, bytes: &[u8], first: usize, values: &mut [u8]) -> Result<(), Trouble> {
        self.faults.begin()?;
        self.lane.hash(bytes, first, values)
    }

    fn stages(&self) -> Stages {
        self.lane.stages()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        assert_eq!("lost@3".parse(), Ok(Fault { kind: Kind::Lost, block: 3 }));
        assert_eq!("oom@1".parse(), Ok(Fault { kind: Kind::OutOfMemory, block: 1 }));
        assert_eq!("value@12".parse(), Ok(Fault { kind: Kind::Value, block: 12 }));
        for text in ["", "lost", "lost@", "lost@0", "lost@-1", "lost@x", "fire@1", "@1", "lost@1@2"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_lost_card_stays_lost_and_others_fail_once() {
        let troubles = |text: &str| {
            let faults = Faults::new(text.parse().unwrap());
            (0..4)
                .map(|_| match faults.begin() {
                    Ok(()) => '.',
                    Err(Trouble::Value) => 'v',
                    Err(Trouble::Unsupported) => 'u',
                    Err(Trouble::Device(_)) => 'd',
                })
                .collect::<String>()
        };
        assert_eq!(troubles("lost@2"), ".ddd");
        assert_eq!(troubles("oom@2"), ".d..");
        assert_eq!(troubles("value@1"), "v...");
        assert_eq!(troubles("value@9"), "....");
    }
}
