//! Finding models: a directory, a Hub id in the Hugging Face or `ModelScope` cache or on the Hub (downloaded
//! into the former), and the newest checkpoint of a training output. Looks at names only; `Checkpoint` reads the weights.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, io};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use crate::checkpoint::shard_index::{INDEX_FILE, SINGLE_FILE, ShardIndex};
use crate::error::{Error, Result, escaped, shown};

const CONFIG: &str = "config.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_FILE: &str = "adapter_model.safetensors";

/// Endings and beginnings of the names of files that are fetched besides the weights.
const ENDINGS: [&str; 7] = [".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".spm"];
const LICENCES: [&str; 6] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING", "COPYRIGHT"];
/// The one directory whose files are fetched.
const TEMPLATE_DIR: &str = "additional_chat_templates";

/// A model's directory, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The directory.
    pub dir: PathBuf,
    /// The Hub id without its revision, if the model was found by id.
    pub repo: Option<String>,
    /// The commit, if the directory is a snapshot of a Hugging Face cache.
    pub revision: Option<String>,
}

/// Finds models. Holds what the environment says about caches and the Hub.
pub struct Locator {
    hf_cache: PathBuf,
    modelscope: PathBuf,
    endpoint: String,
    token: Option<String>,
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
            return Ok(Located { dir: path.to_owned(), repo: None, revision: commit_of(path) });
        }
        if path.exists() {
            let problem = format!("{} is no directory", shown(path));
            return Err(Error::refused(problem, "give the directory that the model's files are in"));
        }
        let id = Id::parse(spec)?;
        let mut incomplete = Vec::new();
        for located in self.cached(&id) {
            match missing(&located.dir) {
                None => return Ok(located),
                Some(what) => incomplete.push(format!("{} lacks {what}", shown(&located.dir))),
            }
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
            "{name} is no directory, and no cache holds it complete{at}; looked in {} and {}",
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
        Error::refused(problem, remedy)
    }
}

fn expand(path: PathBuf, home: &Path) -> PathBuf {
    path.strip_prefix("~").map(|rest| home.join(rest)).unwrap_or(path)
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// A checked Hub id. Ids come out of files too, so nothing in one may lead out of a cache or change a URL.
struct Id<'a> {
    name: &'a str,
    revision: Option<&'a str>,
}

impl<'a> Id<'a> {
    fn parse(spec: &'a str) -> Result<Self> {
        let (name, revision) = spec.split_once('@').map_or((spec, None), |(name, revision)| (name, Some(revision)));
        if spec.starts_with(['.', '/', '~']) || spec.contains('\\') || name.matches('/').count() > 1 {
            let remedy = "check the path, or give a Hub id: org/name or org/name@revision";
            return Err(Error::refused(format!("no such directory: {}", escaped(spec)), remedy));
        }
        if !name.split('/').chain(revision.iter().flat_map(|r| r.split('/'))).all(is_part) {
            let problem = format!("{:?} is neither a directory nor a Hub id", escaped(spec));
            return Err(Error::refused(problem, "give a directory that exists, or org/name or org/name@revision"));
        }
        Ok(Self { name, revision })
    }

    fn revision(&self) -> &'a str {
        self.revision.unwrap_or("main")
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.to_owned(), RepoType::Model, revision.to_owned())
    }
}

/// Whether `part` can stand between the slashes of an id or a revision, and as one name in a path.
fn is_part(part: &str) -> bool {
    let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    plain && (1..=96).contains(&part.len()) && !part.starts_with(['.', '-']) && !part.contains("..")
}

/// The commit, if `dir` is `.../models--ORG--NAME/snapshots/COMMIT`.
fn commit_of(dir: &Path) -> Option<String> {
    let real = dir.canonicalize().ok()?;
    let snapshots = real.parent().filter(|p| p.ends_with("snapshots"))?;
    let repo = snapshots.parent()?.file_name()?.to_str()?;
    let commit = real.file_name()?.to_str().filter(|commit| is_part(commit))?;
    repo.starts_with("models--").then(|| commit.to_owned())
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
    if has(SINGLE_FILE) || (has(ADAPTER_CONFIG) && has(ADAPTER_FILE)) {
        return None;
    }
    if !has(INDEX_FILE) {
        return Some(format!("{SINGLE_FILE} and {INDEX_FILE}"));
    }
    match ShardIndex::read(&dir.join(INDEX_FILE)) {
        Ok(index) => index.files().into_iter().find(|shard| !has(shard)).map(escaped),
        Err(_) => Some(format!("a readable {INDEX_FILE}")),
    }
}

