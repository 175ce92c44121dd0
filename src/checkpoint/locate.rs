//! Finding models: a directory, or the id of a repository that a cache holds complete, else one that can be downloaded.
//! Looks at names only; `wanted` says what is downloaded, `Checkpoint` reads the weights.

use std::ffi::OsString;
use std::path::Path;

use super::names::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH, CONFIG, INDEX_FILE, SINGLE_FILE};
use super::shard_index::ShardIndex;
use super::weights::WeightFiles;
use super::{instead, wanted};
use crate::error::{Error, Result, escaped, shown};
use crate::store::{self, Environment, Id, Located, Source};

/// Finds models, in directories and in the sources that it was given.
pub struct Locator {
    sources: Vec<Box<dyn Source>>,
    offline: bool,
}

impl Locator {
    /// Reads the environment, by the rules of `huggingface_hub` and modelscope.
    pub fn from_env() -> Self {
        Self::of(&Environment::read())
    }

    /// As [`Self::from_env`], with `var` in place of the environment.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        Self::of(&Environment::from_vars(var))
    }

    fn of(environment: &Environment) -> Self {
        Self::new(environment.sources(), environment.offline)
    }

    /// Asks `sources`, one after the other; if `offline`, their caches alone.
    pub fn new(sources: Vec<Box<dyn Source>>, offline: bool) -> Self {
        Self { sources, offline }
    }

    /// The model that `spec` names: a directory, else an id (`org/name`, `name`, either with `@revision`) that is complete
    /// in a cache, else that id on the Hub. Calls `on_download` with the name of each file before fetching it.
    pub fn model(&self, spec: &str, on_download: &mut dyn FnMut(&str)) -> Result<Located> {
        let path = Path::new(spec);
        if let Some(located) = store::directory(path) {
            return Ok(located);
        }
        if path.exists() {
            return Err(instead::no_directory(path));
        }
        let id = Id::parse(spec)?;
        let mut incomplete = Vec::new();
        for located in self.sources.iter().flat_map(|source| source.cached(&id)) {
            match missing(&located.dir) {
                None => return Ok(located),
                Some(what) => incomplete.push(format!("{} lacks {what}", shown(&located.dir))),
            }
        }
        // Such as models/qwne, where there is a directory models: a name on the Hub is told from it by a revision.
        if id.asked().is_none() && path.parent().is_some_and(|dir| !dir.as_os_str().is_empty() && dir.is_dir()) {
            return Err(store::no_such_directory(spec, true));
        }
        if !self.offline {
            for source in &self.sources {
                if let Some(remote) = source.open(&id)? {
                    return wanted::fetch(remote.as_ref(), on_download);
                }
            }
        }
        Err(self.not_cached(&id, &incomplete))
    }

    fn not_cached(&self, id: &Id, incomplete: &[String]) -> Error {
        let name = id.name();
        let at = id.asked().map(|r| format!(" at revision {r}")).unwrap_or_default();
        let caches: Vec<String> = self.sources.iter().map(|source| shown(source.cache())).collect();
        let mut problem = format!(
            "{name} is no directory{}, and no cache holds it complete{at}; looked in {}",
            store::nearly(Path::new(name)),
            caches.join(" and ")
        );
        for line in incomplete {
            problem.push_str("\n  ");
            problem.push_str(line);
        }
        let remedy = format!(
            "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or download it with `huggingface-cli download {name}` (now \
             `hf download`) or `modelscope download --model {name}`, or give a directory"
        );
        Error::not_found(problem, remedy)
    }
}

