//! Types that the user chooses for tensors by pattern, as llama-quantize's `--tensor-type` reads them.

use std::str::FromStr;

use regex::Regex;

use crate::ggml::TensorType;

/// `REGEX=TYPE`: tensors whose name the pattern is found in get the type. Of several, the first that is found decides.
#[derive(Debug, Clone)]
pub struct TypeOverride {
    /// What is searched for in names; in lower case, as llama-quantize makes it.
    pub pattern: Regex,
    /// The type that the tensors get.
    pub kind: TensorType,
}

impl FromStr for TypeOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, kind) = text.split_once('=').ok_or_else(|| format!("{text} has no '=': write REGEX=TYPE"))?;
        if pattern.is_empty() {
            return Err(format!("{text} names no tensor: write REGEX=TYPE"));
        }
        let kind = kind.parse()?;
        let pattern = Regex::new(&pattern.to_ascii_lowercase()).map_err(|e| e.to_string())?;
        Ok(Self { pattern, kind })
    }
}

impl TypeOverride {
    /// The overrides of a file: separated by white space, as for `--tensor-type-file`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.split_ascii_whitespace().map(str::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_lowercased_and_end_at_the_first_equals_sign() {
        let parsed: TypeOverride = "BLK\\.[01]\\.ffn_down=q6_k".parse().unwrap();
        assert_eq!((parsed.pattern.as_str(), parsed.kind), ("blk\\.[01]\\.ffn_down", TensorType::Q6_K));
        assert!("a=b=q6_k".parse::<TypeOverride>().unwrap_err().contains("b=q6_k is not a tensor type"));
        for bad in ["attn_q", "=q6_k", "attn_q=", "attn_q=q9", "attn_(=q6_k"] {
            assert!(bad.parse::<TypeOverride>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_has_one_a_word() {
        let list = TypeOverride::parse_list("attn_q=q8_0\n\tattn_k=f16 ").unwrap();
        assert_eq!(list.iter().map(|o| o.kind).collect::<Vec<_>>(), [TensorType::Q8_0, TensorType::F16]);
        assert!(TypeOverride::parse_list("attn_q = q8_0").is_err());
    }
}
