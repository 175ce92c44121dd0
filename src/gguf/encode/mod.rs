//! Encoding rows of floats as blocks, byte for byte as llama.cpp's reference code does. Knows no GGUF file.

mod plain;
mod q8;
mod vector;
mod k;

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
    (TensorType::Q2_K, |_, x, columns, qw, out| k::encode(TensorType::Q2_K, x, columns, qw, out)),
    (TensorType::Q3_K, |_, x, columns, qw, out| k::encode(TensorType::Q3_K, x, columns, qw, out)),
    (TensorType::Q4_K, |_, x, columns, qw, out| k::encode(TensorType::Q4_K, x, columns, qw, out)),
    (TensorType::Q5_K, |_, x, columns, qw, out| k::encode(TensorType::Q5_K, x, columns, qw, out)),
    (TensorType::Q6_K, |_, x, columns, qw, out| k::encode(TensorType::Q6_K, x, columns, qw, out)),
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
    if let Some(encoder) = encoder(kind) {
        encoder(vector, values, columns, importance, out);
    }
}