/// What the model in `dir` lacks: its config or a file of weights. `None` if it is complete.
fn missing(dir: &Path) -> Option<String> {
    let has = |name: &str| dir.join(name).is_file();
    if !has(CONFIG) && !has(ADAPTER_CONFIG) {
        return Some(CONFIG.to_owned());
    }
    if has(SINGLE_FILE) || (has(ADAPTER_CONFIG) && (has(ADAPTER_WEIGHTS) || has(ADAPTER_WEIGHTS_TORCH))) {
        return None;
    }
    if !has(INDEX_FILE) {
        if WeightFiles::find(dir).is_ok() {
            return None;
        }
        return Some(format!("{SINGLE_FILE} and {INDEX_FILE}"));
    }
    match ShardIndex::read(&dir.join(INDEX_FILE)) {
        Ok(index) => index.files().into_iter().find(|shard| !has(shard)).map(escaped),
        Err(_) => Some(format!("a readable {INDEX_FILE}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const INDEX: &str = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;

    fn vars(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let map: BTreeMap<String, OsString> = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.into())).collect();
        move |name| map.get(name).cloned()
    }

    /// A locator with both caches below `root`, and one more variable.
    fn locator(root: &Path, var: (&str, &str)) -> Locator {
        let at = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let [hf, ms, home] = [at("hf"), at("ms"), at("home")];
        Locator::from_vars(vars(&[("HF_HUB_CACHE", &hf), ("MODELSCOPE_CACHE", &ms), ("HOME", &home), var]))
    }

    fn find(root: &Path, spec: &str) -> Result<Located> {
        locator(root, ("HF_HUB_OFFLINE", "1")).model(spec, &mut |file| panic!("downloads {file}"))
    }

    fn refusal(root: &Path, spec: &str) -> String {
        find(root, spec).unwrap_err().to_string()
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A snapshot as `huggingface_hub` makes it, with links into blobs; without a ref.
    fn snapshot(root: &Path, folder: &str, commit: &str, files: &[(&str, &str)]) -> PathBuf {
        let repo = root.join("hf").join(folder);
        let dir = repo.join("snapshots").join(commit);
        fs::create_dir_all(&dir).unwrap();
        for (n, (name, text)) in files.iter().enumerate() {
            write(&repo.join(format!("blobs/{commit}-{n}")), text);
            symlink(format!("../../blobs/{commit}-{n}"), dir.join(name)).unwrap();
        }
        dir
    }

    const SINGLE: [(&str, &str); 2] = [(CONFIG, "{}"), (SINGLE_FILE, "w")];

    fn write_single(dir: &Path) {
        for (name, text) in SINGLE {
            write(&dir.join(name), text);
        }
    }

    fn single(root: &Path, folder: &str, commit: &str) -> PathBuf {
        snapshot(root, folder, commit, &SINGLE)
    }

    #[test]
    fn a_directory_wins_and_a_snapshot_tells_its_commit() {
        let root = tempfile::tempdir().unwrap();
        let plain = root.path().join("some/dir");
        fs::create_dir_all(&plain).unwrap();
        let located = find(root.path(), plain.to_str().unwrap()).unwrap();
        assert_eq!(located, Located { dir: plain, repo: None, revision: None });

        let dir = single(root.path(), "models--o--n", COMMIT);
        let located = find(root.path(), &format!("{}/", dir.display())).unwrap();
        assert_eq!((located.repo.as_deref(), located.revision.as_deref()), (Some("o/n"), Some(COMMIT)));
        assert_eq!(find(root.path(), dir.parent().unwrap().to_str().unwrap()).unwrap().revision, None);
    }

    #[test]
    fn a_file_is_no_model() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("model.safetensors"), "");
        let text = refusal(root.path(), root.path().join("model.safetensors").to_str().unwrap());
        assert!(text.contains("is no directory") && text.contains("give the directory"), "{text}");
    }

    #[test]
    fn the_cache_is_read_through_refs() {
        let root = tempfile::tempdir().unwrap();
        let (main, old) = ("a".repeat(40), "b".repeat(40));
        let dir = single(root.path(), "models--org--na.me", &main);
        let old_dir = single(root.path(), "models--org--na.me", &old);
        let refs = root.path().join("hf/models--org--na.me/refs");
        write(&refs.join("main"), &format!("{main}\n"));
        write(&refs.join("refs/pr/1"), &old);

        let expected = Located { dir, repo: Some("org/na.me".to_owned()), revision: Some(main.clone()) };
        assert_eq!(find(root.path(), "org/na.me").unwrap(), expected);
        assert_eq!(find(root.path(), &format!("org/na.me@{main}")).unwrap(), expected);
        assert_eq!(find(root.path(), "org/na.me@refs/pr/1").unwrap().dir, old_dir);
        let text = refusal(root.path(), "org/na.me@v2");
        assert!(text.contains("at revision v2"), "{text}");
    }

    #[test]
    fn without_a_ref_the_only_snapshot_is_used() {
        let root = tempfile::tempdir().unwrap();
        let dir = single(root.path(), "models--gpt2", COMMIT);
        assert_eq!(find(root.path(), "gpt2").unwrap().dir, dir);
        single(root.path(), "models--gpt2", &"f".repeat(40));
        assert!(refusal(root.path(), "gpt2").contains("no cache holds it"));
    }

    #[test]
    fn a_ref_can_not_lead_out_of_the_cache() {
        let root = tempfile::tempdir().unwrap();
        single(root.path(), "models--o--n", COMMIT);
        let outside = root.path().join("outside");
        write_single(&outside);
        for target in ["../../../outside", outside.to_str().unwrap(), ""] {
            write(&root.path().join("hf/models--o--n/refs/main"), target);
            assert!(find(root.path(), "o/n").is_err(), "{target}");
        }
    }

    #[test]
    fn an_incomplete_snapshot_does_not_count() {
        for (files, lacks) in [
            (vec![(CONFIG, "{}")], "model.safetensors and model.safetensors.index.json"),
            (vec![(SINGLE_FILE, "w")], CONFIG),
            (vec![(CONFIG, "{}"), (INDEX_FILE, INDEX), ("model-1.safetensors", "")], "model-2.safetensors"),
            (vec![(CONFIG, "{}"), (INDEX_FILE, "{")], "a readable model.safetensors.index.json"),
            (vec![(ADAPTER_CONFIG, "{}")], SINGLE_FILE),
        ] {
            let root = tempfile::tempdir().unwrap();
            let dir = snapshot(root.path(), "models--o--n", COMMIT, &files);
            let text = refusal(root.path(), "o/n");
            assert!(text.contains(&format!("{} lacks {lacks}", dir.display())), "{text}");
        }
    }

    #[test]
    fn a_model_is_whole_or_it_is_not_in_the_cache() {
        let sharded = [(CONFIG, "{}"), (INDEX_FILE, INDEX), ("model-1.safetensors", ""), ("model-2.safetensors", "")];
        for files in [&sharded[..], &[(ADAPTER_CONFIG, "{}"), (ADAPTER_WEIGHTS, "")]] {
            let root = tempfile::tempdir().unwrap();
            let dir = snapshot(root.path(), "models--o--n", COMMIT, files);
            assert_eq!(find(root.path(), "o/n").unwrap().dir, dir);
            fs::remove_file(dir.join(files.last().unwrap().0).canonicalize().unwrap()).unwrap();
            assert!(find(root.path(), "o/n").is_err());
        }
    }

    #[test]
    fn modelscope_stands_in_for_an_incomplete_snapshot() {
        let root = tempfile::tempdir().unwrap();
        snapshot(root.path(), "models--o--n", COMMIT, &[(CONFIG, "{}")]);
        let dir = root.path().join("ms/models/o/n");
        write_single(&dir);
        assert_eq!(find(root.path(), "o/n").unwrap().dir, dir);
    }

    #[test]
    fn offline_the_refusal_names_caches_and_ways_out() {
        let root = tempfile::tempdir().unwrap();
        let text = refusal(root.path(), "o/n");
        for part in ["/hf", "/ms", "HF_HUB_OFFLINE", "huggingface-cli download o/n", "modelscope download", "directory"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn an_unreachable_hub_is_explained() {
        let root = tempfile::tempdir().unwrap();
        // Port 9 (discard) is closed wherever tests run.
        let locator = locator(root.path(), ("HF_ENDPOINT", "http://127.0.0.1:9"));
        let text = locator.model("o/n", &mut |_| ()).unwrap_err().to_string();
        assert!(text.contains("http://127.0.0.1:9") && text.contains("check the network"), "{text}");
    }
}
