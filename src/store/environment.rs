//! What the environment says about caches and the Hub, by the rules of `huggingface_hub` and modelscope.

use std::ffi::OsString;
use std::path::PathBuf;
use std::{env, fs};

use super::{Hub, ModelScope, Source};

/// What the environment says about caches and the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The Hugging Face cache.
    pub hf_cache: PathBuf,
    /// `ModelScope`'s cache.
    pub modelscope_cache: PathBuf,
    /// The Hub's address, without a slash at its end.
    pub endpoint: String,
    /// The token that opens private and gated repositories there.
    pub token: Option<String>,
    /// Whether nothing may be downloaded.
    pub offline: bool,
}

impl Environment {
    /// Reads the environment of this process.
    pub fn read() -> Self {
        Self::from_vars(|name| env::var_os(name))
    }

    /// As [`Self::read`], with `var` in place of the environment.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.is_empty()));
        let text = |names: &[&str]| first(names).map(|value| value.to_string_lossy().trim().to_owned());
        let home = first(&["HOME"]).map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let expand = |path: PathBuf| path.strip_prefix("~").map(|rest| home.join(rest)).unwrap_or(path);
        let path = |names: &[&str]| first(names).map(|value| expand(PathBuf::from(value)));
        let switch = |name| text(&[name]).is_some_and(|value| is_true(&value));

        let cache = path(&["XDG_CACHE_HOME"]).unwrap_or_else(|| home.join(".cache"));
        let hf_home = path(&["HF_HOME"]).unwrap_or_else(|| cache.join("huggingface"));
        let token_file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| hf_home.join("token"));
        let token = text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]);
        let endpoint = text(&["HF_ENDPOINT"]).unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            hf_cache: path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| hf_home.join("hub")),
            modelscope_cache: path(&["MODELSCOPE_CACHE"]).unwrap_or_else(|| home.join(".cache/modelscope/hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token
                .or_else(|| fs::read_to_string(token_file).ok().map(|t| t.trim().to_owned()))
                .filter(|t| !t.is_empty()),
            offline: switch("HF_HUB_OFFLINE") || switch("TRANSFORMERS_OFFLINE"),
        }
    }

    /// The sources that it speaks of, in the order in which they are asked.
    pub fn sources(&self) -> Vec<Box<dyn Source>> {
        let hub = Hub::new(self.hf_cache.clone(), self.endpoint.clone(), self.token.clone());
        vec![Box::new(hub), Box::new(ModelScope::new(self.modelscope_cache.clone()))]
    }
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Environment {
        let map: BTreeMap<String, OsString> = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.into())).collect();
        Environment::from_vars(move |name| map.get(name).cloned())
    }

    #[test]
    fn the_environment_has_the_rules_of_the_python_libraries() {
        let plain = from(&[("HOME", "/h"), ("HF_HOME", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(plain.hf_cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(plain.modelscope_cache, Path::new("/h/.cache/modelscope/hub"));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!((plain.token, plain.offline), (None, false));

        let at = |pairs: &[(&str, &str)]| from(&[&[("HOME", "/h")], pairs].concat()).hf_cache;
        assert_eq!(at(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(at(&[("HF_HOME", "~/x"), ("XDG_CACHE_HOME", "/x")]), Path::new("/h/x/hub"));
        assert_eq!(at(&[("HF_HOME", "/x"), ("HUGGINGFACE_HUB_CACHE", "/y")]), Path::new("/y"));
        assert_eq!(at(&[("HF_HUB_CACHE", "/z"), ("HUGGINGFACE_HUB_CACHE", "/y")]), Path::new("/z"));

        let set = from(&[("HF_ENDPOINT", "http://m/"), ("HF_TOKEN", " t\n")]);
        assert_eq!((set.endpoint.as_str(), set.token.as_deref()), ("http://m", Some("t")));
        for (name, value) in [("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "True"), ("HF_HUB_OFFLINE", "ON")] {
            assert!(from(&[(name, value)]).offline, "{name}={value}");
        }
    }

    #[test]
    fn the_saved_token_is_used_if_the_environment_has_none() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().to_str().unwrap();
        fs::write(root.path().join("token"), "saved\n").unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).token.as_deref(), Some("saved"));
        assert_eq!(from(&[("HF_HOME", home), ("HF_TOKEN", "t")]).token.as_deref(), Some("t"));
    }
}
