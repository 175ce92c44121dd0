//! Finding models: a directory, or a Hub id in the Hugging Face or `ModelScope` cache, else downloaded. Looks at names
//! only; `download` fetches, `Checkpoint` reads the weights.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use hf_hub::{Cache, Repo, RepoType};

use super::download::Download;
use super::instead;
use super::shard_index::{INDEX_FILE, SINGLE_FILE, ShardIndex};
use super::weights::WeightFiles;
use crate::error::{Error, Result, escaped, shown};

const CONFIG: &str = "config.json";
/// File name of an adapter's config.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// File name of an adapter's weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// File name of an adapter's weights as older versions of PEFT saved them.
pub const ADAPTER_WEIGHTS_TORCH: &str = "adapter_model.bin";

/// A model's directory, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The directory.
    pub dir: PathBuf,
    /// The Hub id without its revision, if the model was found by id or lies in a Hugging Face cache.
    pub repo: Option<String>,
    /// The commit, if the directory is a snapshot of a Hugging Face cache.
    pub revision: Option<String>,
}

/// Finds models. Holds what the environment says about caches and the Hub.
pub struct Locator {
    pub(super) hf_cache: PathBuf,
    modelscope: PathBuf,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    offline: bool,
}

impl Locator {
    /// Reads the environment, by the rules of `huggingface_hub` and modelscope.
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var_os(name))
    }

    /// As [`Self::from_env`], with `var` in place of the environment.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.is_empty()));
        let text = |names: &[&str]| first(names).map(|value| value.to_string_lossy().trim().to_owned());
        let home = first(&["HOME"]).map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let path = |names: &[&str]| first(names).map(|value| expand(PathBuf::from(value), &home));
        let switch = |name| text(&[name]).is_some_and(|value| is_true(&value));

        let cache = path(&["XDG_CACHE_HOME"]).unwrap_or_else(|| home.join(".cache"));
        let hf_home = path(&["HF_HOME"]).unwrap_or_else(|| cache.join("huggingface"));
        let token_file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| hf_home.join("token"));
        let token = text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]);
        let endpoint = text(&["HF_ENDPOINT"]).unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            hf_cache: path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| hf_home.join("hub")),
            modelscope: path(&["MODELSCOPE_CACHE"]).unwrap_or_else(|| home.join(".cache/modelscope/hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token
                .or_else(|| fs::read_to_string(token_file).ok().map(|t| t.trim().to_owned()))
                .filter(|t| !t.is_empty()),
            offline: switch("HF_HUB_OFFLINE") || switch("TRANSFORMERS_OFFLINE"),
        }
    }

    /// The model that `spec` names: a directory, else a Hub id (`org/name`, `name`, either with `@revision`) that is
    /// complete in a cache, else that id on the Hub. Calls `on_download` with the name of each file before fetching it.
    pub fn model(&self, spec: &str, on_download: &mut dyn FnMut(&str)) -> Result<Located> {
        let path = Path::new(spec);
        if path.is_dir() {
            let (repo, revision) = snapshot_of(path).unzip();
            return Ok(Located { dir: path.to_owned(), repo, revision });
        }
        if path.exists() {
            return Err(instead::no_directory(path));
        }
        let id = Id::parse(spec)?;
        let mut incomplete = Vec::new();
        for located in self.cached(&id) {
            match missing(&located.dir) {
                None => return Ok(located),
                Some(what) => incomplete.push(format!("{} lacks {what}", shown(&located.dir))),
            }
        }
        // Such as models/qwne, where there is a directory models: a name on the Hub is told from it by a revision.
        if id.revision.is_none() && path.parent().is_some_and(|dir| !dir.as_os_str().is_empty() && dir.is_dir()) {
            return Err(instead::no_such_directory(spec, true));
        }
        if self.offline {
            return Err(self.not_cached(&id, &incomplete));
        }
        Download::fetch_all(self, &id, on_download)
    }

    /// The directories of caches that belong to `id`, the preferred one first.
    fn cached(&self, id: &Id) -> impl Iterator<Item = Located> {
        let found = |dir, revision| Located { dir, repo: Some(id.name.to_owned()), revision };
        let snapshot = self.snapshot(id).map(|(dir, commit)| found(dir, Some(commit)));
        snapshot.into_iter().chain(self.modelscope_dirs(id).into_iter().map(move |dir| found(dir, None)))
    }

    fn snapshot(&self, id: &Id) -> Option<(PathBuf, String)> {
        let repo = Cache::new(self.hf_cache.clone()).repo(id.repo(id.revision()));
        let snapshots = repo.pointer_path("");
        let refs = snapshots.parent()?.join("refs");
        let named = fs::read_to_string(refs.join(id.revision())).ok().map(|commit| commit.trim().to_owned());
        let commit = match (named, id.revision) {
            (Some(commit), _) => commit,
            (None, Some(revision)) => revision.to_owned(),
            (None, None) => only_entry(&snapshots)?,
        };
        let dir = repo.pointer_path(&commit);
        (is_part(&commit) && dir.is_dir()).then_some((dir, commit))
    }

    /// `ModelScope` writes dots in names as `___`; its older releases had no `models` level; and the variable may name
    /// the parent of `hub`. It keeps no revisions apart.
    fn modelscope_dirs(&self, id: &Id) -> Vec<PathBuf> {
        let (Some((org, name)), None) = (id.name.split_once('/'), id.revision) else { return Vec::new() };
        let orgs = ["models", "", "hub/models", "hub"].map(|level| self.modelscope.join(level).join(org));
        let dirs = orgs.iter().flat_map(|dir| [dir.join(name.replace('.', "___")), dir.join(name)]);
        dirs.filter(|dir| dir.is_dir()).collect()
    }

    fn not_cached(&self, id: &Id, incomplete: &[String]) -> Error {
        let Id { name, .. } = id;
        let at = id.revision.map(|r| format!(" at revision {r}")).unwrap_or_default();
        let mut problem = format!(
            "{name} is no directory{}, and no cache holds it complete{at}; looked in {} and {}",
            instead::nearly(Path::new(name)),
            shown(&self.hf_cache),
            shown(&self.modelscope)
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

fn expand(path: PathBuf, home: &Path) -> PathBuf {
    path.strip_prefix("~").map(|rest| home.join(rest)).unwrap_or(path)
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// A checked Hub id. Ids come out of files too, so nothing in one may lead out of a cache or change a URL.
pub(super) struct Id<'a> {
    pub(super) name: &'a str,
    revision: Option<&'a str>,
}

impl<'a> Id<'a> {
    fn parse(spec: &'a str) -> Result<Self> {
        let (name, revision) = spec.split_once('@').map_or((spec, None), |(name, revision)| (name, Some(revision)));
        if spec.starts_with(['.', '/', '~']) || spec.contains('\\') || name.matches('/').count() > 1 {
            return Err(instead::no_such_directory(spec, false));
        }
        if !name.split('/').chain(revision.iter().flat_map(|r| r.split('/'))).all(is_part) {
            let problem = format!("{:?} is neither a directory nor a Hub id", escaped(spec));
            return Err(Error::not_found(problem, "give a directory that exists, or org/name or org/name@revision"));
        }
        Ok(Self { name, revision })
    }

    pub(super) fn revision(&self) -> &'a str {
        self.revision.unwrap_or("main")
    }

    pub(super) fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.to_owned(), RepoType::Model, revision.to_owned())
    }
}

