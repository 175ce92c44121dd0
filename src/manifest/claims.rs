//! An untrusted manifest, read member by member: one that has not the form that it should have counts as
//! absent, and takes no other with it.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::checkpoint::{ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH, TokenizerChoice};
use crate::digest::Hex;
use crate::ggml::Quality;
use crate::merge::{Float, Overflow};

/// What a manifest says, whatever that is.
#[derive(Debug, Clone)]
pub(crate) struct Claims(Value);

/// An adapter that a release is said to be made from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClaimedAdapter {
    /// Factor on its deltas; 1 if the manifest gives none.
    pub(crate) weight: f64,
    /// SHA-256 of its weights.
    pub(crate) sha256: Option<Hex>,
}

impl Claims {
    /// Of any JSON.
    pub(crate) fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text).map(Self)
    }

    /// All of it, to be compared with what it should be.
    pub(crate) fn document(&self) -> &Value {
        &self.0
    }

    fn of<T: DeserializeOwned>(value: &Value) -> Option<T> {
        T::deserialize(value).ok()
    }

    /// The names of files with their SHA-256, which is empty where none is given; `None` if there is no list.
    pub(crate) fn files(&self) -> Option<impl Iterator<Item = (&str, &str)>> {
        let listed = self.0["files"].as_object()?.iter();
        Some(listed.map(|(name, entry)| (name.as_str(), entry["sha256"].as_str().unwrap_or_default())))
    }

    /// Whether `file` is listed.
    pub(crate) fn lists(&self, file: &str) -> bool {
        self.0["files"].get(file).is_some()
    }

    /// SHA-256 of a file, if it is listed.
    pub(crate) fn sha256(&self, file: &str) -> Option<&str> {
        self.0["files"][file]["sha256"].as_str()
    }

    /// Version of the program.
    pub(crate) fn version(&self) -> Option<&str> {
        self.0["qft"].as_str()
    }

    /// Most tensor bytes of a safetensors file.
    pub(crate) fn max_shard(&self) -> Option<u64> {
        self.0["options"]["max_shard"].as_u64()
    }

    /// Type that float tensors were cast to.
    pub(crate) fn dtype(&self) -> Option<Float> {
        self.0["options"]["dtype"].as_str().and_then(|name| name.parse().ok())
    }

    /// What happened to a value beyond the output type.
    pub(crate) fn overflow(&self) -> Overflow {
        if self.0["options"]["overflow"] == "clamp" { Overflow::Clamp } else { Overflow::Refuse }
    }

    /// Whose tokenizer the release has.
    pub(crate) fn tokenizer(&self) -> TokenizerChoice {
        Self::of(&self.0["options"]["tokenizer"]).unwrap_or_default()
    }

    /// The base's Hub id.
    pub(crate) fn repo(&self) -> Option<&str> {
        self.0["base"]["repo"].as_str()
    }

    /// The base's commit.
    pub(crate) fn revision(&self) -> Option<&str> {
        self.0["base"]["revision"].as_str()
    }

    /// The adapters, in the order in which they were applied; `None` if there is no list.
    pub(crate) fn adapters(&self) -> Option<Vec<ClaimedAdapter>> {
        let adapter = |entry: &Value| {
            let names = [ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH];
            let digest = names.iter().find_map(|name| entry["files"][name]["sha256"].as_str());
            ClaimedAdapter { weight: entry["weight"].as_f64().unwrap_or(1.0), sha256: digest.map(str::to_owned) }
        };
        self.0["adapters"].as_array().map(|list| list.iter().map(adapter).collect())
    }

    /// The names of the GGUF files.
    pub(crate) fn gguf(&self) -> impl Iterator<Item = &str> {
        self.0["gguf"].as_object().into_iter().flatten().map(|(name, _)| name.as_str())
    }

    /// How good the encoding of a tensor of a GGUF file is.
    pub(crate) fn quality(&self, file: &str, tensor: &str) -> Option<Quality> {
        Self::of(&self.0["gguf"][file]["tensors"][tensor]["quality"])
    }

    /// Which of the sums are those of the model whose first GGUF file that is.
    pub(crate) fn place_of_sums(&self, file: &str) -> Option<usize> {
        self.0["gguf_quality"].as_array()?.iter().position(|entry| entry["file"].as_str() == Some(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_another_form_takes_no_other_with_it() {
        let of = |text: &str| Claims::parse(text).unwrap();
        for text in ["null", "[]", "3", "{}", r#"{"files": 1, "options": [], "adapters": {}, "gguf": [1], "base": ""}"#]
        {
            let claims = of(text);
            assert!(claims.files().is_none() && !claims.lists("a") && claims.sha256("a").is_none(), "{text}");
            assert_eq!((claims.max_shard(), claims.dtype(), claims.overflow()), (None, None, Overflow::Refuse));
            assert_eq!((claims.adapters(), claims.repo(), claims.gguf().count()), (None, None, 0), "{text}");
            assert_eq!((claims.quality("a", "b"), claims.place_of_sums("a")), (None, None), "{text}");
        }
        let claims = of(r#"{"files": {"a": {"sha256": 1}, "b": {"sha256": "x"}},
            "options": {"max_shard": 1.5, "dtype": "f16", "overflow": "clamp", "tokenizer": 3},
            "adapters": [{"weight": "heavy"}, {"weight": 2, "files": {"adapter_model.bin": {"sha256": "y"}}}]}"#);
        assert_eq!(claims.files().unwrap().collect::<Vec<_>>(), [("a", ""), ("b", "x")]);
        assert_eq!((claims.max_shard(), claims.dtype()), (None, Some(Float::F16)));
        assert_eq!((claims.overflow(), claims.tokenizer()), (Overflow::Clamp, TokenizerChoice::Auto));
        let adapter = |weight, sha256: Option<&str>| ClaimedAdapter { weight, sha256: sha256.map(str::to_owned) };
        assert_eq!(claims.adapters().unwrap(), [adapter(1.0, None), adapter(2.0, Some("y"))]);
    }
}
