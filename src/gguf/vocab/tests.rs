//! Whole tokenizers against the keys that llama.cpp's converter wrote for them: `fixtures/make_tokenizers.py`.

use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::*;

/// The files of a model in a directory.
fn model(dir: &Path) -> ModelFiles {
    let mut files = ModelFiles { directory: "model".to_owned(), ..ModelFiles::default() };
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            for inner in fs::read_dir(&path).unwrap() {
                let inner = inner.unwrap().path();
                files.paths.insert(format!("{name}/{}", inner.file_name().unwrap().to_str().unwrap()), inner);
            }
        } else if name == "config.json" {
            files.config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        } else {
            files.paths.insert(name, path);
        }
    }
    files
}
