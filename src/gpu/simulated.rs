//! A card for tests where there is none: its lanes make blocks with the processor's code.

use super::block::{Block, Lane, Source, Stages, Trouble, source_row};
use crate::digest::{PIECE, chaining_value};
use crate::gguf::decode::decode;
use crate::gguf::encode::encode;
use crate::gguf::{ErrorSums, TensorType, first_bad_scale};
use crate::merge::{Float, Vector};

/// A card that is none.
pub(crate) struct SimulatedCard {
    /// Most elements of a block.
    pub(crate) capacity: usize,
}

impl Default for SimulatedCard {
    /// With a capacity so small that a small tensor makes several blocks.
    fn default() -> Self {
        Self { capacity: 1 << 16 }
    }
}

impl SimulatedCard {
    pub(crate) fn lane(&self) -> Box<dyn Lane + '_> {
        Box::new(SimulatedLane(self.capacity))
    }
}

struct SimulatedLane(usize);

impl Lane for SimulatedLane {
    fn capacity(&self) -> usize {
        self.0
    }

    fn run(&mut self, block: &Block<'_>, out: &mut [u8]) -> Result<Vec<ErrorSums>, Trouble> {
        debug_assert!(block.elements.len() <= self.0, "a block of {} elements", block.elements.len());
        let (bytes, float) = made(block)?;
        let mut values = vec![0.0; block.elements.len()];
        float.widen(&bytes, &mut values);
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Trouble::Value);
        }
        let Some(encoding) = &block.encoding else {
            out.copy_from_slice(&bytes[block.wanted.clone()]);
            return Ok(Vec::new());
        };
        let (kind, columns) = (encoding.kind, encoding.columns);
        let mut encoded = vec![0; values.len() / kind.block_len() * kind.block_bytes()];
        match encoding.importance {
            None => encode(kind, Vector::detect(), &values, values.len(), None, &mut encoded),
            Some(importance) => {
                let row_bytes = columns / kind.block_len() * kind.block_bytes();
                for (i, (row, out)) in values.chunks(columns).zip(encoded.chunks_mut(row_bytes)).enumerate() {
                    let matrix = (block.elements.start / columns + i) / importance.rows_per_matrix;
                    let weights = &importance.weights[matrix * columns % importance.weights.len()..][..columns];
                    encode(kind, Vector::detect(), row, columns, Some(weights), out);
                }
            }
        }
        if first_bad_scale(kind, &encoded).is_some()
            || (kind == TensorType::F16 && values.iter().any(|v| v.abs() > 65504.0))
        {
            return Err(Trouble::Value);
        }
        out.copy_from_slice(&encoded[block.wanted.clone()]);
        let Some(measured) = encoding.measured else { return Ok(Vec::new()) };
        let mut decoded = vec![0.0; values.len()];
        decode(kind, &encoded, &mut decoded);
        let (values, decoded) = (&values[measured.skipped..], &decoded[measured.skipped..]);
        let first = measured.first.min(values.len());
        let first_sums = (first > 0).then(|| ErrorSums::of(&values[..first], &decoded[..first]));
        let rest = values[first..].chunks(measured.chunk).zip(decoded[first..].chunks(measured.chunk));
        Ok(first_sums.into_iter().chain(rest.map(|(x, y)| ErrorSums::of(x, y))).collect())
    }

    fn hash(&mut self, bytes: &[u8], first: usize, values: &mut [u8]) -> Result<(), Trouble> {
        for (i, (piece, value)) in bytes.chunks(PIECE).zip(values.as_chunks_mut().0).enumerate() {
            *value = chaining_value(first + i, piece);
        }
        Ok(())
    }

    fn stages(&self) -> Stages {
        Stages::default()
    }
}

/// The values of a block as the merge rounds them, in the output's order.
fn made(block: &Block<'_>) -> Result<(Vec<u8>, Float), Trouble> {
    match block.source {
        Source::Stored { bytes, float } => Ok((bytes.to_vec(), float)),
        Source::Merged { merge, heads, .. } => {
            let float = merge.output();
            let mut bytes = vec![0; block.elements.len() * float.size()];
            let (rows, columns) = (merge.rows(), merge.columns().max(1));
            for (out, element) in bytes.chunks_mut(float.size()).zip(block.elements.clone()) {
                let row = heads.map_or(element / columns, |heads| source_row(element / columns, rows, heads));
                let from = row * columns + element % columns;
                merge.run(from..from + 1, out).map_err(|_| Trouble::Value)?;
            }
            Ok((bytes, float))
        }
    }
}
