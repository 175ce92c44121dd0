//! The Hugging Face Hub, or a mirror of it, and its cache on this machine.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::cache::RepoCache;
use super::failure::{Asked, Failure, unwritable};
use super::fetch::{PAUSE, Wanted, patiently};
use super::http::Client;
use super::{Id, Located, Remote, Source, is_part};
use crate::error::{Error, Result, escaped};

/// Most bytes of the list of a repository's files.
const MAX_LISTING: u64 = 64 << 20;

/// A Hub and its cache.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    pause: Duration,
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

impl Hub {
    /// The Hub at `endpoint`, the cache in the directory `cache`, and the token that is sent to that Hub and to no other
    /// host.
    pub fn new(cache: PathBuf, endpoint: String, token: Option<String>) -> Self {
        Self { cache, endpoint, token, pause: PAUSE }
    }

    /// How long to wait before a request that failed is made again. The wait doubles each time.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    fn asked<'a>(&'a self, id: &'a Id, what: &'a str) -> Asked<'a> {
        Asked { what, name: id.name(), endpoint: &self.endpoint, cache: &self.cache }
    }

    /// Asks for sizes too.
    fn list(&self, client: &Client, id: &Id) -> Result<Listing, Failure> {
        let revision = in_url(id.revision(), false);
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, id.name());
        let text = patiently(self.pause, |_| client.text(&url, MAX_LISTING))?;
        serde_json::from_slice(&text).map_err(|e| Failure::Answer(format!("the answer is no list of files: {e}")))
    }
}

impl Source for Hub {
    fn cache(&self) -> &Path {
        &self.cache
    }

    fn cached(&self, id: &Id) -> Vec<Located> {
        let found = RepoCache::new(&self.cache, id).find(id);
        let located = |(dir, commit)| Located { dir, repo: Some(id.name().to_owned()), revision: Some(commit) };
        found.map(located).into_iter().collect()
    }

    fn open<'a>(&'a self, id: &'a Id) -> Result<Option<Box<dyn Remote + 'a>>> {
        let client = Client::new(&self.endpoint, self.token.clone());
        let client = client.map_err(|e| self.asked(id, "anything").failed(&e))?;
        let Listing { sha, siblings } =
            self.list(&client, id).map_err(|e| self.asked(id, "the list of files").failed(&e))?;
        if !is_part(&sha) {
            let problem = format!("{} answers with a commit named {:?}", self.endpoint, escaped(&sha));
            return Err(Error::invalid(problem, "check HF_ENDPOINT: it must be a Hugging Face Hub or a mirror of it"));
        }
        let cache = RepoCache::new(&self.cache, id);
        let dir = cache.snapshot(&sha);
        let files = siblings.into_iter().map(|file| (file.rfilename, file.size)).collect();
        Ok(Some(Box::new(Commit { hub: self, id, client, cache, sha, dir, files })))
    }
}

/// One commit on a Hub. All files come from it, even if the branch moves on meanwhile.
struct Commit<'a> {
    hub: &'a Hub,
    id: &'a Id,
    client: Client,
    cache: RepoCache,
    sha: String,
    dir: PathBuf,
    files: BTreeMap<String, Option<u64>>,
}

impl Remote for Commit<'_> {
    fn name(&self) -> String {
        format!("{} on {}", self.id.name(), self.hub.endpoint)
    }

    fn files(&self) -> &BTreeMap<String, Option<u64>> {
        &self.files
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn fetch(&self, name: &str) -> Result<()> {
        let shown = escaped(name);
        let asked = self.hub.asked(self.id, &shown);
        let mut parts = Path::new(name).components();
        if name.is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Err(asked.failed(&Failure::Answer("that name leads out of the repository".to_owned())));
        }
        let url = format!(
            "{}/{}/resolve/{}/{}",
            self.hub.endpoint,
            self.id.name(),
            in_url(&self.sha, false),
            in_url(name, true)
        );
        let size = self.files.get(name).copied().flatten();
        let wanted = Wanted { url: &url, commit: &self.sha, name, size };
        wanted.fetch(&self.client, &self.cache, self.hub.pause).map_err(|e| asked.failed(&e))
    }

    fn publish(&self) -> Result<Located> {
        let noted = self.cache.note_ref(self.id.revision(), &self.sha);
        noted.map_err(|e| unwritable(&self.hub.cache, &self.hub.cache, &e))?;
        Ok(Located { dir: self.dir.clone(), repo: Some(self.id.name().to_owned()), revision: Some(self.sha.clone()) })
    }
}

/// `text` as a part of a URL, with its slashes or without.
fn in_url(text: &str, slashes: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-~".contains(&b) || slashes && b == b'/';
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_urls() {
        assert_eq!(in_url("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(in_url("a b/ö?.json", true), "a%20b/%C3%B6%3F.json");
    }
}
