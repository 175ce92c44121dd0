//! Uploads by way of pinned memory: several threads fill pieces of it, each piece is on its way while the next is filled,
//! and a piece is used again once its copy is done. One of the rooms with `unsafe`.

use std::ops::Range;
use std::panic::resume_unwind;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use cudarc::driver::sys::{self, CUmemorytype_enum as MemoryType};
use cudarc::driver::{CudaContext, result};

use super::failure::Failure;
use super::stream::{Event, Stream};

/// Most bytes of a row.
pub(crate) const MOST_WIDTH: usize = PIECE;
/// Bytes of a piece of pinned memory, pieces of a thread, and most threads.
const PIECE: usize = 4 << 20;
const PIECES: usize = 2;
const THREADS: usize = 8;

/// Rows of bytes on the GPU that are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// Where the first row begins.
    pub(super) address: u64,
    /// Bytes from the beginning of a row to that of the next.
    pub(super) pitch: usize,
    pub(super) rows: usize,
    /// Bytes of a row.
    pub(super) width: usize,
}

impl Target {
    /// `len` bytes, as rows that are small enough for a piece, and what is left.
    fn pieces(address: u64, len: usize) -> [Self; 2] {
        let width = len.min(PIECE);
        let rows = len.checked_div(width).unwrap_or(0);
        let rest = len - rows * width;
        let whole = Self { address, pitch: width, rows, width };
        [
            whole,
            Self { address: address + (rows * width) as u64, pitch: rest, rows: usize::from(rest > 0), width: rest },
        ]
    }
}

/// What fills the bytes of some rows, one after another.
pub(crate) type Fill<'f> = &'f (dyn Fn(Range<usize>, &mut [u8]) + Sync);

/// See the module.
pub(super) struct Staging {
    stream: Stream,
    /// The pieces of each thread.
    sets: Vec<Mutex<[Piece; PIECES]>>,
    /// The set of the next small upload.
    next: AtomicUsize,
}

impl Staging {
    /// For uploads on this stream.
    pub(super) fn open(stream: &Stream) -> Result<Self, Failure> {
        let count = thread::available_parallelism().map_or(1, usize::from).clamp(2, THREADS);
        let context = stream.context();
        context.bind_to_thread()?;
        let set = |_| Ok(Mutex::new([Piece::new(context)?, Piece::new(context)?]));
        let sets = (0..count).map(set).collect::<Result<_, Failure>>()?;
        Ok(Self { stream: stream.clone(), sets, next: AtomicUsize::new(0) })
    }

    /// Enqueues the upload of `bytes`, which may go away then.
    ///
    /// # Safety
    /// As many bytes from `address` on must be memory on the GPU, allocated in the order of the stream.
    pub(super) unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        let mut done = 0;
        for target in Target::pieces(address, bytes.len()) {
            let fill = |rows: Range<usize>, to: &mut [u8]| {
                to.copy_from_slice(&bytes[done + rows.start * target.width..done + rows.end * target.width]);
            };
            // SAFETY: the caller's memory, in two parts.
            unsafe { self.fill(target, &fill) }?;
            done += target.rows * target.width;
        }
        Ok(())
    }

    /// Enqueues the upload of what `fill` gives, by several threads if it is much.
    ///
    /// # Safety
    /// The target must be memory on the GPU, allocated in the order of the stream.
    pub(super) unsafe fn fill(&self, target: Target, fill: Fill<'_>) -> Result<(), Failure> {
        let Target { rows, width, .. } = target;
        if rows == 0 || width == 0 {
            return Ok(());
        }
        if width > MOST_WIDTH {
            return Err(Failure::Misuse("rows that are longer than a piece of pinned memory"));
        }
        let each = PIECE / width;
        let count = rows.div_ceil(each);
        let next = AtomicUsize::new(0);
        let work = |set: &Mutex<[Piece; PIECES]>| -> Result<(), Failure> {
            let mut pieces = set.lock().unwrap_or_else(PoisonError::into_inner);
            self.stream.context().bind_to_thread()?;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                // The one that was used longest ago.
                pieces.rotate_left(1);
                let rows = index * each..rows.min((index + 1) * each);
                // SAFETY: the caller guarantees the target, of which these are rows.
                unsafe { pieces[0].send(&self.stream, target, rows, fill) }?;
            }
        };
        let threads = count.min(self.sets.len());
        if threads == 1 {
            work(&self.sets[self.next.fetch_add(1, Ordering::Relaxed) % self.sets.len()])
        } else {
            thread::scope(|scope| {
                let others: Vec<_> = self.sets[1..threads].iter().map(|set| scope.spawn(|| work(set))).collect();
                let own = work(&self.sets[0]);
                others
                    .into_iter()
                    .fold(own, |done, thread| done.and(thread.join().unwrap_or_else(|panic| resume_unwind(panic))))
            })
        }
    }
}

