//! tokenizer.model: a SentencePiece model of the file's pieces and scores, which tokenizer.json does not keep. Written
//! so that a converter finds all it needs; format: `sentencepiece_model.proto` of SentencePiece.

use super::Special;
use super::vocabulary::{CONTROL, Vocabulary};

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;
/// Fields of `TrainerSpec` with the ids of special tokens.
const ID_FIELDS: [(&str, u64); 4] = [("unk_token", 40), ("bos_token", 41), ("eos_token", 42), ("pad_token", 43)];

/// The bytes of the file. `prefix` is whether a text gets a space before it.
pub(crate) fn encode(vocabulary: &Vocabulary<'_>, prefix: bool, special: &[Special<'_>]) -> Vec<u8> {
    let id = |name: &str| special.iter().find(|token| token.name == name).map(|token| token.id);
    let mut model = Message::default();
    for (at, token) in vocabulary.tokens[..vocabulary.base].iter().enumerate() {
        let mut piece = Message::default();
        piece.bytes(1, token.as_bytes());
        piece.float(2, vocabulary.score(at));
        // The numbers of the types are the same; SentencePiece wants exactly one unknown piece.
        let kind = match vocabulary.kind(at) {
            _ if id("unk_token") == Some(at as u64) => 2,
            2 => CONTROL,
            kind => kind,
        };
        piece.number(3, u64::from(kind.unsigned_abs()));
        model.bytes(1, &piece.0);
    }
    let mut trainer = Message::default();
    trainer.number(3, BPE);
    trainer.number(4, vocabulary.base as u64);
    trainer.number(35, 1);
    for (name, field) in ID_FIELDS {
        // Minus one says that there is none.
        trainer.number(field, id(name).filter(|id| *id < vocabulary.base as u64).unwrap_or(u64::MAX));
    }
    for (name, field) in [("unk_token", 45), ("bos_token", 46), ("eos_token", 47), ("pad_token", 48)] {
        if let Some(token) = special.iter().find(|token| token.name == name) {
            trainer.bytes(field, token.text.as_bytes());
        }
    }
    model.bytes(2, &trainer.0);
    let mut normalizer = Message::default();
    normalizer.bytes(1, b"identity");
    normalizer.number(3, u64::from(prefix));
    normalizer.number(4, 0);
    normalizer.number(5, 1);
    model.bytes(3, &normalizer.0);
    model.0
}

/// A message of protocol buffers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3 | VARINT);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_coded_as_the_format_says() {
        let mut message = Message::default();
        message.number(3, 300);
        message.bytes(1, b"ab");
        message.float(2, 1.0);
        assert_eq!(message.0, [0x18, 0xac, 0x02, 0x0a, 2, b'a', b'b', 0x15, 0, 0, 0x80, 0x3f]);
        let mut none = Message::default();
        none.number(43, u64::MAX);
        assert_eq!(none.0.len(), 2 + 10, "minus one of an int32 takes ten bytes");
    }
}
