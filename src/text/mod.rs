//! Text and tokens: a model's tokenizer, its chat template, and the token that ends a turn. Knows no training data and
//! no GGUF.

pub(crate) mod growth;
pub(crate) mod pre;
mod python;
mod reach;
mod room;
mod sentencepiece;
pub(crate) mod sources;
pub(crate) mod tables;
mod template;
mod text_tokenizer;
pub(crate) mod tokenizer;
mod turn_end;
pub(crate) mod words;

pub use sentencepiece::{Piece, PieceKind, SentencePiece};
pub(crate) use sources::token_text;
pub use template::ChatTemplate;
pub(crate) use text_tokenizer::TextTokenizer;
pub use turn_end::{TurnEnd, stops, turn_end, turn_end_of};

/// Most tokens of a vocabulary: the largest known has under 300,000.
pub(crate) const MAX_TOKENS: usize = 1 << 22;
