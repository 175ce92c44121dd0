//! `ModelScope`'s cache. Nothing is downloaded from there.

use std::path::{Path, PathBuf};

use super::{Id, Located, Source};

/// `ModelScope`'s cache.
#[derive(Debug, Clone)]
pub struct ModelScope {
    cache: PathBuf,
}

impl ModelScope {
    /// The cache in the directory `cache`.
    pub fn new(cache: PathBuf) -> Self {
        Self { cache }
    }
}

impl Source for ModelScope {
    fn cache(&self) -> &Path {
        &self.cache
    }

    /// `ModelScope` writes dots in names as `___`; its older releases had no `models` level; and the variable may name
    /// the parent of `hub`. It keeps no revisions apart.
    fn cached(&self, id: &Id) -> Vec<Located> {
        let (Some((org, name)), None) = (id.name().split_once('/'), id.asked()) else { return Vec::new() };
        let orgs = ["models", "", "hub/models", "hub"].map(|level| self.cache.join(level).join(org));
        let dirs = orgs.iter().flat_map(|dir| [dir.join(name.replace('.', "___")), dir.join(name)]);
        let located = |dir| Located { dir, repo: Some(id.name().to_owned()), revision: None };
        dirs.filter(|dir| dir.is_dir()).map(located).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_layouts_are_known() {
        for place in [
            "models/Qwen/Qwen3-0___6B",
            "Qwen/Qwen3-0___6B",
            "hub/models/Qwen/Qwen3-0___6B",
            "hub/Qwen/Qwen3-0___6B",
            "models/Qwen/Qwen3-0.6B",
        ] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join(place);
            std::fs::create_dir_all(&dir).unwrap();
            let cached = |spec: &str| ModelScope::new(root.path().to_owned()).cached(&Id::parse(spec).unwrap());
            let expected = Located { dir, repo: Some("Qwen/Qwen3-0.6B".to_owned()), revision: None };
            assert_eq!(cached("Qwen/Qwen3-0.6B"), [expected]);
            assert_eq!(cached("Qwen/Qwen3-0.6B@v1"), [], "revisions are not kept apart there");
            assert_eq!(cached("Qwen"), []);
        }
    }
}
