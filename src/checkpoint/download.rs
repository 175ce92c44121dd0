//! Downloading a model from a Hub into the Hugging Face cache. Which model, and whether a cache has it, is in `hub`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use hf_hub::Cache;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use serde::Deserialize;

use super::companion::{OPENED_BY_NAME, TEMPLATE_DIR, has_companion_name, module_folders};
use super::hub::{ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH, Id, Located, Locator, is_part};
use super::instead;
use super::shard_index::{INDEX_FILE, SINGLE_FILE, ShardIndex};
use super::weights::Numbered;
use crate::error::{Error, ErrorKind, Result, escaped, shown};

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
pub(super) struct Download<'a> {
    from: &'a Locator,
    id: &'a Id<'a>,
    repo: ApiRepo,
    snapshot: PathBuf,
    /// File names and, where the Hub says them, sizes.
    files: BTreeMap<String, Option<u64>>,
}

impl Download<'_> {
    /// Fetches what an export of `id` reads, and calls `on_download` with the name of each file before.
    pub(super) fn fetch_all(from: &Locator, id: &Id, on_download: &mut dyn FnMut(&str)) -> Result<Located> {
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
            return Err(Error::invalid(problem, "check HF_ENDPOINT: it must be a Hugging Face Hub or a mirror of it"));
        }
        // All files come from this one commit, even if the branch moves on meanwhile.
        let repo = api.repo(id.repo(&sha));
        let snapshot = cache.repo(id.repo(&sha)).pointer_path(&sha);
        let files = siblings.into_iter().map(|file| (file.rfilename, file.size)).collect();
        let download = Download { from, id, repo, snapshot, files };
        download.run(on_download)?;
        publish_ref(&cache, id, &sha).map_err(|e| unwritable(from, &from.hf_cache, &e))?;
        Ok(Located { dir: download.snapshot, repo: Some(id.name.to_owned()), revision: Some(sha) })
    }

    /// The small files first, so that a refusal or a bad index shows before the long wait.
    fn run(&self, on_download: &mut dyn FnMut(&str)) -> Result<()> {
        let listed = |name: &str| self.files.contains_key(name);
        // What older versions of PEFT saved, where there is nothing else.
        let adapter = if listed(ADAPTER_WEIGHTS) { ADAPTER_WEIGHTS } else { ADAPTER_WEIGHTS_TORCH };
        let numbered = match Numbered::among(self.files.keys().map(String::as_str)) {
            Numbered::Complete(names) if !listed(SINGLE_FILE) && !listed(INDEX_FILE) => names,
            _ => Vec::new(),
        };
        if numbered.is_empty() && ![SINGLE_FILE, INDEX_FILE, adapter].into_iter().any(listed) {
            return Err(self.no_weights());
        }
        for name in self.files.keys().filter(|name| travels(name)) {
            self.fetch(name, on_download)?;
        }
        // What modules.json names, whatever it is.
        let folders = module_folders(&self.snapshot)?;
        let within = |name: &&String| {
            folders.iter().any(|folder| name.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/')))
        };
        for name in self.files.keys().filter(within).filter(|name| name.split('/').all(is_part)) {
            self.fetch(name, on_download)?;
        }
        for name in [SINGLE_FILE, adapter].into_iter().filter(|name| listed(name)) {
            self.fetch(name, on_download)?;
        }
        for name in &numbered {
            self.fetch(name, on_download)?;
        }
        if !listed(SINGLE_FILE) && listed(INDEX_FILE) {
            for shard in ShardIndex::read(&self.snapshot.join(INDEX_FILE))?.files() {
                self.fetch(shard, on_download)?;
            }
        }
        Ok(())
    }

    /// Says what is there instead of weights that can be downloaded.
    fn no_weights(&self) -> Error {
        let on = format!("{} on {}", self.id.name, self.from.endpoint);
        let names = self.files.keys().map(String::as_str);
        if let Numbered::Lacking { name, of } = Numbered::among(names.clone()) {
            let problem = format!("of the {of} numbered shards of {on} {} is missing", escaped(&name));
            return Error::not_found(problem, "find a whole copy of the model");
        }
        if let Some(remedy) = instead::remedy_for(&names) {
            return Error::unsupported(format!("{on} has no safetensors weights that transformers would find"), remedy);
        }
        match names.clone().find(|name| name.ends_with(".safetensors")) {
            Some(name) => Error::unsupported(
                format!("{on} has weights of another name than {SINGLE_FILE}: {}", escaped(name)),
                format!(
                    "download it, rename that file to {SINGLE_FILE} if it is the whole model, and give the directory"
                ),
            ),
            None => Error::not_found(
                format!("{on} has no weights"),
                "check the id: it may be that of another kind of model",
            ),
        }
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
            return made.map_err(|e| unwritable(self.from, &target, &e));
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
        Err(Error::network(problem, "run the command again; the damaged file was removed from the cache"))
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
    plain && !top.starts_with('.') && (has_companion_name(top) || OPENED_BY_NAME.contains(&top))
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

/// Explains why `path` in the cache can't be written.
fn unwritable(from: &Locator, path: &Path, error: &io::Error) -> Error {
    Error::new(
        ErrorKind::of_io(error),
        format!("cannot write {}: {error}", shown(path)),
        format!(
            "make {} writable and free some space there, or set HF_HOME to another directory",
            shown(&from.hf_cache)
        ),
    )
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
                "there is no directory {name} here{}: check the path, if one was meant; else check the network (HF_ENDPOINT, \
                 HTTPS_PROXY) and the space in {}, then {AGAIN}",
                instead::nearly(Path::new(name)),
                shown(hf_cache)
            ),
        ),
    };
    let kind = match error {
        ApiError::LockAcquisition(_) => ErrorKind::Busy,
        ApiError::IoError(cause) if ErrorKind::of_io(cause) != ErrorKind::Io => ErrorKind::of_io(cause),
        _ if code == 0 => ErrorKind::Network { status: None },
        _ => ErrorKind::of_status(code),
    };
    Error::new(kind, format!("cannot download {what} of {name} from {endpoint}: {reason}"), remedy)
}

/// The HTTP status in `error`. Read from its text, because hf-hub does not export the client's error type.
fn status(error: &ApiError) -> Option<u16> {
    error.to_string().rsplit_once("http status: ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
