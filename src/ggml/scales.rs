//! The scales of encoded blocks: where they lie, and whether they are finite. A value that is too large for a scale of
//! half precision makes a block of infinities, which llama.cpp refuses to load.

use super::TensorType;

/// Type, and the places in a block of its half-precision scales.
const SCALES: [(TensorType, &[usize]); 12] = {
    use TensorType as T;
    [
        (T::Q4_0, &[0]),
        (T::Q4_1, &[0, 2]),
        (T::Q5_0, &[0]),
        (T::Q5_1, &[0, 2]),
        (T::Q8_0, &[0]),
        (T::Q2_K, &[80, 82]),
        (T::Q3_K, &[108]),
        (T::Q4_K, &[0, 2]),
        (T::Q5_K, &[0, 2]),
        (T::Q6_K, &[208]),
        (T::IQ4_NL, &[0]),
        (T::IQ4_XS, &[0]),
    ]
};

/// The first of the encoded blocks whose scale is infinite or no number.
pub fn first_bad_scale(kind: TensorType, blocks: &[u8]) -> Option<usize> {
    let places = SCALES.iter().find(|row| row.0 == kind)?.1;
    let bad = |block: &[u8]| places.iter().any(|at| block[at + 1] & 0x7c == 0x7c);
    blocks.chunks_exact(kind.block_bytes()).position(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_infinities_and_nans() {
        let mut blocks = vec![0u8; 3 * 144];
        assert_eq!(first_bad_scale(TensorType::Q4_K, &blocks), None);
        blocks[144 + 3] = 0xfc;
        assert_eq!(first_bad_scale(TensorType::Q4_K, &blocks), Some(1));
        blocks[144 + 3] = 0x7b;
        assert_eq!(first_bad_scale(TensorType::Q4_K, &blocks), None, "65504 is finite");
        blocks[4] = 0xff;
        assert_eq!(first_bad_scale(TensorType::Q4_K, &blocks), None, "no scale lies there");
    }
}
