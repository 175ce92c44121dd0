//! Encoders under the vector instructions of the processor: each set compiles an encoder again, with as many SIMD
//! elements as two of its registers have, which hides the latency of sums in order. All give the same bytes.

use crate::merge::Vector;

/// Work that is done in `N` SIMD elements at once. `run`, and what it calls, is `inline(always)`, so that it takes on
/// the features of its caller.
pub(super) trait Work {
    fn run<const N: usize>(self);
}

/// Does the work with the instructions of `vector`.
pub(super) fn run(vector: Vector, work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    match vector {
        // SAFETY: the processor has these instructions.
        Vector::Avx512 if vector.is_available() => return unsafe { x86::avx512(work) },
        // SAFETY: as above.
        Vector::Avx2 if vector.is_available() => return unsafe { x86::avx2(work) },
        _ => {}
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = vector;
    work.run::<8>();
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Work;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn avx512(work: impl Work) {
        work.run::<32>();
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(work: impl Work) {
        work.run::<16>();
    }
}