/// Pinned memory, and what tells that the copy from it is done.
struct Piece {
    address: *mut u8,
    copied: Event,
}

// SAFETY: the memory is the piece's own, and stays where it is.
unsafe impl Send for Piece {}

impl Piece {
    fn new(context: &Arc<CudaContext>) -> Result<Self, Failure> {
        let copied = Event::awaited(context)?;
        // SAFETY: a plain allocation, zeroed below before anyone reads it; it has at least the alignment of bytes.
        let address = unsafe {
            let address = result::malloc_host(PIECE, 0)?.cast::<u8>();
            address.write_bytes(0, PIECE);
            address
        };
        Ok(Self { address, copied })
    }

    /// Fills the piece with some of the target's rows, once the last copy from it is done, and enqueues their copy.
    ///
    /// # Safety
    /// As [`Staging::fill`]; `rows` of `target` must fit into a piece.
    unsafe fn send(
        &mut self,
        stream: &Stream,
        target: Target,
        rows: Range<usize>,
        fill: Fill<'_>,
    ) -> Result<(), Failure> {
        self.copied.wait()?;
        let Target { address, pitch, width, .. } = target;
        let (len, to) = (rows.len() * width, address + (rows.start * pitch) as u64);
        // SAFETY: the piece is that long (the caller), initialized, its own, and not read by any copy any more.
        let bytes = unsafe { slice::from_raw_parts_mut(self.address, len) };
        let height = rows.len();
        fill(rows, bytes);
        if pitch == width {
            // SAFETY: the caller's memory; the piece is not written to again before `copied`.
            unsafe { stream.upload(to, bytes) }?;
        } else {
            let copy = sys::CUDA_MEMCPY2D {
                srcXInBytes: 0,
                srcY: 0,
                srcMemoryType: MemoryType::CU_MEMORYTYPE_HOST,
                srcHost: bytes.as_ptr().cast(),
                srcDevice: 0,
                srcArray: std::ptr::null_mut(),
                srcPitch: width,
                dstXInBytes: 0,
                dstY: 0,
                dstMemoryType: MemoryType::CU_MEMORYTYPE_DEVICE,
                dstHost: std::ptr::null_mut(),
                dstDevice: to,
                dstArray: std::ptr::null_mut(),
                dstPitch: pitch,
                WidthInBytes: width,
                Height: height,
            };
            // SAFETY: as above; the driver reads the description before it returns.
            unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.raw()) }.result()?;
        }
        self.copied.record(stream)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // A copy may be under way; of a lost GPU there is none.
        let _ = self.copied.wait();
        // SAFETY: it was allocated by `malloc_host` and is freed once; the event's context is bound by the wait.
        let _ = unsafe { result::free_host(self.address.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_bytes() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let [whole, rest] = Target::pieces(64, len);
            assert_eq!(whole.rows * whole.width + rest.rows * rest.width, len);
            assert!(rest.rows == 0 || rest.address == 64 + (whole.rows * whole.width) as u64);
            assert!(whole.width <= PIECE && rest.width < PIECE);
        }
    }
}
