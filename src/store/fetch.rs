//! Fetches one file into the Hugging Face cache: continues what is there of it, tries again what may pass, and holds what
//! came against the length and the SHA-256 that the Hub names.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::{HeaderMap, header};

use super::cache::RepoCache;
use super::failure::Failure;
use super::http::{Client, Resolved};
use super::is_part;
use crate::digest::Hasher;

/// How often in a row a file is tried without getting on by [`ENOUGH`] bytes.
const TRIES: u32 = 4;
const ENOUGH: u64 = 1 << 20;
/// The wait before the second try; it doubles for each further one.
pub(super) const PAUSE: Duration = Duration::from_millis(500);
/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// Tries `work`, and again if what failed may pass. `work` notes how far it got.
pub(super) fn patiently<T>(
    pause: Duration,
    mut work: impl FnMut(&mut u64) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (mut tries, mut furthest) = (0, 0);
    loop {
        let mut reached = furthest;
        let failure = match work(&mut reached) {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        tries = if reached >= furthest + ENOUGH { 1 } else { tries + 1 };
        furthest = furthest.max(reached);
        if tries >= TRIES || !failure.may_pass() {
            return Err(failure);
        }
        std::thread::sleep(pause * 2_u32.pow(tries - 1));
    }
}

/// One file of a commit.
pub(super) struct Wanted<'a> {
    pub(super) url: &'a str,
    pub(super) commit: &'a str,
    pub(super) name: &'a str,
    /// Its length, if it was listed.
    pub(super) size: Option<u64>,
}

impl Wanted<'_> {
    /// Fetches the file into the cache, and links it into the commit's snapshot.
    pub(super) fn fetch(&self, client: &Client, cache: &RepoCache, pause: Duration) -> Result<(), Failure> {
        patiently(pause, |reached| self.attempt(client, cache, 2 * pause, reached))
    }

    fn attempt(&self, client: &Client, cache: &RepoCache, pause: Duration, reached: &mut u64) -> Result<(), Failure> {
        let resolved = client.resolve(self.url)?;
        let etag = etag(&resolved.headers)?;
        if let Some(other) = text(&resolved.headers, "x-repo-commit").filter(|commit| *commit != self.commit) {
            return Err(Failure::Answer(format!("the file comes from commit {other:?}, not from {:?}", self.commit)));
        }
        let size = self.size.or_else(|| text(&resolved.headers, "x-linked-size")?.parse().ok());
        let (blob, partial) = (cache.blob(&etag), cache.partial(&etag));
        blob.parent().map_or(Ok(()), fs::create_dir_all).map_err(Failure::disk(&blob))?;
        let _lock = cache.lock(&etag, pause)?;
        let is_there = fs::metadata(&blob).is_ok_and(|meta| size.is_none_or(|size| meta.len() == size));
        if !is_there {
            let sha256 = Some(etag.as_str()).filter(|etag| is_sha256(etag));
            let come = Coming { client, partial: &partial, size, sha256 };
            come.receive(&resolved, reached)?;
            fs::rename(&partial, &blob).map_err(Failure::disk(&blob))?;
        }
        cache.link(&etag, self.commit, self.name)
    }
}

/// A file on its way.
struct Coming<'a> {
    client: &'a Client,
    partial: &'a Path,
    size: Option<u64>,
    sha256: Option<&'a str>,
}

impl Coming<'_> {
    /// Completes the partial file and checks it; removes it if it is not what it should be.
    fn receive(&self, resolved: &Resolved, reached: &mut u64) -> Result<(), Failure> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.partial)
            .map_err(Failure::disk(self.partial))?;
        let checked = self.complete(&mut file, resolved, reached);
        if matches!(checked, Err(Failure::Size { .. } | Failure::Digest { .. })) {
            let _ = fs::remove_file(self.partial);
        }
        checked
    }

    fn complete(&self, file: &mut File, resolved: &Resolved, reached: &mut u64) -> Result<(), Failure> {
        let disk = |cause| Failure::disk(self.partial)(cause);
        let there = file.metadata().map_err(disk)?.len();
        let mut have = there;
        if self.size.is_some_and(|size| have > size) {
            have = 0;
        }
        let response = if have > 0 && self.size == Some(have) {
            None
        } else {
            let response = self.client.bytes(&resolved.at, have)?;
            let unfit = response.status() == 416 && have > 0;
            Some(if unfit { self.client.bytes(&resolved.at, 0)? } else { response })
        };
        if let Some(response) = &response {
            match response.status().as_u16() {
                206 if first_byte(response.headers()) == Some(have) => {}
                // The whole file: this server gives no parts.
                200 => have = 0,
                status => return Err(Failure::of_status(status)),
            }
        }
        let continued = have > 0;
        if have < there {
            file.set_len(have).map_err(disk)?;
        }
        file.seek(SeekFrom::Start(0)).map_err(disk)?;
        let mut digest = self.sha256.map(|_| Hasher::sha256());
        let mut buffer = vec![0; BUFFER];
        // What was there is read for its digest alone.
        if let Some(digest) = &mut digest {
            loop {
                match file.read(&mut buffer).map_err(disk)? {
                    0 => break,
                    read => digest.update(&buffer[..read]),
                }
            }
        }
        file.seek(SeekFrom::Start(have)).map_err(disk)?;
        *reached = (*reached).max(have);
        let mut body = response.map(|response| response.into_body().into_reader());
        while let Some(body) = &mut body {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => &buffer[..read],
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Failure::Cut(e)),
            };
            have += read.len() as u64;
            if let Some(listed) = self.size.filter(|size| have > *size) {
                return Err(Failure::Size { got: have, listed, continued });
            }
            file.write_all(read).map_err(disk)?;
            if let Some(digest) = &mut digest {
                digest.update(read);
            }
            *reached = (*reached).max(have);
        }
        if let Some(listed) = self.size.filter(|size| have != *size) {
            return Err(Failure::Size { got: have, listed, continued });
        }
        if let (Some(digest), Some(listed)) = (digest, self.sha256) {
            let got = digest.finish();
            if got != listed {
                return Err(Failure::Digest { got, listed: listed.to_owned(), continued });
            }
        }
        Ok(())
    }
}

/// The name that the Hub gives the bytes of a file. It becomes a file's name.
fn etag(headers: &HeaderMap) -> Result<String, Failure> {
    let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
    let etag = etag.ok_or_else(|| Failure::Answer("the answer has no ETag".to_owned()))?;
    let name = etag.trim_start_matches(['W', '/']).trim_matches('"');
    if is_part(name) {
        return Ok(name.to_owned());
    }
    Err(Failure::Answer(format!("the answer has the ETag {etag:?}, which can be no file's name")))
}

/// Whether an etag is the SHA-256 of the file, as it is for files in LFS and Xet.
fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Where the part begins that an answer has.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    range.split('-').next()?.parse().ok()
}
