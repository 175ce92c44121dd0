//! What a running job tells its host. The binary shows bars; tests and other hosts listen or don't.

/// Receives the progress of a job, from many threads.
pub trait Progress: Sync {
    /// The parts of the job are these: a name and a number of bytes each.
    fn start(&self, parts: &[(String, u64)]);
    /// `bytes` more of part `part` are done.
    fn advance(&self, part: usize, bytes: u64);
    /// Part `part` is complete.
    fn finish(&self, part: usize);
    /// The job has entered another phase: "syncing", "checking finished shards".
    fn phase(&self, name: &str);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &[(String, u64)]) {}
    fn advance(&self, _: usize, _: u64) {}
    fn finish(&self, _: usize) {}
    fn phase(&self, _: &str) {}
}