/// The Hub's answer to what a revision of a model holds.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// One download of one commit into the Hugging Face cache.
struct Download<'a> {
    from: &'a Locator,
    id: &'a Id<'a>,
    repo: ApiRepo,
    snapshot: PathBuf,
    /// File names and, where the Hub says them, sizes.
    files: BTreeMap<String, Option<u64>>,
}

impl Download<'_> {
    fn fetch_all(from: &Locator, id: &Id, on_download: &mut dyn FnMut(&str)) -> Result<Located> {
        // Built from the cache, because the other constructors ignore HF_HUB_CACHE and panic without a home.
        let cache = Cache::new(from.hf_cache.clone());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(from.endpoint.clone())
            .with_token(from.token.clone())
            .with_user_agent("qft", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|e| failed(from, id, "the client", &e))?;
        let listing = list(&api.repo(id.repo(id.revision())));
        let Listing { sha, siblings } = listing.map_err(|e| failed(from, id, "the list of files", &e))?;
        if !is_part(&sha) {
            let problem = format!("{} answers with a commit named {:?}", from.endpoint, escaped(&sha));
            return Err(Error::refused(problem, "check HF_ENDPOINT: it must be a Hugging Face Hub or a mirror of it"));
        }
        // All files come from this one commit, even if the branch moves on meanwhile.
        let repo = api.repo(id.repo(&sha));
        let snapshot = cache.repo(id.repo(&sha)).pointer_path(&sha);
        let files = siblings.into_iter().map(|file| (file.rfilename, file.size)).collect();
        let download = Download { from, id, repo, snapshot, files };
        download.run(on_download)?;
        publish_ref(&cache, id, &sha).map_err(Error::io("write the refs of", &from.hf_cache))?;
        Ok(Located { dir: download.snapshot, repo: Some(id.name.to_owned()), revision: Some(sha) })
    }

    /// The small files first, so that a refusal or a bad index shows before the long wait.
    fn run(&self, on_download: &mut dyn FnMut(&str)) -> Result<()> {
        let listed = |name: &str| self.files.contains_key(name);
        if ![SINGLE_FILE, INDEX_FILE, ADAPTER_FILE].into_iter().any(listed) {
            let problem = format!("{} on {} has no safetensors weights", self.id.name, self.from.endpoint);
            return Err(Error::refused(problem, "qft runs no pickle: find or save a copy of the model as safetensors"));
        }
        for name in self.files.keys().filter(|name| travels(name)) {
            self.fetch(name, on_download)?;
        }
        for name in [SINGLE_FILE, ADAPTER_FILE].into_iter().filter(|name| listed(name)) {
            self.fetch(name, on_download)?;
        }
        if !listed(SINGLE_FILE) && listed(INDEX_FILE) {
            for shard in ShardIndex::read(&self.snapshot.join(INDEX_FILE))?.files() {
                self.fetch(shard, on_download)?;
            }
        }
        Ok(())
    }

    fn fetch(&self, name: &str, on_download: &mut dyn FnMut(&str)) -> Result<()> {
        let target = self.snapshot.join(name);
        if target.exists() {
            return Ok(());
        }
        on_download(name);
        let size = self.files.get(name).copied().flatten();
        if size == Some(0) {
            // hf-hub asks for byte 0 of each file, which an empty one does not have.
            let made = target.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&target, b""));
            return made.map_err(Error::io("write", &target));
        }
        // hf-hub would fail at a link into pruned blobs, after the download.
        let _ = fs::remove_file(&target);
        self.repo.download(name).map_err(|e| failed(self.from, self.id, &escaped(name), &e))?;
        let got = fs::metadata(&target).map_err(Error::io("find the download", &target))?.len();
        if size.is_none_or(|size| size == got) {
            return Ok(());
        }
        let _ = target.canonicalize().and_then(fs::remove_file);
        let _ = fs::remove_file(&target);
        let problem = format!("{} came with {got} bytes, not the {} listed", shown(&target), size.unwrap_or(0));
        Err(Error::refused(problem, "run the command again; the damaged file was removed from the cache"))
    }
}

/// Asks for sizes too, which hf-hub's own `info` leaves out.
fn list(repo: &ApiRepo) -> Result<Listing, ApiError> {
    let mut response = repo.info_request().query("blobs", "true").call().map_err(Box::new)?;
    Ok(response.body_mut().read_json().map_err(Box::new)?)
}

