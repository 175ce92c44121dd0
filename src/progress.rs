//! What a running job tells its host. The binary shows bars; tests and other hosts listen or don't.

/// Receives the progress of a job, from many threads. What is not overridden is ignored.
pub trait Progress: Sync {
    /// The parts of the job are these: a name and a number of bytes each.
    fn start(&self, _parts: &[(String, u64)]) {}
    /// `bytes` more of part `part` are done.
    fn advance(&self, _part: usize, _bytes: u64) {}
    /// Part `part` is complete.
    fn finish(&self, _part: usize) {}
    /// The job has entered another phase: "checking finished files", "writing", "publishing".
    fn phase(&self, _name: &str) {}
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
