//! llama.cpp's "ftypes", the mixtures of tensor types that llama-quantize is asked for by name: one row each. Which
//! tensor departs from a mixture's base is in `rules`.

use std::fmt;
use std::str::FromStr;

use crate::ggml::TensorType;

/// A mixture of tensor types, by llama-quantize's name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are llama.cpp's own")]
#[expect(non_camel_case_types, reason = "the names are llama.cpp's own")]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K_S,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_XS,
    IQ4_NL,
}

/// Mixture, name, value of `general.file_type`, and the type that tensors have if no rule says otherwise. In the order
/// of the enum. Numbers: `llama_ftype` in llama.h.
const FILE_TYPES: [(FileType, &str, u32, TensorType); 20] = {
    use FileType as F;
    use TensorType as T;
    [
        (F::F32, "F32", 0, T::F32),
        (F::F16, "F16", 1, T::F16),
        (F::BF16, "BF16", 32, T::BF16),
        (F::Q8_0, "Q8_0", 7, T::Q8_0),
        (F::Q4_0, "Q4_0", 2, T::Q4_0),
        (F::Q4_1, "Q4_1", 3, T::Q4_1),
        (F::Q5_0, "Q5_0", 8, T::Q5_0),
        (F::Q5_1, "Q5_1", 9, T::Q5_1),
        (F::Q2_K_S, "Q2_K_S", 21, T::Q2_K),
        (F::Q2_K, "Q2_K", 10, T::Q2_K),
        (F::Q3_K_S, "Q3_K_S", 11, T::Q3_K),
        (F::Q3_K_M, "Q3_K_M", 12, T::Q3_K),
        (F::Q3_K_L, "Q3_K_L", 13, T::Q3_K),
        (F::Q4_K_S, "Q4_K_S", 14, T::Q4_K),
        (F::Q4_K_M, "Q4_K_M", 15, T::Q4_K),
        (F::Q5_K_S, "Q5_K_S", 16, T::Q5_K),
        (F::Q5_K_M, "Q5_K_M", 17, T::Q5_K),
        (F::Q6_K, "Q6_K", 18, T::Q6_K),
        (F::IQ4_XS, "IQ4_XS", 30, T::IQ4_XS),
        (F::IQ4_NL, "IQ4_NL", 25, T::IQ4_NL),
    ]
};

/// Other names that llama-quantize takes.
const ALIASES: [(&str, FileType); 3] =
    [("Q3_K", FileType::Q3_K_M), ("Q4_K", FileType::Q4_K_M), ("Q5_K", FileType::Q5_K_M)];

impl FileType {
    /// All mixtures.
    pub fn all() -> impl Iterator<Item = Self> {
        FILE_TYPES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, u32, TensorType) {
        &FILE_TYPES[self as usize]
    }

    /// Its name in capitals: `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Its number, the value of `general.file_type`.
    pub fn file_type_id(self) -> u32 {
        self.row().2
    }

    /// The type of a tensor that no rule treats otherwise.
    pub fn base_type(self) -> TensorType {
        self.row().3
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileType {
    type Err = String;

    /// Names and aliases in any case. llama-quantize takes numbers too; they say nothing to a reader, so qft doesn't.
    fn from_str(text: &str) -> Result<Self, String> {
        let names = FILE_TYPES.iter().map(|row| (row.1, row.0)).chain(ALIASES);
        names.clone().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, found)| found).ok_or_else(|| {
            let names: Vec<_> = names.map(|(name, _)| name.to_lowercase()).collect();
            format!("{text} is not one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_order_of_the_enum_and_unique_numbers() {
        for (i, row) in FILE_TYPES.iter().enumerate() {
            assert_eq!((row.0 as usize, row.1.parse()), (i, Ok(row.0)));
            assert!(FILE_TYPES[..i].iter().all(|other| other.2 != row.2 && other.1 != row.1), "{}", row.1);
        }
    }

    #[test]
    fn names_are_read_in_any_case_and_aliases_too() {
        assert_eq!("q4_k_m".parse(), Ok(FileType::Q4_K_M));
        assert_eq!("Q4_k".parse(), Ok(FileType::Q4_K_M));
        assert_eq!("q3_K".parse(), Ok(FileType::Q3_K_M));
        assert!("q4_k_x".parse::<FileType>().unwrap_err().contains("q4_k_m, q5_k_s"));
        assert!("".parse::<FileType>().is_err());
    }
}