/// Whether a file that is no weights is worth fetching: what the export reads or copies.
fn travels(name: &str) -> bool {
    let top = name.strip_prefix(TEMPLATE_DIR).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
    let plain = top.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+=@,()".contains(&b));
    let licence = LICENCES.iter().any(|prefix| top.to_ascii_uppercase().starts_with(prefix));
    plain && !top.starts_with('.') && (licence || ENDINGS.iter().any(|ending| top.ends_with(ending)))
}

/// Points the asked revision at the finished commit, and removes the ref that hf-hub made for the commit itself,
/// which other users of the cache would take for a branch.
fn publish_ref(cache: &Cache, id: &Id, sha: &str) -> io::Result<()> {
    if id.revision() != sha {
        cache.repo(id.repo(id.revision())).create_ref(sha)?;
    }
    let own = cache.repo(id.repo(sha)).pointer_path("").with_file_name("refs").join(sha);
    if own.exists() { fs::remove_file(own) } else { Ok(()) }
}

/// Explains why fetching `what` of `id` failed.
fn failed(from: &Locator, id: &Id, what: &str, error: &ApiError) -> Error {
    const AGAIN: &str = "run the command again: finished files are kept, and a partial one is continued";
    let (Locator { endpoint, hf_cache, .. }, Id { name, .. }) = (from, id);
    let code = status(error).unwrap_or_default();
    let (reason, remedy) = match (code, error) {
        (401 | 403, _) => (
            format!("HTTP {code}: the model is gated or private, or there is none of that name, nor a directory"),
            format!(
                "check the id, accept the licence at {endpoint}/{name}, and set HF_TOKEN to a token that may read it"
            ),
        ),
        (404, _) => (
            "HTTP 404: there is no such model, revision or file, nor a directory of that name".to_owned(),
            format!("check the id and the revision at {endpoint}/{name}, or give a directory"),
        ),
        (429, _) => (
            "HTTP 429: the Hub wants a pause".to_owned(),
            format!("wait some minutes, or set HF_TOKEN to be allowed more, then {AGAIN}"),
        ),
        (416, _) | (_, ApiError::InvalidResume) => {
            let partial = Cache::new(hf_cache.clone()).repo(id.repo("main")).blob_path("*.part");
            ("a partial download does not fit the file".to_owned(), format!("delete {}, then {AGAIN}", shown(&partial)))
        }
        (_, ApiError::LockAcquisition(_)) => {
            ("another process is downloading it".to_owned(), format!("wait until that is done, then {AGAIN}"))
        }
        _ => (
            escaped(&error.to_string()),
            format!(
                "check the network (HF_ENDPOINT, HTTPS_PROXY) and the space in {}, then {AGAIN}; or give a directory",
                shown(hf_cache)
            ),
        ),
    };
    Error::refused(format!("cannot download {what} of {name} from {endpoint}: {reason}"), remedy)
}

/// The HTTP status in `error`. Read from its text, because hf-hub does not export the client's error type.
fn status(error: &ApiError) -> Option<u16> {
    error.to_string().rsplit_once("http status: ")?.1.parse().ok()
}

/// The newest checkpoint below a training's output directory: of the run whose newest checkpoint was written last, the
/// one with the highest number that is a complete adapter. Runs lie at most two directories below `output`.
pub fn newest_checkpoint(output: &Path) -> Result<PathBuf> {
    let runs = if output.is_dir() { runs_below(output, 2).map_err(Error::io("list", output))? } else { Vec::new() };
    runs.into_iter().max().map(|(_, checkpoint)| checkpoint).ok_or_else(|| {
        let problem = format!("{} holds no checkpoint-N with {ADAPTER_CONFIG} and {ADAPTER_FILE}", shown(output));
        Error::refused(problem, "train first, or name the adapter with --adapter")
    })
}

/// The newest checkpoint of each run, with the time it was written.
fn runs_below(dir: &Path, depth: usize) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let dirs = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let (checkpoints, others): (Vec<_>, Vec<_>) = dirs.partition(|path| step(path).is_some());
    let newest = checkpoints.into_iter().filter_map(|path| Some((step(&path)?, written(&path)?, path))).max();
    let mut runs: Vec<_> = newest.map(|(_, time, path)| (time, path)).into_iter().collect();
    if depth > 0 {
        // A directory that can't be listed, such as lost+found, holds no run of this user.
        runs.extend(others.iter().flat_map(|path| runs_below(path, depth - 1).unwrap_or_default()));
    }
    Ok(runs)
}

