//! How much text a token can cover at most, so that text is known to have many tokens before it is tokenized. Only
//! tokenizers of which that is certain have a reach: BPE that knows every byte, and drops nothing but white space.

use std::collections::HashMap;

use serde_json::Value;

/// What NFC may shrink text to at most: a ninth, since either of two spellings has at most thrice the other's bytes when
/// it is taken apart.
const SHRINKS: usize = 9;
/// Stands for a space in vocabularies of `SentencePiece`'s kind.
const SPACE: char = '\u{2581}';
/// Byte-level characters of a tab, a line feed, a carriage return and a space.
const BLANKS: [char; 4] = ['\u{109}', '\u{10a}', '\u{10d}', '\u{120}'];

/// The reach of a tokenizer's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Bytes of the longest token that are no white space.
    longest: usize,
    /// Whether text is composed (NFC) first.
    composes: bool,
}

impl Reach {
    /// The reach of the tokenizer that `json` is without its tables, and whose tokens are `vocab`.
    pub(crate) fn new(json: &Value, vocab: &HashMap<String, u32>) -> Option<Self> {
        let none = Value::Null;
        let part = |name: &str| json.get(name).unwrap_or(&none);
        let model = part("model");
        let plain = |name: &str| model.get(name).is_none_or(Value::is_null);
        if model.get("type").and_then(Value::as_str) != Some("BPE") || !plain("dropout") {
            return None;
        }
        let (normalizers, pre) =
            (parts(part("normalizer"), "normalizers")?, parts(part("pre_tokenizer"), "pretokenizers")?);
        let is = |part: &&Value, name: &str| part.get("type").and_then(Value::as_str) == Some(name);
        let bytes = pre.iter().chain(&normalizers).any(|part| is(part, "ByteLevel"));
        let knows_all = if bytes {
            byte_characters().all(|c| vocab.contains_key(&*c.encode_utf8(&mut [0; 4])))
        } else {
            let fallback = model.get("byte_fallback").and_then(Value::as_bool) == Some(true);
            fallback && (0..=255).all(|byte: u8| vocab.contains_key(&format!("<0x{byte:02X}>")))
        };
        if !knows_all || !normalizers.iter().all(|part| keeps_text(part)) || !pre.iter().all(|part| keeps_pieces(part))
        {
            return None;
        }
        let solid = |token: &String| {
            if bytes { token.chars().filter(|c| !BLANKS.contains(c)).map(char::len_utf8).sum() } else { solid(token) }
        };
        let longest = vocab.keys().map(solid).max().filter(|longest: &usize| *longest > 0)?;
        Some(Self { longest, composes: normalizers.iter().any(|part| is(part, "NFC")) })
    }

    /// The fewest tokens that `text` can have.
    pub(crate) fn fewest(self, text: &str) -> usize {
        let mut ninths = 0;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if c.is_whitespace() || c == SPACE {
                continue;
            }
            // Only what follows a character can be composed with it; ideographs are never.
            let stays = match c {
                '\u{4e00}'..='\u{9fff}' => true,
                _ => c.is_ascii() && chars.peek().is_none_or(char::is_ascii),
            };
            ninths += if stays || !self.composes { SHRINKS * c.len_utf8() } else { c.len_utf8() };
        }
        (ninths / SHRINKS).div_ceil(self.longest)
    }
}

/// Bytes that are no white space, nor stand for it.
fn solid(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace() && *c != SPACE).map(char::len_utf8).sum()
}

/// The parts of a sequence, or the one part that it is; `None` if sequences nest.
fn parts<'v>(whole: &'v Value, name: &str) -> Option<Vec<&'v Value>> {
    match whole.get("type").and_then(Value::as_str) {
        None => whole.is_null().then(Vec::new),
        Some("Sequence") => Some(whole.get(name)?.as_array()?.iter().collect()),
        Some(_) => Some(vec![whole]),
    }
}

