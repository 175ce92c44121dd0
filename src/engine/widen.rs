//! Stored values as f32.

use crate::checkpoint::Tensor;
use crate::error::{Error, Result, escaped};
use crate::merge::{Float, TO_FLOATS};

/// The type of a tensor's values, of those that hold weights.
pub(super) fn float_of(tensor: &Tensor) -> Result<Float> {
    Float::of(tensor.dtype()).ok_or_else(|| {
        let problem = format!("tensor {} is of type {:?}", escaped(tensor.name()), tensor.dtype());
        Error::malformed(tensor.file().path(), problem, format!("{TO_FLOATS}; train on that"))
    })
}

/// A tensor's values.
pub(crate) fn widened(tensor: &Tensor) -> Result<Vec<f32>> {
    let float = float_of(tensor)?;
    let mut out = vec![0.0; tensor.elements()];
    float.widen(tensor.bytes(), &mut out);
    Ok(out)
}
