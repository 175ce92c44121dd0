//! A digest that identifies a base's weights: ranks must have the same ones, and a resumed run must have its own.

use crate::checkpoint::Checkpoint;
use crate::digest::{Hasher, Hex};

/// Bytes of a span that is looked at.
const SPAN: usize = 4 << 10;
/// Spans of a tensor, its first and its last bytes among them. Other weights differ everywhere: to read all of a large
/// model would cost as much as to load it.
const SPANS: usize = 16;

/// A digest of spans of every tensor, with names, types and shapes.
pub(super) fn fingerprint(base: &Checkpoint) -> Hex {
    let mut hasher = Hasher::blake3();
    for (name, tensor) in &base.tensors {
        hasher.update(format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.shape()).as_bytes());
        spans(tensor.bytes(), |span| hasher.update(span));
    }
    hasher.finish()
}

/// Calls `look` with all of `bytes`, or with spans at equal distances.
fn spans(bytes: &[u8], mut look: impl FnMut(&[u8])) {
    let Some(last) = bytes.len().checked_sub(SPAN).filter(|last| *last > SPAN * (SPANS - 1)) else {
        return look(bytes);
    };
    for at in 0..SPANS {
        // Below the length, and so below what a product of 16 could overflow.
        let start = last / (SPANS - 1) * at + last % (SPANS - 1) * at / (SPANS - 1);
        look(&bytes[start..start + SPAN]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_tensors_are_sampled_whole_long_ones_end_to_end() {
        let seen = |len: usize| {
            let bytes: Vec<u8> = (0..len).map(|at| (at / SPAN) as u8).collect();
            let mut seen = Vec::new();
            spans(&bytes, |span| seen.push((span.len(), span[0], span[span.len() - 1])));
            seen
        };
        assert_eq!(seen(100), [(100, 0, 0)]);
        assert_eq!(seen(SPAN * SPANS), [(SPAN * SPANS, 0, 15)]);
        let long = seen(SPAN * 200 + 7);
        assert_eq!((long.len(), long[0], long[SPANS - 1]), (SPANS, (SPAN, 0, 0), (SPAN, 199, 200)));
        assert!(long.is_sorted());
    }
}
