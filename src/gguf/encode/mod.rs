//! Encoding rows of floats as blocks, byte for byte as llama.cpp's reference code does. Knows no GGUF file.

use super::TensorType;
use crate::merge::Vector;

/// Whether rows can be encoded as `kind`.
pub fn can_encode(kind: TensorType) -> bool {
    let _ = kind;
    false
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
    let _ = (kind, vector, values, columns, importance, out);
}
