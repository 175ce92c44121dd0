//! Which vector instructions run the kernel: found at run time, one row of the table each. All give the same bytes,
//! since the kernel is one piece of code whose every operation is IEEE-exact; a test holds them against each other.

use std::ops::Range;

use super::{Fault, Merge, kernel};

/// A set of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vector {
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// Arm's NEON, which every 64-bit Arm has.
    Neon,
    /// Whatever every processor of the architecture has. On x86-64 that means fused multiply-add in software: slow.
    Scalar,
}

/// All sets, best first.
const ALL: [Vector; 4] = [Vector::Avx512, Vector::Avx2, Vector::Neon, Vector::Scalar];

impl Vector {
    /// The best set that this processor has.
    pub fn detect() -> Self {
        Self::available().next().unwrap_or(Self::Scalar)
    }

    /// The sets that this processor has, best first.
    pub fn available() -> impl Iterator<Item = Self> {
        ALL.into_iter().filter(|vector| vector.is_available())
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Self::Avx2.is_available()
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Neon => false,
            Self::Scalar => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Avx512 | Self::Avx2 => false,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Scalar => true,
        }
    }

    /// Runs the merge kernel.
    pub(super) fn run(self, merge: &Merge<'_>, elements: Range<usize>, out: &mut [u8]) -> Result<(), Fault> {
        #[cfg(target_arch = "x86_64")]
        match self {
            // SAFETY: `detect` and `available`, the only sources of these values, found the instructions.
            Self::Avx512 if self.is_available() => return unsafe { x86::run_avx512(merge, elements, out) },
            // SAFETY: as above.
            Self::Avx2 if self.is_available() => return unsafe { x86::run_avx2(merge, elements, out) },
            _ => {}
        }
        kernel::run(merge, elements, out)
    }

    /// Runs the norm kernel over the columns.
    pub(super) fn column_norms(self, merge: &Merge<'_>) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        match self {
            // SAFETY: as in `run`.
            Self::Avx512 if self.is_available() => return unsafe { x86::column_norms_avx512(merge) },
            // SAFETY: as in `run`.
            Self::Avx2 if self.is_available() => return unsafe { x86::column_norms_avx2(merge) },
            _ => {}
        }
        kernel::column_norms(merge)
    }
}

/// The kernel compiled once for each set: it is `inline(always)`, so that it takes on the features of its caller.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Fault, Merge, Range, kernel};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn run_avx512(merge: &Merge<'_>, elements: Range<usize>, out: &mut [u8]) -> Result<(), Fault> {
        kernel::run(merge, elements, out)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn run_avx2(merge: &Merge<'_>, elements: Range<usize>, out: &mut [u8]) -> Result<(), Fault> {
        kernel::run(merge, elements, out)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn column_norms_avx512(merge: &Merge<'_>) -> Vec<f32> {
        kernel::column_norms(merge)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn column_norms_avx2(merge: &Merge<'_>) -> Vec<f32> {
        kernel::column_norms(merge)
    }
}
