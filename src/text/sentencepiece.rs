//! `tokenizer.model`, SentencePiece's model file: its pieces with their scores and kinds. A protocol buffer of which
//! only that is read (`ModelProto.pieces` in `sentencepiece_model.proto`); everything else is stepped over.

use std::collections::HashSet;

/// What a piece is, as `SentencePiece.Type` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the format's own")]
pub enum PieceKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// A piece of the vocabulary. Its place is its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text; never empty.
    pub text: String,
    /// Its score, a logarithm of a probability or a rank below zero.
    pub score: f32,
    /// What it is.
    pub kind: PieceKind,
}

/// A model of SentencePiece.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePiece {
    /// The pieces, by id.
    pub pieces: Vec<Piece>,
}

const PIECES: u64 = 1;
const PIECE_TEXT: u64 = 1;
const PIECE_SCORE: u64 = 2;
const PIECE_KIND: u64 = 3;

impl SentencePiece {
    /// Reads a model file. It must be one that the library of SentencePiece would load: no text twice or empty, and
    /// one piece for what is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            if let (PIECES, Wire::Bytes(message)) = (number, value) {
                pieces.push(piece(message).map_err(|problem| format!("piece {}: {problem}", pieces.len()))?);
            }
        }
        let mut seen = HashSet::with_capacity(pieces.len());
        if let Some(id) = pieces.iter().position(|piece| piece.text.is_empty() || !seen.insert(piece.text.as_str())) {
            return Err(format!("piece {id} has no text, or the text of an earlier piece"));
        }
        match pieces.iter().filter(|piece| piece.kind == PieceKind::Unknown).count() {
            1 => Ok(Self { pieces }),
            unknown => Err(format!("has {unknown} pieces for unknown text, and must have one")),
        }
    }
}

fn piece(message: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        match field {
            (PIECE_TEXT, Wire::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| "its text is not UTF-8")?;
            }
            (PIECE_SCORE, Wire::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (PIECE_KIND, Wire::Varint(kind)) => piece.kind = PieceKind::from_number(kind).unwrap_or(piece.kind),
            _ => {}
        }
    }
    Ok(piece)
}

impl PieceKind {
    fn from_number(number: u64) -> Option<Self> {
        use PieceKind as K;
        let all = [K::Normal, K::Unknown, K::Control, K::UserDefined, K::Unused, K::Byte];
        all.into_iter().find(|kind| *kind as u64 == number)
    }
}

/// A field's value, as it is coded.
enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message that are left.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field: its number and value.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed64)?,
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(len).map_err(|_| CUT.to_owned())?)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Fixed32(bytes.try_into().map(u32::from_le_bytes).map_err(|_| CUT.to_owned())?)
            }
            _ => return Err("has a field of an unknown kind".to_owned()),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(CUT)?;
        self.0 = tail;
        Ok(head)
    }

    /// Seven bits a byte, the lowest first; at most ten bytes.
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            // Bits above the 64th fall away, as in every reader of the format.
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("has a number of more than ten bytes".to_owned())
    }
}

const CUT: &str = "ends in the middle of a field";

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece as a field of a model.
    fn field(text: &[u8], score: f32, kind: u8) -> Vec<u8> {
        let mut message = vec![0x0a, text.len() as u8];
        message.extend(text);
        message.push(0x15);
        message.extend(score.to_le_bytes());
        message.extend([0x18, kind]);
        [&[0x0a, message.len() as u8][..], &message].concat()
    }

    #[test]
    fn reads_pieces_and_steps_over_the_rest() {
        let trainer = [0x12, 0x02, 0x18, 0x02];
        let model =
            [&field(b"<unk>", 0.0, 2)[..], &trainer, &field("▁a".as_bytes(), -1.5, 1), &[0x0a, 3, 0x0a, 1, b'b']];
        let pieces = SentencePiece::parse(&model.concat()).unwrap().pieces;
        let found: Vec<_> = pieces.iter().map(|p| (p.text.as_str(), p.score, p.kind)).collect();
        let expected =
            [("<unk>", 0.0, PieceKind::Unknown), ("▁a", -1.5, PieceKind::Normal), ("b", 0.0, PieceKind::Normal)];
        assert_eq!(found, expected);
    }

    #[test]
    fn refuses_what_the_library_would_not_load() {
        let unknown = field(b"<unk>", 0.0, 2);
        let twice = [&unknown[..], &field(b"a", 0.0, 1), &field(b"a", 0.0, 1)].concat();
        for model in [vec![], field(b"a", 0.0, 1), twice, [&unknown[..], &field(b"", 0.0, 1)].concat()] {
            assert!(SentencePiece::parse(&model).is_err(), "{model:?}");
        }
        assert!(SentencePiece::parse(&[&unknown[..], &field(&[0xff], 0.0, 1)].concat()).unwrap_err().contains("UTF-8"));
    }

    proptest::proptest! {
        #[test]
        fn pieces_come_back(texts in proptest::collection::hash_set("[a-z▁层]{1,30}", 0..20), score: f32, kind in 3u8..7) {
            let fields = texts.iter().map(|text| field(text.as_bytes(), score, kind));
            let model: Vec<u8> = std::iter::once(field(b"<unk>", 0.0, 2)).chain(fields).flatten().collect();
            let pieces = SentencePiece::parse(&model).unwrap().pieces;
            proptest::prop_assert_eq!(pieces.len(), texts.len() + 1);
            for (piece, text) in pieces[1..].iter().zip(&texts) {
                proptest::prop_assert_eq!((&piece.text, piece.score.to_bits()), (text, score.to_bits()));
                proptest::prop_assert_eq!(piece.kind as u8, kind);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = SentencePiece::parse(&bytes);
        }
    }

    #[test]
    fn no_length_reaches_beyond_the_file() {
        for model in [&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0x80; 11], &[0x0a], &[0x0b], &[0x09, 1, 2]] {
            assert!(SentencePiece::parse(model).is_err(), "{model:?}");
        }
        let model = field(b"<unk>", 0.0, 2);
        for end in 1..model.len() {
            assert!(SentencePiece::parse(&model[..end]).is_err(), "{end}");
        }
    }
}
