//! How much a tokenizer can make of a text: how many times as long its normalizers make it, and whether the work of its
//! other parts is bounded. Untrusted files may request any memory or time with a few bytes; those that do are refused here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;
use serde_json::Value;

/// The most that normalizers may make of a text, as a multiple. The longest form of a character that Unicode knows has 33
/// bytes, and a space of `SentencePiece` 3.
const MOST: u64 = 256;
/// What is put before a text once may have so many bytes.
const MOST_PREPENDED: usize = 64;
/// Most characters of a word that `WordPiece` may look up, in time of their square: 100 by default.
const MOST_WORD: u64 = 1000;
/// The parts that work on a text one after the other, and most JSON values that they may have together: models have some
/// dozens.
const PARTS: [&str; 4] = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];
const MOST_VALUES: usize = 4096;
/// Most tokens that are searched in every text. Models that speak have some ten thousand.
const MOST_ADDED: usize = 1 << 18;

/// How many times as long the normalizers of `json`, a tokenizer.json, can make a text; an error says why it is of no use.
pub(crate) fn growth(json: &Value) -> Result<u64, String> {
    let word = json.get("model").and_then(|model| model.get("max_input_chars_per_word")?.as_u64()).unwrap_or(0);
    if word > MOST_WORD {
        return Err(format!("its model looks up words of {word} characters; at most {MOST_WORD} are supported"));
    }
    let parts = PARTS.iter().filter_map(|part| json.get(part));
    let values: usize = parts.map(values).sum();
    if values > MOST_VALUES {
        return Err(format!("its {} have {values} values; at most {MOST_VALUES} are supported", PARTS.join(", ")));
    }
    let added = json.get("added_tokens").and_then(Value::as_array).map_or(0, Vec::len);
    if added > MOST_ADDED {
        return Err(format!("it adds {added} tokens to its model's; at most {MOST_ADDED} are supported"));
    }
    let growth = json.get("normalizer").map_or(1, of_normalizer);
    if growth > MOST {
        return Err(format!(
            "its normalizers can make a text {growth} times as long; at most {MOST} times is supported"
        ));
    }
    Ok(growth)
}

/// How many values `value` is made of.
fn values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(values).sum::<usize>(),
        _ => 1,
    }
}

fn of_normalizer(normalizer: &Value) -> u64 {
    let text = |name: &str| normalizer.get(name).and_then(Value::as_str).unwrap_or_default();
    match normalizer.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let parts = normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten();
            parts.map(of_normalizer).fold(1, u64::saturating_mul)
        }
        Some("Replace") => replaced(normalizer.get("pattern").unwrap_or(&Value::Null), text("content").len() as u64),
        Some("Prepend") if text("prepend").len() > MOST_PREPENDED => text("prepend").len() as u64,
        // A byte becomes a character of two, and an ideograph gets a space on both sides.
        Some("ByteLevel" | "BertNormalizer") => 2,
        Some("Precompiled") => longest_replacement(text("precompiled_charsmap")),
        _ => 1,
    }
}

/// The growth of a replacement of `pattern` by `content` bytes.
fn replaced(pattern: &Value, content: u64) -> u64 {
    if let Some(text) = pattern.get("String").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        return content.div_ceil(text.len() as u64).max(1);
    }
    let regex = pattern.get("Regex").and_then(Value::as_str).unwrap_or_default();
    // What matches nothing puts its content before each character. Of what this crate can't read, that has to be feared.
    let consumes = Regex::new(regex).is_ok_and(|regex| !regex.is_match(""));
    if consumes { content.max(1) } else { content.saturating_add(1) }
}

/// Bytes of the longest text that a character map can put in a character's place. The map is a trie, its length in four
/// bytes before it, and the texts, each with a zero after it (`spm_precompiled`).
fn longest_replacement(map: &str) -> u64 {
    // A map that is none is refused by the crate.
    let Ok(bytes) = STANDARD.decode(map) else { return 1 };
    let texts = bytes.split_first_chunk().and_then(|(len, rest)| rest.get(u32::from_le_bytes(*len) as usize..));
    let longest = texts.unwrap_or_default().split(|byte| *byte == 0).map(<[u8]>::len).max();
    longest.unwrap_or(0).max(1) as u64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(pattern: &Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    fn of(normalizers: &[Value]) -> Result<u64, String> {
        growth(&json!({"normalizer": {"type": "Sequence", "normalizers": normalizers}}))
    }

    #[test]
    fn what_models_have_is_small() {
        let space = replace(&json!({"String": " "}), "\u{2581}");
        assert_eq!(of(&[json!({"type": "Prepend", "prepend": "\u{2581}"}), space.clone()]), Ok(3));
        let quotes = ["``", "''"].map(|quote| replace(&json!({"String": quote}), "\""));
        assert_eq!(of(&[&quotes[..], &[json!({"type": "NFKD"}), json!({"type": "Lowercase"})]].concat()), Ok(1));
        assert_eq!(of(&[replace(&json!({"Regex": " {2,}"}), "\u{2581}"), json!({"type": "ByteLevel"})]), Ok(6));
        assert_eq!(growth(&json!({"normalizer": null, "model": {"max_input_chars_per_word": 100}})), Ok(1));
        let map = [&4u32.to_le_bytes()[..], b"triea\0bcd\0\0"].concat();
        assert_eq!(of(&[json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map)})]), Ok(3));
    }

    #[test]
    fn what_grows_is_refused_with_the_number() {
        let double = replace(&json!({"String": "a"}), "aa");
        assert_eq!(of(&vec![double.clone(); 8]), Ok(256));
        assert!(of(&vec![double; 30]).unwrap_err().contains("1073741824 times"));
        let empty = ["", "x*", "(?=a)", "("].map(|pattern| replace(&json!({"Regex": pattern}), "b"));
        assert!(empty.iter().all(|normalizer| of(std::slice::from_ref(normalizer)) == Ok(2)));
        assert!(of(&[replace(&json!({"String": ""}), &"b".repeat(256))]).is_err());
        assert!(of(&[json!({"type": "Prepend", "prepend": "x".repeat(1000)})]).is_err());
        assert!(of(&vec![json!({"type": "Sequence", "normalizers": [{"type": "ByteLevel"}]}); 9]).is_err());
        let map = [&0u32.to_le_bytes()[..], "y".repeat(70_000).as_bytes()].concat();
        assert!(of(&[json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map)})]).is_err());
        assert!(of(&vec![json!({"type": "NFC"}); 3000]).unwrap_err().contains("at most 4096"));
        assert!(growth(&json!({"added_tokens": vec![0; 300_000]})).unwrap_err().contains("300000 tokens"));
        assert!(growth(&json!({"model": {"max_input_chars_per_word": 1_000_000}})).unwrap_err().contains("1000000"));
    }
}
