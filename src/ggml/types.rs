//! The tensor types of GGUF: their numbers, names and block sizes, one row a type. What is in a block is in `encode`
//! and `decode`.

/// Type of a tensor's elements, as `ggml_type` in ggml.h numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are ggml's own; docs/formats.md describes the blocks")]
#[expect(non_camel_case_types, reason = "the names are ggml's own")]
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// Type, number, name, elements of a block, bytes of a block. In the order of the enum.
const TYPES: [(TensorType, u32, &str, usize, usize); 35] = {
    use TensorType as T;
    [
        (T::F32, 0, "F32", 1, 4),
        (T::F16, 1, "F16", 1, 2),
        (T::Q4_0, 2, "Q4_0", 32, 18),
        (T::Q4_1, 3, "Q4_1", 32, 20),
        (T::Q5_0, 6, "Q5_0", 32, 22),
        (T::Q5_1, 7, "Q5_1", 32, 24),
        (T::Q8_0, 8, "Q8_0", 32, 34),
        (T::Q8_1, 9, "Q8_1", 32, 36),
        (T::Q2_K, 10, "Q2_K", 256, 84),
        (T::Q3_K, 11, "Q3_K", 256, 110),
        (T::Q4_K, 12, "Q4_K", 256, 144),
        (T::Q5_K, 13, "Q5_K", 256, 176),
        (T::Q6_K, 14, "Q6_K", 256, 210),
        (T::Q8_K, 15, "Q8_K", 256, 292),
        (T::IQ2_XXS, 16, "IQ2_XXS", 256, 66),
        (T::IQ2_XS, 17, "IQ2_XS", 256, 74),
        (T::IQ3_XXS, 18, "IQ3_XXS", 256, 98),
        (T::IQ1_S, 19, "IQ1_S", 256, 50),
        (T::IQ4_NL, 20, "IQ4_NL", 32, 18),
        (T::IQ3_S, 21, "IQ3_S", 256, 110),
        (T::IQ2_S, 22, "IQ2_S", 256, 82),
        (T::IQ4_XS, 23, "IQ4_XS", 256, 136),
        (T::I8, 24, "I8", 1, 1),
        (T::I16, 25, "I16", 1, 2),
        (T::I32, 26, "I32", 1, 4),
        (T::I64, 27, "I64", 1, 8),
        (T::F64, 28, "F64", 1, 8),
        (T::IQ1_M, 29, "IQ1_M", 256, 56),
        (T::BF16, 30, "BF16", 1, 2),
        (T::TQ1_0, 34, "TQ1_0", 256, 54),
        (T::TQ2_0, 35, "TQ2_0", 256, 66),
        (T::MXFP4, 39, "MXFP4", 32, 17),
        (T::NVFP4, 40, "NVFP4", 64, 36),
        (T::Q1_0, 41, "Q1_0", 128, 18),
        (T::Q2_0, 42, "Q2_0", 64, 18),
    ]
};

impl TensorType {
    /// The type with this number in a file.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// All types.
    pub fn all() -> impl Iterator<Item = Self> {
        TYPES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        &TYPES[self as usize]
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Its name, as llama.cpp prints it in capitals: `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of a block. Rows hold whole blocks.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether elements are coded in blocks, with a scale each: all but plain numbers.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row of `columns` elements; `None` if it holds no whole number of blocks, or on overflow.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        columns
            .is_multiple_of(self.block_len())
            .then(|| (columns / self.block_len()).checked_mul(self.block_bytes()))?
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for TensorType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = TYPES.iter().find(|row| row.2.eq_ignore_ascii_case(text)).map(|row| row.0);
        found.ok_or_else(|| format!("{text} is not a tensor type: write one such as q4_k, q6_k, q8_0, f16 or bf16"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_order_of_the_enum() {
        for (i, row) in TYPES.iter().enumerate() {
            assert_eq!((row.0 as usize, TensorType::from_id(row.1), row.2.parse()), (i, Some(row.0), Ok(row.0)));
        }
    }

    #[test]
    fn rows_hold_whole_blocks() {
        assert_eq!(TensorType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_bytes(288), None);
        assert_eq!(TensorType::F64.row_bytes(usize::MAX / 2), None, "overflow");
        assert!("q9".parse::<TensorType>().is_err());
    }
}
