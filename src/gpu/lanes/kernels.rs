//! The kernels by what they do: their names, their files, and how their work is dealt to threads, which must be as in
//! `kernels/*.cu`.

use super::budget::PIECE;
use crate::ggml::TensorType;
use crate::gpu::runtime::{Kernel, kernel_files};

kernel_files! {
    MERGE = "merge";
    PLAIN = "plain";
    CLASSIC = "classic";
    AFFINE = "affine";
    SYMMETRIC = "symmetric";
    IQ4 = "iq4";
    MEASURE = "measure";
    BLAKE3 = "blake3";
}

/// Makes merged values. Elements are dealt by rows and columns; this many a block give each thread one group of them.
pub(super) const MERGE: Kernel = Kernel::new(&files::MERGE, "merge", 128).per_block(4096);
/// DoRA's factors on rows. A block handles this many rows.
pub(super) const ROW_GAINS: Kernel = Kernel::new(&files::MERGE, "row_gains", 128).per_block(8);
/// Widens stored floats.
pub(super) const WIDEN: Kernel = Kernel::new(&files::MERGE, "widen", 128).per_block(1024);
/// Adds up the sums of pieces. A block handles this many chunks.
pub(super) const FOLD_SUMS: Kernel = Kernel::new(&files::MEASURE, "fold_sums", 256).per_block(32);

/// Hashes pieces of [`crate::digest::PIECE`] bytes. A block handles this many bytes.
pub(super) const HASH: Kernel = Kernel::new(&files::BLAKE3, "blake3_pieces", 128).per_block(128 << 10);

/// The kernels of a type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    kind: TensorType,
    /// Encodes values.
    pub(super) encode: Kernel,
    /// Likewise, with importance; absent where that changes nothing.
    pub(super) weighted: Option<Kernel>,
    /// Measures what was encoded. A block handles this many pieces.
    pub(super) measure: Option<Kernel>,
}

/// A row of the table; names follow from the type's.
macro_rules! kernels {
    ($kind:ident, $name:literal, $module:ident, $threads:literal, $per_block:literal, plain) => {
        kernels!(@ $kind, $name, $module, $threads, $per_block, None)
    };
    ($kind:ident, $name:literal, $module:ident, $threads:literal, $per_block:literal, weighted) => {
        kernels!(@ $kind, $name, $module, $threads, $per_block,
            Some(Kernel::new(&files::$module, concat!("encode_", $name, "_weighted"), $threads).per_block($per_block)))
    };
    (@ $kind:ident, $name:literal, $module:ident, $threads:literal, $per_block:literal, $weighted:expr) => {
        Kernels {
            kind: TensorType::$kind,
            encode: Kernel::new(&files::$module, concat!("encode_", $name), $threads).per_block($per_block),
            weighted: $weighted,
            measure: Some(Kernel::new(&files::MEASURE, concat!("measure_", $name), 256).per_block(16)),
        }
    };
}

/// Kernels by type. F32 has no errors to measure.
const KERNELS: [Kernels; 15] = [
    Kernels { measure: None, ..kernels!(F32, "f32", PLAIN, 256, 2048, plain) },
    kernels!(F16, "f16", PLAIN, 256, 2048, plain),
    kernels!(BF16, "bf16", PLAIN, 256, 2048, plain),
    kernels!(Q8_0, "q8_0", CLASSIC, 128, 4096, plain),
    kernels!(Q4_0, "q4_0", CLASSIC, 128, 4096, weighted),
    kernels!(Q4_1, "q4_1", CLASSIC, 128, 4096, weighted),
    kernels!(Q5_0, "q5_0", CLASSIC, 128, 4096, weighted),
    kernels!(Q5_1, "q5_1", CLASSIC, 128, 4096, weighted),
    kernels!(IQ4_NL, "iq4_nl", IQ4, 128, 4096, weighted),
    kernels!(IQ4_XS, "iq4_xs", IQ4, 128, 4096, weighted),
    kernels!(Q2_K, "q2_k", AFFINE, 256, 4096, weighted),
    kernels!(Q4_K, "q4_k", AFFINE, 128, 4096, weighted),
    kernels!(Q5_K, "q5_k", AFFINE, 128, 4096, weighted),
    kernels!(Q3_K, "q3_k", SYMMETRIC, 128, 2048, weighted),
    kernels!(Q6_K, "q6_k", SYMMETRIC, 128, 2048, weighted),
];

impl Kernels {
    /// The kernels of `kind`, if there are any.
    pub(super) fn of(kind: TensorType) -> Option<&'static Self> {
        KERNELS.iter().find(|row| row.kind == kind)
    }

    /// The kernel for values with or without importance.
    pub(super) fn encoder(&self, weighted: bool) -> Kernel {
        self.weighted.filter(|_| weighted).unwrap_or(self.encode)
    }

    /// The types that there are kernels for.
    #[cfg(test)]
    pub(super) fn kinds() -> impl Iterator<Item = TensorType> {
        KERNELS.iter().map(|row| row.kind)
    }
}

const _: () = assert!(PIECE == 256, "measure.cu sums pieces of 256 values");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::encode::can_encode;
    use crate::gpu::runtime::check_table;

    #[test]
    fn every_type_that_can_be_encoded_has_kernels() {
        for kind in TensorType::all() {
            assert_eq!(Kernels::of(kind).is_some(), can_encode(kind), "{kind}");
        }
    }

    #[test]
    fn the_table_is_as_the_ptx() {
        let of_types = KERNELS.iter().flat_map(|row| [Some(row.encode), row.weighted, row.measure]).flatten();
        let all: Vec<_> = of_types.chain([MERGE, ROW_GAINS, WIDEN, FOLD_SUMS, HASH]).collect();
        check_table(&all);
    }
}
