//! How byte-level vocabularies cut a text before the merges, by the names that llama.cpp gives to the ways. The
//! expressions are those of the models' own tokenizer.json where llama.cpp quotes them.
//! Source: `llm_tokenizer_bpe` and `llama_vocab::impl::load` of src/llama-vocab.cpp.

use serde_json::{Value, json};

use super::super::keys::TOKENIZER_REMEDY as REMEDY;
use crate::error::{Error, Result, escaped};

/// A way to cut a text.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    names: &'static [&'static str],
    cuts: Cuts,
    /// Whether a word that is a token is taken as it is.
    pub(crate) whole_words: bool,
    /// Whether a text begins with the first token, where the file does not say.
    pub(crate) adds_bos: bool,
    /// Whether accents are composed first (NFC). llama.cpp does not; the models' own tokenizers do.
    pub(crate) composes: bool,
}

#[derive(Debug)]
enum Cuts {
    /// As GPT-2.
    Gpt2,
    /// Every digit apart, then as GPT-2.
    Digits,
    /// At the matches of each expression in turn.
    At(&'static [&'static str]),
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const PLAIN: PreTokenizer =
    PreTokenizer { names: &[], cuts: Cuts::Gpt2, whole_words: false, adds_bos: false, composes: false };

const WAYS: [PreTokenizer; 15] = [
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        cuts: Cuts::Digits,
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        cuts: Cuts::At(&[LLAMA3]),
        whole_words: true,
        adds_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], cuts: Cuts::At(&[LLAMA3]), ..PLAIN },
    PreTokenizer { names: &["glm4", "glm5"], cuts: Cuts::At(&[LLAMA3]), whole_words: true, ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"],
        cuts: Cuts::At(&[QWEN2]),
        composes: true,
        ..PLAIN
    },
    PreTokenizer { names: &["stablelm2", "hunyuan", "solar-open", "grok-2"], cuts: Cuts::At(&[QWEN2]), ..PLAIN },
    PreTokenizer { names: &["qwen35"], cuts: Cuts::At(&[QWEN35]), composes: true, ..PLAIN },
    PreTokenizer { names: &["tekken"], cuts: Cuts::At(&[TEKKEN]), whole_words: true, adds_bos: true, ..PLAIN },
    PreTokenizer { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], cuts: Cuts::At(&[GPT4O]), ..PLAIN },
    PreTokenizer { names: &["seed-coder"], cuts: Cuts::At(&[SEED]), ..PLAIN },
    PreTokenizer { names: &["bailingmoe", "bailingmoe2", "llada-moe"], cuts: Cuts::At(&[BAILING]), ..PLAIN },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        cuts: Cuts::At(&[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3]),
        ..PLAIN
    },
    PreTokenizer { names: &["falcon"], cuts: Cuts::At(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]), ..PLAIN },
    PreTokenizer {
        names: &["default"],
        cuts: Cuts::At(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        ..PLAIN
    },
];

impl PreTokenizer {
    /// The way called `name`.
    pub(crate) fn of(name: &str) -> Result<&'static Self> {
        static ALL: [PreTokenizer; WAYS.len()] = WAYS;
        ALL.iter().find(|way| way.names.contains(&name)).ok_or_else(|| {
            Error::unsupported(
                format!("the tokenizer cuts texts in the way {}, which qft doesn't know", escaped(name)),
                REMEDY,
            )
        })
    }

    /// `pre_tokenizer` of tokenizer.json.
    pub(crate) fn json(&self) -> Value {
        let steps = match self.cuts {
            Cuts::Gpt2 => return byte_level(true),
            Cuts::Digits => vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)],
            Cuts::At(expressions) => {
                let split = |expression: &&str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
                expressions.iter().map(split).chain([byte_level(false)]).collect()
            }
        };
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// The part of tokenizer.json that maps bytes to printable characters; alone, it cuts a text as GPT-2 does.
pub(super) fn byte_level(cuts: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_way() {
        let mut names: Vec<&str> = WAYS.iter().flat_map(|way| way.names).copied().collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(PreTokenizer::of("qwen2").unwrap().composes && PreTokenizer::of("llama-bpe").unwrap().whole_words);
        assert!(PreTokenizer::of("\u{1b}").unwrap_err().to_string().contains("⟦tokenizer"));
    }
}
