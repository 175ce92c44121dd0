//! `model.safetensors.index.json`: which shard holds which tensor. Reading and checking; `export::shard` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result, escaped};
use crate::files::{cannot_open, read_text};

const REMEDY: &str = "download the model again, or repair its index";

/// A checked index.
#[derive(Debug, Clone, Default)]
pub struct ShardIndex {
    /// Tensor name to file name. Each file name is a plain name without separators.
    pub weight_map: BTreeMap<String, String>,
    /// `metadata.total_size` in bytes, where it is given as a whole number.
    pub total_size: Option<u64>,
    /// `metadata.total_parameters`, likewise.
    pub total_parameters: Option<u64>,
}

impl ShardIndex {
    /// Parses the text of an index and checks that each shard is a plain file name.
    pub fn parse(text: &str) -> Result<Self, String> {
        // By hand, since what serde derives would take a list for the object.
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let weight_map = members.get("weight_map").ok_or("has no weight_map")?;
        let weight_map: BTreeMap<String, String> =
            serde_json::from_str(weight_map.get()).map_err(|e| format!("weight_map: {e}"))?;
        if weight_map.is_empty() {
            return Err("its weight_map names no tensor".to_owned());
        }
        for (tensor, file) in &weight_map {
            check_file_name(file).map_err(|e| format!("weight_map[{}]: {e}", escaped(tensor)))?;
        }
        let metadata = members.get("metadata").and_then(|m| serde_json::from_str::<Value>(m.get()).ok());
        let number = |key| metadata.as_ref()?.get(key)?.as_u64();
        Ok(Self { total_size: number("total_size"), total_parameters: number("total_parameters"), weight_map })
    }

    /// Reads the index at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        Self::parse(&text).map_err(|problem| Error::malformed(path, problem, REMEDY))
    }

    /// The shards' file names, sorted.
    pub fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// Accepts a plain `*.safetensors` file name: no directory, no parent, no absolute path, on any system.
fn check_file_name(name: &str) -> Result<(), String> {
    let shown = escaped(name);
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !plain || name.contains(['/', '\\', ':']) || name.contains(char::is_control) {
        return Err(format!(
            "{shown:?} is not a file name without a directory; a shard must be in the directory of its index"
        ));
    }
    if Path::new(name).extension().is_none_or(|e| e != "safetensors") {
        return Err(format!("{shown:?} is not a .safetensors file; qft executes no pickle"));
    }
    Ok(())
}

/// Resolves file `name` of the model in `dir`, and refuses a link that leads out of the model. A link into the `blobs` of
/// a Hugging Face cache is how that cache works, and how older downloads filled a directory of the user's choice.
pub fn resolve_member(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let real = std::fs::canonicalize(&path).map_err(cannot_open(&path))?;
    let root = std::fs::canonicalize(dir).map_err(Error::io("open", dir))?;
    if real.starts_with(&root) || is_blob(&real) {
        return Ok(path);
    }
    Err(Error::malformed(
        &path,
        format!("is a link out of the model's directory, to {}", crate::error::shown(&real)),
        format!("make a copy of the model without links, and give that: cp -rL {} DIR", crate::error::quoted(dir)),
    ))
}

/// Whether a file is `models--ORG--NAME/blobs/DIGEST`.
fn is_blob(real: &Path) -> bool {
    let blobs = real.parent().filter(|dir| dir.ends_with("blobs"));
    let repo = blobs.and_then(Path::parent).and_then(Path::file_name);
    repo.is_some_and(|name| name.to_string_lossy().starts_with("models--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_map_and_the_totals() {
        let index = ShardIndex::parse(
            r#"{"metadata":{"total_size":12,"total_parameters":6},"weight_map":{"b":"x.safetensors","a":"x.safetensors"}}"#,
        )
        .unwrap();
        assert_eq!(index.files().into_iter().collect::<Vec<_>>(), ["x.safetensors"]);
        assert_eq!((index.total_size, index.total_parameters), (Some(12), Some(6)));
        assert_eq!(
            ShardIndex::parse(r#"{"metadata":{"total_size":1.5},"weight_map":{"a":"x.safetensors"}}"#)
                .unwrap()
                .total_size,
            None
        );
    }

    #[test]
    fn refuses_what_names_no_tensor_or_is_no_object() {
        for text in ["{}", r#"{"weight_map":{}}"#, r#"[{},{"a":"x.safetensors"}]"#, r#"{"weight_map":[]}"#] {
            assert!(ShardIndex::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_paths() {
        for file in [
            "../x.safetensors",
            "a/x.safetensors",
            "/etc/x.safetensors",
            "..",
            ".",
            "",
            "C:x.safetensors",
            "a\\x.safetensors",
            "x.bin",
            "x\0.safetensors",
        ] {
            let text = serde_json::json!({"weight_map": {"a": file}}).to_string();
            assert!(ShardIndex::parse(&text).is_err(), "{file:?}");
        }
    }
}