/// Whether `part` can stand between the slashes of an id or a revision, and as one name in a path.
pub(super) fn is_part(part: &str) -> bool {
    let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    plain && (1..=96).contains(&part.len()) && !part.starts_with(['.', '-']) && !part.contains("..")
}

/// The Hub id and the commit, if `dir` is `.../models--ORG--NAME/snapshots/COMMIT`.
fn snapshot_of(dir: &Path) -> Option<(String, String)> {
    let real = dir.canonicalize().ok()?;
    let snapshots = real.parent().filter(|p| p.ends_with("snapshots"))?;
    let repo = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    let commit = real.file_name()?.to_str().filter(|commit| is_part(commit))?;
    Some((repo.replacen("--", "/", 1), commit.to_owned()))
}

fn only_entry(dir: &Path) -> Option<String> {
    let mut entries = fs::read_dir(dir).ok()?.flatten();
    let (only, None) = (entries.next()?, entries.next()) else { return None };
    only.file_name().into_string().ok()
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
    use std::os::unix::fs::symlink;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const INDEX: &str = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;

    fn vars(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let map: BTreeMap<String, OsString> = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.into())).collect();
        move |name| map.get(name).cloned()
    }

    /// An offline locator with both caches below `root`.
    fn offline(root: &Path) -> Locator {
        let at = |name: &str| root.join(name).to_str().unwrap().to_owned();
        Locator::from_vars(vars(&[
            ("HF_HUB_CACHE", &at("hf")),
            ("MODELSCOPE_CACHE", &at("ms")),
            ("HF_HUB_OFFLINE", "1"),
            ("HOME", &at("home")),
        ]))
    }

    fn find(root: &Path, spec: &str) -> Result<Located> {
        offline(root).model(spec, &mut |file| panic!("downloads {file}"))
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
    fn the_environment_has_the_rules_of_the_python_libraries() {
        let plain = Locator::from_vars(vars(&[("HOME", "/h"), ("HF_HOME", ""), ("HF_HUB_OFFLINE", "0")]));
        assert_eq!(plain.hf_cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(plain.modelscope, Path::new("/h/.cache/modelscope/hub"));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!((plain.token, plain.offline), (None, false));

        let at = |pairs: &[(&str, &str)]| Locator::from_vars(vars(&[&[("HOME", "/h")], pairs].concat())).hf_cache;
        assert_eq!(at(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(at(&[("HF_HOME", "~/x"), ("XDG_CACHE_HOME", "/x")]), Path::new("/h/x/hub"));
        assert_eq!(at(&[("HF_HOME", "/x"), ("HUGGINGFACE_HUB_CACHE", "/y")]), Path::new("/y"));
        assert_eq!(at(&[("HF_HUB_CACHE", "/z"), ("HUGGINGFACE_HUB_CACHE", "/y")]), Path::new("/z"));

        let set = Locator::from_vars(vars(&[("HF_ENDPOINT", "http://m/"), ("HF_TOKEN", " t\n")]));
        assert_eq!((set.endpoint.as_str(), set.token.as_deref()), ("http://m", Some("t")));
        for (name, value) in [("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "True"), ("HF_HUB_OFFLINE", "ON")] {
            assert!(Locator::from_vars(vars(&[(name, value)])).offline, "{name}={value}");
        }
    }

    #[test]
    fn the_saved_token_is_used_if_the_environment_has_none() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().to_str().unwrap();
        write(&root.path().join("token"), "saved\n");
        assert_eq!(Locator::from_vars(vars(&[("HF_HOME", home)])).token.as_deref(), Some("saved"));
        assert_eq!(Locator::from_vars(vars(&[("HF_HOME", home), ("HF_TOKEN", "t")])).token.as_deref(), Some("t"));
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
    fn a_missing_path_is_not_taken_for_an_id() {
        let root = tempfile::tempdir().unwrap();
        for spec in ["./x", "../x/y", "/no/such", "~/x", "a/b/c", "a/b/", "a\\b", ".hidden"] {
            let text = refusal(root.path(), spec);
            assert!(text.starts_with("no such directory"), "{spec}: {text}");
        }
    }

    #[test]
    fn hostile_ids_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let long = format!("o/{}", "n".repeat(97));
        let words = "o/ o/.. o/.n -o/n o/-n o/a..b o/n?x o/n%2e ö/n o/n@ o/n@.. o/n@a/../b o/n@/etc o/n@a@b http:o";
        for spec in words.split(' ').chain(["", "o/n\0", "o/n m", &long]) {
            let text = refusal(root.path(), spec);
            assert!(text.contains("neither a directory nor a Hub id"), "{spec:?}: {text}");
        }
        let text = refusal(root.path(), "o/\u{1b}[2J");
        assert!(!text.contains('\u{1b}'), "{text}");
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
    fn modelscopes_layouts_are_known() {
        for place in [
            "models/Qwen/Qwen3-0___6B",
            "Qwen/Qwen3-0___6B",
            "hub/models/Qwen/Qwen3-0___6B",
            "hub/Qwen/Qwen3-0___6B",
            "models/Qwen/Qwen3-0.6B",
        ] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("ms").join(place);
            write_single(&dir);
            let located = find(root.path(), "Qwen/Qwen3-0.6B").unwrap();
            assert_eq!(located, Located { dir, repo: Some("Qwen/Qwen3-0.6B".to_owned()), revision: None });
            assert!(find(root.path(), "Qwen/Qwen3-0.6B@v1").is_err(), "revisions are not kept apart there");
            assert!(find(root.path(), "Qwen").is_err());
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
        let mut locator = offline(root.path());
        locator.offline = false;
        // Port 9 (discard) is closed wherever tests run.
        "http://127.0.0.1:9".clone_into(&mut locator.endpoint);
        let text = locator.model("o/n", &mut |_| ()).unwrap_err().to_string();
        assert!(text.contains("http://127.0.0.1:9") && text.contains("check the network"), "{text}");
    }
}
