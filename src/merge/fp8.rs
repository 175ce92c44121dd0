//! Decoding block FP8: `value = code * scale`, the product rounded once to f32.

use std::ops::Range;

use super::Factor;

/// A matrix of E4M3 codes (no infinities, <https://arxiv.org/abs/2209.05433>), with a scale for each block.
#[derive(Debug)]
pub struct Fp8<'a> {
    /// A byte for each value, rows of `columns`.
    pub codes: &'a [u8],
    /// Scales, a row of them for each row of blocks.
    pub scales: Factor<'a>,
    /// Rows and columns of a block.
    pub block: (usize, usize),
    /// Values of a row.
    pub columns: usize,
}

impl Fp8<'_> {
    /// Rows of the matrix.
    pub(super) fn rows(&self) -> usize {
        self.codes.len().checked_div(self.columns).unwrap_or(0)
    }

    /// The values at `columns` of `row`.
    pub(super) fn decode(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let width = self.block.1.max(1);
        let scales = self.scales.to_row(row / self.block.0.max(1), self.columns.div_ceil(width));
        let start = row * self.columns;
        for ((column, code), out) in
            columns.clone().zip(&self.codes[start + columns.start..start + columns.end]).zip(out)
        {
            *out = E4M3[usize::from(*code)] * scales[column / width];
        }
    }
}

/// The value of every code.
static E4M3: [f32; 256] = table();

const fn table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
        // Small integers and powers of two: exact.
        let size = if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            (8 + mantissa) as f32 / 1024.0 * (1u32 << exponent) as f32
        };
        let value = if code & 127 == 127 { f32::NAN } else { size };
        table[code] = if code >= 128 { -value } else { value };
        code += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::{Float, Layout};

    #[test]
    fn codes_have_the_values_of_the_format() {
        for (code, value) in
            [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x07, 7.0 / 512.0), (0x08, 2f32.powi(-6)), (0x38, 1.0)]
        {
            assert_eq!(E4M3[code].to_bits(), value.to_bits(), "{code:#x}");
            assert_eq!(E4M3[code | 0x80].to_bits(), (-value).to_bits(), "{code:#x}");
        }
        assert_eq!((E4M3[0x7e], E4M3[0x3c], E4M3[0xc4]), (448.0, 1.5, -3.0));
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
    }

    #[test]
    fn each_block_has_its_scale() {
        let scales: Vec<u8> = [1.0f32, 2.0, 4.0, 8.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        let layout = Layout { offset: 0, row_stride: 2, column_stride: 1 };
        let codes = [0x38u8; 15];
        let scales = Factor::new(&scales, Float::F32, layout, 2, 2).unwrap();
        let fp8 = Fp8 { codes: &codes, scales, block: (2, 3), columns: 5 };
        assert_eq!(fp8.rows(), 3);
        let mut out = [0.0; 3];
        for (row, expected) in [(1, [1.0, 2.0, 2.0]), (2, [4.0, 8.0, 8.0])] {
            fp8.decode(row, 2..5, &mut out);
            assert_eq!(out.map(f32::to_bits), expected.map(f32::to_bits));
        }
    }
}
