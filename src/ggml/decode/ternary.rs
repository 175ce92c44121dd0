//! Values -1, 0 and 1 with one scale: `TQ1_0` and `TQ2_0`. Formulas: `dequantize_row_*` in ggml-quants.c.

use super::half;

/// Byte `b` has the fraction `b / 256` with ternary digits 0.abcde: each value is a digit, the highest first.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let scale = half(block, 52);
    let mut rest = &mut out[..];
    // Runs of bytes, and how many of their digits are in use.
    for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for power in &POWERS[..digits] {
            let (run, behind) = rest.split_at_mut(bytes.len());
            for (byte, out) in bytes.iter().zip(run) {
                let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                *out = (i32::from(digit) - 1) as f32 * scale;
            }
            rest = behind;
        }
    }
}

pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = half(block, 64);
    for (r, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (byte, out) in block[r / 4 * 32..][..32].iter().zip(out) {
            *out = (i32::from(byte >> (r % 4 * 2) & 3) - 1) as f32 * scale;
        }
    }
}
