//! SHA-256 of files and of whole models.

use sha2::{Digest, Sha256};

/// A SHA-256 as lower-case hex.
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

/// The digest of a model: SHA-256 over one line `<sha256 of the tensor's bytes>  <dtype> <shape> <name>` a tensor,
/// sorted by name. It does not depend on how the model is sharded.
pub(super) fn of_model<'a>(tensors: impl Iterator<Item = (&'a str, String, &'a [usize], &'a str)>) -> Hex {
    let mut lines: Vec<(&str, String)> =
        tensors.map(|(name, dtype, shape, digest)| (name, format!("{digest}  {dtype} {shape:?} {name}\n"))).collect();
    lines.sort();
    let mut hasher = Sha256::new();
    for (_, line) in lines {
        hasher.update(line.as_bytes());
    }
    hex(&hasher.finalize())
}