fn step(checkpoint: &Path) -> Option<u64> {
    let digits = checkpoint.file_name()?.to_str()?.strip_prefix("checkpoint-")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn written(checkpoint: &Path) -> Option<SystemTime> {
    let weights = fs::metadata(checkpoint.join(ADAPTER_FILE)).ok().filter(fs::Metadata::is_file)?;
    checkpoint.join(ADAPTER_CONFIG).is_file().then(|| weights.modified().ok())?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

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
        assert_eq!((located.repo, located.revision.as_deref()), (None, Some(COMMIT)));
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
        for spec in [
            "",
            "o/",
            "o/..",
            "o/.n",
            "-o/n",
            "o/-n",
            "o/a..b",
            "o/n?x",
            "o/n%2e",
            "o/n\0",
            "o/n m",
            "ö/n",
            "o/n@",
            "o/n@..",
            "o/n@a/../b",
            "o/n@/etc",
            "o/n@a@b",
            "http:o",
            &long,
        ] {
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
    fn complete_shards_and_adapters_count_and_a_pruned_blob_does_not() {
        let sharded = [(CONFIG, "{}"), (INDEX_FILE, INDEX), ("model-1.safetensors", ""), ("model-2.safetensors", "")];
        for files in [&sharded[..], &[(ADAPTER_CONFIG, "{}"), (ADAPTER_FILE, "")]] {
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
    fn fetches_what_an_export_reads() {
        for name in [
            "config.json",
            "merges.txt",
            "tokenizer.model",
            "chat_template.jinja",
            "modeling_x.py",
            "qwen.tiktoken",
            "LICENSE",
            "LICENSE.md",
            "Notice.txt",
            "USE_POLICY.md",
            "additional_chat_templates/tool.jinja",
        ] {
            assert!(travels(name), "{name}");
        }
        for name in [
            "README.md",
            "pytorch_model.bin",
            "x.pt",
            "x.gguf",
            "consolidated.safetensors",
            "model.safetensors",
            ".gitattributes",
            ".x.json",
            "onnx/config.json",
            "../x.json",
            "/x.json",
            "a\\x.json",
            "x y.json",
            "x?.json",
            "additional_chat_templates/../x.json",
            "additional_chat_templates/a/b.jinja",
        ] {
            assert!(!travels(name), "{name}");
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

    /// Makes a checkpoint whose weights are `age` seconds old.
    fn checkpoint(root: &Path, place: &str, age: u64) {
        write(&root.join(place).join(ADAPTER_CONFIG), "{}");
        let weights = root.join(place).join(ADAPTER_FILE);
        write(&weights, "");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 - age);
        fs::File::options().write(true).open(weights).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn the_newest_run_is_chosen_by_time_and_its_checkpoint_by_number() {
        let root = tempfile::tempdir().unwrap();
        let newest = || newest_checkpoint(root.path()).unwrap().strip_prefix(root.path()).unwrap().to_owned();
        checkpoint(root.path(), "v9-20250101-000000/checkpoint-900", 500);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-20", 90);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-100", 100);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-100-merged", 0);
        checkpoint(root.path(), "v10-20250102-000000/checkpoint-+200", 0);
        fs::create_dir_all(root.path().join("v10-20250102-000000/checkpoint-110")).unwrap();
        fs::create_dir_all(root.path().join("v11-20250103-000000/runs")).unwrap();
        assert_eq!(newest(), Path::new("v10-20250102-000000/checkpoint-100"));
        checkpoint(root.path(), "Qwen3-8B/v0-20250104-000000/checkpoint-5", 80);
        assert_eq!(newest(), Path::new("Qwen3-8B/v0-20250104-000000/checkpoint-5"));
        checkpoint(root.path(), "checkpoint-3", 70);
        assert_eq!(newest(), Path::new("checkpoint-3"));
        checkpoint(root.path(), "a/b/c/checkpoint-9", 0);
        assert_eq!(newest(), Path::new("checkpoint-3"), "too deep to be a run of this output");
    }

    #[test]
    fn runs_of_one_age_are_ordered_by_name() {
        let root = tempfile::tempdir().unwrap();
        checkpoint(root.path(), "v1/checkpoint-9", 5);
        checkpoint(root.path(), "v2/checkpoint-1", 5);
        assert!(newest_checkpoint(root.path()).unwrap().ends_with("v2/checkpoint-1"));
    }

    #[test]
    fn no_checkpoint_is_refused_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("v0/checkpoint-1").join(ADAPTER_CONFIG), "{}");
        for output in [root.path(), &root.path().join("none")] {
            let text = newest_checkpoint(output).unwrap_err().to_string();
            assert!(text.contains("train first, or name the adapter with --adapter"), "{text}");
        }
    }
}
