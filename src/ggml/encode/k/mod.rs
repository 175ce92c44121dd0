//! The K types: super-blocks of 256 values, each with a scale for sub-blocks of 16 or 32.

mod affine;
mod levels;
#[cfg(test)]
mod reference;
mod rows;
mod superblock;
mod symmetric;
#[cfg(test)]
mod tests;

use affine::{EncodeAffine, Q2K, Q4K, Q5K};
pub(super) use affine::{WEIGHTED, fit as fit_affine};
use rows::Rows;
pub(super) use symmetric::fit as fit_symmetric;
use symmetric::{EncodeQ3K, EncodeQ6K};

use super::{simd, vector};
use crate::merge::Vector;

macro_rules! encoders {
    ($($name:ident: $work:expr;)*) => {$(
        pub(super) fn $name(
            vector: Vector,
            values: &[f32],
            columns: usize,
            importance: Option<&[f32]>,
            out: &mut [u8],
        ) {
            vector::run(vector, $work(Rows { values, columns, importance, out }));
        }
    )*};
}

encoders! {
    q2_k: |rows| EncodeAffine(rows, Q2K);
    q3_k: EncodeQ3K;
    q4_k: |rows| EncodeAffine(rows, Q4K);
    q5_k: |rows| EncodeAffine(rows, Q5K);
    q6_k: EncodeQ6K;
}
