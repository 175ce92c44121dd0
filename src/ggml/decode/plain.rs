//! Plain numbers: a block is one of them.

use crate::merge::Float;

pub(super) fn f32(bytes: &[u8], out: &mut [f32]) {
    Float::F32.widen(bytes, out);
}

pub(super) fn f16(bytes: &[u8], out: &mut [f32]) {
    Float::F16.widen(bytes, out);
}

pub(super) fn bf16(bytes: &[u8], out: &mut [f32]) {
    Float::Bf16.widen(bytes, out);
}

/// A function for each type whose values are rounded to f32.
macro_rules! rounded {
    ($($number:ident)*) => {$(
        #[allow(clippy::cast_lossless, reason = "some of the types are exact in f32, some are not")]
        pub(super) fn $number(bytes: &[u8], out: &mut [f32]) {
            for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
                *out = $number::from_le_bytes(*bytes) as f32;
            }
        }
    )*};
}

rounded!(f64 i8 i16 i32 i64);
