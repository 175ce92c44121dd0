//! How much is in flight at once: what bounds the memory of a job.

use super::BLOCK_LEN;

/// Most segments in flight, whatever the number of workers: bounds their memory at 192 MiB. Lanes of GPUs add a few
/// each.
const MAX_IN_FLIGHT: usize = 96;
/// Most bytes of widened factors that open files may hold.
const MAX_FACTORS: usize = 128 << 20;
/// Fewest and most threads that do nothing but write: they wait for the disk, so that the workers need not; into memory
/// they copy, which one thread does at no more than a gigabyte a second.
const WRITERS: (usize, usize) = (4, 12);

const _: () = assert!(MAX_IN_FLIGHT * BLOCK_LEN <= 192 << 20);

/// Threads that write, beside that many workers.
pub(crate) fn writers(jobs: usize) -> usize {
    jobs.clamp(WRITERS.0, WRITERS.1)
}

/// Segments in flight with that many workers.
pub(crate) fn in_flight(jobs: usize) -> usize {
    MAX_IN_FLIGHT.min(2 * jobs + 2 + writers(jobs))
}

/// How many files of one output are in the making at once: as many as there are workers, fewer where the largest of
/// their factors has many bytes.
pub(crate) fn open_files(largest_factor: usize, jobs: usize) -> usize {
    jobs.min((MAX_FACTORS / 2).checked_div(largest_factor).unwrap_or(jobs)).max(1)
}