/// Whether a normalizer leaves at least as much text as there was, but for white space and NFC.
fn keeps_text(normalizer: &Value) -> bool {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(solid);
    match normalizer.get("type").and_then(Value::as_str) {
        Some("NFC" | "Prepend" | "ByteLevel" | "Strip") => true,
        Some("Replace") => {
            let pattern = text(normalizer.get("pattern").and_then(|pattern| pattern.get("String")));
            pattern.zip(text(normalizer.get("content"))).is_some_and(|(pattern, content)| content >= pattern)
        }
        _ => false,
    }
}

/// Whether a pre-tokenizer drops nothing but white space.
fn keeps_pieces(pre: &Value) -> bool {
    match pre.get("type").and_then(Value::as_str) {
        Some("ByteLevel" | "Metaspace" | "Digits") => true,
        Some("Split" | "Punctuation") => {
            pre.get("behavior").and_then(Value::as_str).is_some_and(|behavior| behavior != "Removed")
        }
        _ => false,
    }
}

/// The characters that stand for bytes (`bytes_char` of the `tokenizers` crate): printable ones for themselves, the others
/// from U+0100 on.
fn byte_characters() -> impl Iterator<Item = char> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = 256 - (0..256).filter(printable).count() as u32;
    (0..256).filter(printable).chain(0x100..0x100 + others).filter_map(char::from_u32)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vocab(more: &[&str]) -> HashMap<String, u32> {
        let bytes = byte_characters().map(String::from);
        bytes.chain(more.iter().map(|text| (*text).to_owned())).zip(0..).collect()
    }

    fn byte_level(normalizer: &Value, more: &[&str]) -> Option<Reach> {
        let json = json!({"model": {"type": "BPE"}, "normalizer": normalizer, "pre_tokenizer": {"type": "Sequence",
            "pretokenizers": [{"type": "Split", "behavior": "Isolated"}, {"type": "ByteLevel"}]}});
        Reach::new(&json, &vocab(more))
    }

    #[test]
    fn text_has_as_many_tokens_as_the_longest_cover() {
        assert_eq!(byte_characters().count(), 256);
        let plain = byte_level(&Value::Null, &["abcd", "\u{120}\u{120}\u{120}\u{120}\u{120}\u{120}ab"]).unwrap();
        assert_eq!(plain, Reach { longest: 4, composes: false });
        assert_eq!(plain.fewest("abcdabcda   \n"), 3);
        assert_eq!(plain.fewest("ééé"), 2);
        let nfc = byte_level(&json!({"type": "NFC"}), &["abcd"]).unwrap();
        assert_eq!(nfc.fewest(&"x".repeat(4000)), 1000);
        assert_eq!(nfc.fewest(&"层".repeat(4000)), 3000);
        // 36000 bytes of letters and marks may become a third; the bound says a ninth.
        assert_eq!(nfc.fewest(&"e\u{301}".repeat(12000)), 1000);
    }

    #[test]
    fn what_may_cover_more_has_no_reach() {
        let of = |json: &Value, vocab: &HashMap<String, u32>| Reach::new(json, vocab).is_some();
        let byte_level = json!({"type": "ByteLevel"});
        let mut json = json!({"model": {"type": "BPE"}, "pre_tokenizer": byte_level});
        assert!(of(&json, &vocab(&[])));
        let mut few = vocab(&[]);
        few.remove("a");
        assert!(!of(&json, &few), "unknown bytes are dropped");
        for (part, value) in [
            ("normalizer", json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""})),
            ("normalizer", json!({"type": "Replace", "pattern": {"String": "ab"}, "content": "a"})),
            ("normalizer", json!({"type": "NFKC"})),
            (
                "pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": [byte_level,
                {"type": "Split", "behavior": "Removed"}]}),
            ),
            ("model", json!({"type": "Unigram"})),
            ("model", json!({"type": "BPE", "dropout": 0.1})),
        ] {
            let before = json.clone();
            json[part] = value;
            assert!(!of(&json, &vocab(&[])), "{json}");
            json = before;
        }
        let pieces: HashMap<String, u32> = (0..=255_u32).map(|byte| (format!("<0x{byte:02X}>"), byte)).collect();
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let spm = |fallback: bool| {
            json!({"model": {"type": "BPE", "byte_fallback": fallback},
                "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, space]}})
        };
        assert!(of(&spm(true), &pieces) && !of(&spm(false), &pieces));
    }
}
