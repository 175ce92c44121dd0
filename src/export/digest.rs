//! Digests: SHA-256 of files, which anyone can check with sha256sum, and BLAKE3 of the base's tensors, which costs less
//! than half and has no such tool to please.

use sha2::{Digest, Sha256};

/// A digest as lower-case hex.
pub type Hex = String;

/// The digest in hex.
pub fn hex(digest: &[u8]) -> Hex {
    use std::fmt::Write;
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of `bytes` in hex.
pub fn sha256(bytes: &[u8]) -> Hex {
    hex(&Sha256::digest(bytes))
}

/// A digest that is being fed.
pub(super) enum Hasher {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(super) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    pub(super) fn blake3() -> Self {
        Self::Blake3(Box::default())
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    pub(super) fn finish(self) -> Hex {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Blake3(hasher) => hex(hasher.finalize().as_bytes()),
        }
    }
}

/// The digest of a model: BLAKE3 over one line `<BLAKE3 of the tensor's bytes>  <dtype> <shape> <name>` a tensor,
/// sorted by name. It does not depend on how the model is sharded.
pub(super) fn of_model<'a>(tensors: impl Iterator<Item = (&'a str, String, &'a [usize], &'a str)>) -> Hex {
    let mut lines: Vec<(&str, String)> =
        tensors.map(|(name, dtype, shape, digest)| (name, format!("{digest}  {dtype} {shape:?} {name}\n"))).collect();
    lines.sort();
    let mut hasher = Hasher::blake3();
    for (_, line) in lines {
        hasher.update(line.as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of FIPS 180 and of BLAKE3's paper for the empty input, fed in pieces.
    #[test]
    fn are_the_algorithms_that_they_say() {
        let of = |mut hasher: Hasher, pieces: &[&[u8]]| {
            pieces.iter().for_each(|piece| hasher.update(piece));
            hasher.finish()
        };
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(Hasher::sha256(), &[b"a", b"", b"bc"]), sha);
        assert_eq!(sha256(b"abc"), sha);
        let blake = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(of(Hasher::blake3(), &[b"", b""]), blake);
    }
}
