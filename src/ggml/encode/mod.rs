//! Encoding rows of floats as blocks, byte for byte as llama.cpp's reference code does. Knows no GGUF file.

mod classic;
mod iq4;
mod k;
mod plain;
mod q8;
mod simd;
mod vector;
mod weighted;
#[cfg(test)]
mod widths;

use super::TensorType;
use crate::merge::Vector;

/// Encodes whole rows; see [`encode`] for the arguments.
type Encoder = fn(Vector, &[f32], usize, Option<&[f32]>, &mut [u8]);

/// The types that rows can be encoded as.
const ENCODERS: &[(TensorType, Encoder)] = &[
    (TensorType::F32, plain::f32),
    (TensorType::F16, plain::f16),
    (TensorType::BF16, plain::bf16),
    (TensorType::Q8_0, q8::q8_0),
    (TensorType::Q4_0, classic::q4_0),
    (TensorType::Q4_1, classic::q4_1),
    (TensorType::Q5_0, classic::q5_0),
    (TensorType::Q5_1, classic::q5_1),
    (TensorType::IQ4_NL, iq4::iq4_nl),
    (TensorType::IQ4_XS, iq4::iq4_xs),
    (TensorType::Q2_K, k::q2_k),
    (TensorType::Q3_K, k::q3_k),
    (TensorType::Q4_K, k::q4_k),
    (TensorType::Q5_K, k::q5_k),
    (TensorType::Q6_K, k::q6_k),
];

fn encoder(kind: TensorType) -> Option<Encoder> {
    ENCODERS.iter().find(|row| row.0 == kind).map(|row| row.1)
}

/// Whether rows can be encoded as `kind`.
pub fn can_encode(kind: TensorType) -> bool {
    encoder(kind).is_some()
}

/// Encodes `values`, whole rows of `columns` finite values, as `kind`, one that [`can_encode`] says yes to. `out` takes
/// `TensorType::row_bytes` bytes a row. `importance` has one weight a column (an imatrix), or is absent.
///
/// The bytes depend on nothing but the values and the importance: not on the vector width or the number of rows.
pub fn encode(
    kind: TensorType,
    vector: Vector,
    values: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    debug_assert!(importance.is_none_or(|importance| importance.len() == columns));
    if let Some(encoder) = encoder(kind).filter(|_| !values.is_empty()) {
        encoder(vector, values, columns, importance, out);
    }
}
