//! A small tokenizer that converters can open: byte-level BPE with every byte, a few merges and three special tokens.

use serde_json::{Map, Value, json};

/// Pairs that are merged, the first first; `Ġ` stands for a space.
const MERGES: [[&str; 2]; 8] =
    [["t", "h"], ["th", "e"], ["Ġ", "the"], ["i", "n"], ["in", "g"], ["e", "r"], ["o", "n"], ["Ġ", "a"]];
const END_OF_TEXT: &str = "<|endoftext|>";
const START_OF_TURN: &str = "<|im_start|>";
const END_OF_TURN: &str = "<|im_end|>";

/// `ChatML`, with the generation of answers after `add_generation_prompt`.
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// `tokenizer.json`.
pub(super) fn tokenizer() -> Value {
    let merged = MERGES.iter().map(|pair| pair.concat());
    let texts: Vec<String> = alphabet().into_iter().map(String::from).chain(merged).collect();
    let vocab: Map<String, Value> = texts.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect();
    let special = [END_OF_TEXT, START_OF_TURN, END_OF_TURN].iter().enumerate().map(|(i, text)| {
        let id = texts.len() + i;
        json!({
            "id": id, "content": text, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "vocab": vocab,
            "merges": MERGES,
        },
    })
}

/// `tokenizer_config.json`.
pub(super) fn config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": false,
    })
}

/// The characters that stand for the 256 bytes, as GPT-2 chose them: visible ones for themselves, the rest from U+0100 on.
fn alphabet() -> Vec<char> {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    (0..=u8::MAX).filter_map(|byte| if visible(byte) { Some(char::from(byte)) } else { others.next() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_and_every_merge_its_parts() {
        let alphabet = alphabet();
        assert_eq!((alphabet.len(), alphabet[0x20], alphabet[0x41], alphabet[0xad]), (256, 'Ġ', 'A', '\u{143}'));
        let tokenizer = tokenizer();
        let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
        assert_eq!(vocab.len(), 256 + MERGES.len());
        assert!(MERGES.iter().flatten().all(|part| vocab.contains_key(*part)));
        assert_eq!(tokenizer["added_tokens"][0]["id"], vocab.len());
    }
}
