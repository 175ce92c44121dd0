//! SentencePiece's model file. Every piece that is read has a text of its own, and one stands for what is unknown.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qft::text::{PieceKind, SentencePiece};

fuzz_target!(|data: &[u8]| {
    let Ok(model) = SentencePiece::parse(data) else { return };
    let mut texts: Vec<&str> = model.pieces.iter().map(|piece| piece.text.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), model.pieces.len());
    assert!(!texts.contains(&""));
    assert_eq!(model.pieces.iter().filter(|piece| piece.kind == PieceKind::Unknown).count(), 1);
    assert!(model.pieces.len() < data.len());
});
