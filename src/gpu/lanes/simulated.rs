//! A GPU for tests where there is none: its lanes make blocks with the processor's code.

use super::block::{Block, Lane, Source, Stages, Trouble, source_row};
use crate::digest::{PIECE, chaining_value};
use crate::ggml::decode::decode;
use crate::ggml::encode::encode;
use crate::ggml::{ErrorSums, TensorType, first_bad_scale};
use crate::merge::{Float, Vector};

/// A GPU that is none.
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
        let (bytes, sums) = make(block)?;
        out.copy_from_slice(&bytes[block.wanted.clone()]);
        Ok(sums)
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

/// What the processor makes of a block: all bytes and sums.
pub(super) fn make(block: &Block<'_>) -> Result<(Vec<u8>, Vec<ErrorSums>), Trouble> {
    let (bytes, float) = made(block)?;
    let mut values = vec![0.0; block.elements.len()];
    float.widen(&bytes, &mut values);
    let Some(encoding) = &block.encoding else { return Ok((bytes, Vec::new())) };
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Trouble::Value);
    }
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
    let infinite = |mask: u8, top: u8| encoded.chunks(2).any(|b| b[1] & 0x7f >= top && b[0] & mask == mask);
    let beyond = match kind {
        TensorType::F16 => infinite(0, 0x7c),
        TensorType::BF16 => infinite(0x80, 0x7f),
        _ => first_bad_scale(kind, &encoded).is_some(),
    };
    if beyond {
        return Err(Trouble::Value);
    }
    let Some(measured) = encoding.measured else { return Ok((encoded, Vec::new())) };
    let mut decoded = vec![0.0; values.len()];
    decode(kind, &encoded, &mut decoded);
    let (values, decoded) = (&values[measured.skipped..], &decoded[measured.skipped..]);
    let first = measured.first.min(values.len());
    let first_sums = (first > 0).then(|| ErrorSums::of(&values[..first], &decoded[..first]));
    let rest = values[first..].chunks(measured.chunk).zip(decoded[first..].chunks(measured.chunk));
    let sums = first_sums.into_iter().chain(rest.map(|(x, y)| ErrorSums::of(x, y))).collect();
    Ok((encoded, sums))
}

/// The values of a block as the merge rounds them, in the output's order.
fn made(block: &Block<'_>) -> Result<(Vec<u8>, Float), Trouble> {
    match block.source {
        Source::Stored { bytes, float } => Ok((bytes.to_vec(), float)),
        Source::Merged { merge, heads, .. } => {
            let (float, rows, columns) = (merge.output(), merge.rows(), merge.columns().max(1));
            let mut bytes = vec![0; block.elements.len() * float.size()];
            let mut at = block.elements.start;
            while at < block.elements.end {
                let (row, column) = (at / columns, at % columns);
                let taken = (columns - column).min(block.elements.end - at);
                let from = heads.map_or(row, |heads| source_row(row, rows, heads)) * columns + column;
                let place = (at - block.elements.start) * float.size();
                let out = &mut bytes[place..place + taken * float.size()];
                merge.run(from..from + taken, out).map_err(|_| Trouble::Value)?;
                at += taken;
            }
            let mut values = vec![0.0; block.elements.len()];
            float.widen(&bytes, &mut values);
            // The processor lets these through where nothing changes them; a GPU leaves them to it.
            if values.iter().any(|v| !v.is_finite()) { Err(Trouble::Value) } else { Ok((bytes, float)) }
        }
    }
}
