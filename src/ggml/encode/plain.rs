//! Plain floats: a block is one of them, rounded to nearest, ties to even. Too large becomes infinite, which callers
//! look for.

use crate::merge::{Float, Vector};

pub(super) fn f32(_: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    Float::F32.narrow(values, out);
}

pub(super) fn f16(_: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    Float::F16.narrow(values, out);
}

pub(super) fn bf16(_: Vector, values: &[f32], _: usize, _: Option<&[f32]>, out: &mut [u8]) {
    Float::Bf16.narrow(values, out);
}
