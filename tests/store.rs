//! Downloads as the library makes them: who gets the token, what is continued, what is checked, what lies in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qft::digest::sha256;
use qft::store::{Hub, Id, Located, Source};

use crate::hub::server::{COMMIT, FakeHub};

const WEIGHTS: &str = "model.safetensors";

/// A repository `o/n` with one large file and one small one, on a Hub, and an empty cache.
struct Place {
    root: tempfile::TempDir,
    hub: FakeHub,
    bytes: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100_003_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        write(&root.path().join("hub/o/n").join(WEIGHTS), &bytes);
        write(&root.path().join("hub/o/n/1_Pooling/config.json"), b"{}");
        let hub = FakeHub::serve(root.path().join("hub"));
        Self { root, hub, bytes }
    }

    /// Says how the Hub behaves.
    fn set(&self, name: &str, value: &str) {
        write(&self.root.path().join("hub/o/n").join(name), value.as_bytes());
    }

    fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn repo(&self) -> PathBuf {
        self.cache().join("models--o--n")
    }

    fn blob(&self) -> PathBuf {
        self.repo().join("blobs").join(sha256(&self.bytes))
    }

    fn partial(&self) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", sha256(&self.bytes)))
    }

    fn fetch(&self, file: &str) -> qft::Result<Located> {
        let hub =
            Hub::new(self.cache(), self.hub.endpoint(), Some("secret".to_owned())).pause(Duration::from_millis(1));
        let id = Id::parse("o/n")?;
        let remote = hub.open(&id)?.expect("a Hub can be asked");
        remote.fetch(file)?;
        remote.publish()
    }

    fn assert_fetched(&self) {
        let located = self.fetch(WEIGHTS).unwrap();
        assert!(fs::read(located.dir.join(WEIGHTS)).unwrap() == self.bytes);
    }

    fn refusal(&self, file: &str) -> String {
        self.fetch(file).unwrap_err().to_string()
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// All files and links below `dir`, by their paths in it, sorted.
fn all_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_cache_is_laid_out_as_the_python_library_does() {
    let place = Place::new();
    place.assert_fetched();
    place.fetch("1_Pooling/config.json").unwrap();
    let (large, small) = (sha256(&place.bytes), sha256(b"{}")[..40].to_owned());
    let mut expected = vec![
        format!(".locks/models--o--n/{large}.lock"),
        format!(".locks/models--o--n/{small}.lock"),
        format!("models--o--n/blobs/{large}"),
        format!("models--o--n/blobs/{small}"),
        "models--o--n/refs/main".to_owned(),
        format!("models--o--n/snapshots/{COMMIT}/1_Pooling/config.json"),
        format!("models--o--n/snapshots/{COMMIT}/{WEIGHTS}"),
    ];
    expected.sort();
    assert_eq!(all_below(&place.cache()), expected);
    assert_eq!(fs::read_to_string(place.repo().join("refs/main")).unwrap(), COMMIT);
    let link = |name: &str| fs::read_link(place.repo().join("snapshots").join(COMMIT).join(name)).unwrap();
    assert_eq!(link(WEIGHTS), Path::new(&format!("../../blobs/{large}")));
    assert_eq!(link("1_Pooling/config.json"), Path::new(&format!("../../../blobs/{small}")));
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let place = Place::new();
    let elsewhere = FakeHub::serve(place.root.path().join("other"));
    write(&place.root.path().join("other/o/n").join(WEIGHTS), &place.bytes);
    place.set(".elsewhere", &elsewhere.endpoint());
    // A part is there, so that the request for the rest is looked at, too.
    write(&place.partial(), &place.bytes[..1000]);
    place.assert_fetched();

    assert!(place.hub.requests().iter().all(|seen| seen.token.as_deref() == Some("Bearer secret")));
    let there = elsewhere.requests();
    assert_eq!((there.len(), elsewhere.ranges()), (1, vec![1000]));
    assert_eq!(there[0].token, None);
}

#[test]
fn a_redirect_within_the_hub_keeps_the_token() {
    let place = Place::new();
    fs::rename(place.root.path().join("hub/o/n"), place.root.path().join("hub/o/new")).unwrap();
    place.set(".renamed", "o/new");
    place.assert_fetched();
    let requests = place.hub.requests();
    assert_eq!(requests.len(), 5, "{requests:?}");
    assert!(requests.iter().all(|seen| seen.token.is_some()), "{requests:?}");
}

#[test]
fn each_refusal_has_its_cause() {
    let place = Place::new();
    for (status, parts) in [
        ("401", ["HTTP 401: the model is gated or private", "set HF_TOKEN"]),
        ("403", ["HTTP 403: the model is gated or private", "accept the licence"]),
        ("404", ["HTTP 404: there is no such model", "check the id and the revision"]),
        ("429", ["HTTP 429: the Hub wants a pause", "wait some minutes, or set HF_TOKEN"]),
        ("502", ["HTTP 502: the Hub has a problem of its own", "wait some minutes"]),
        ("418", ["http status: 418", "check the network"]),
    ] {
        place.set(".status", status);
        let before = place.hub.requests().len();
        let text = place.refusal(WEIGHTS);
        assert!(parts.iter().all(|part| text.contains(part)), "{status}: {text}");
        // The list of files, and the file: again where the cause may pass.
        assert_eq!(place.hub.requests().len() - before, if status == "502" { 5 } else { 2 }, "{status}");
    }
}

#[test]
fn a_hub_that_is_busy_for_a_moment_is_asked_again() {
    let place = Place::new();
    place.set(".busy", "2");
    place.assert_fetched();
}

#[test]
fn what_broke_off_is_continued_where_it_did() {
    let place = Place::new();
    place.set(".cut", "2");
    place.assert_fetched();
    let half = place.bytes.len() as u64 / 2;
    assert_eq!(place.hub.ranges(), [half, half + (place.bytes.len() as u64 - half) / 2]);
}

#[test]
fn a_server_without_parts_sends_all_again() {
    let place = Place::new();
    place.set(".noparts", "");
    write(&place.partial(), &[0; 500]);
    place.assert_fetched();
    assert_eq!(place.hub.ranges(), [500]);
}

#[test]
fn a_part_that_fits_no_more_is_thrown_away() {
    for part in [vec![0; 500], vec![0; 100_003], vec![0; 200_000]] {
        let place = Place::new();
        write(&place.partial(), &part);
        place.assert_fetched();
        assert!(!place.partial().exists());
    }
}

#[test]
fn what_is_not_what_was_listed_does_not_stay() {
    let place = Place::new();
    let wrong = "f".repeat(64);
    place.set(".etag", &wrong);
    let text = place.refusal(WEIGHTS);
    assert!(text.contains(&format!("its SHA-256 is {}, not {wrong}", sha256(&place.bytes))), "{text}");
    fs::remove_file(place.root.path().join("hub/o/n/.etag")).unwrap();
    for size in ["100002", "100004"] {
        place.set(".size", size);
        let text = place.refusal(WEIGHTS);
        assert!(text.contains("it came with") && text.contains(&format!("not the {size} listed")), "{text}");
        assert!(text.contains("the damaged file was removed from the cache"), "{text}");
    }
    let left = all_below(&place.cache());
    assert!(left.iter().all(|path| path.ends_with(".lock")), "{left:?}");
}

#[test]
fn an_etag_can_not_lead_out_of_the_cache() {
    let place = Place::new();
    for etag in ["../../../x", "..", "", "/x", "a/b"] {
        place.set(".etag", etag);
        let text = place.refusal(WEIGHTS);
        assert!(text.contains("ETag"), "{etag}: {text}");
    }
    for name in ["../x", "/etc/passwd", "a/../../x", ""] {
        assert!(place.refusal(name).contains("leads out of the repository"), "{name}");
    }
    assert!(!place.cache().exists());
}

#[test]
fn bytes_that_are_there_are_not_fetched_again() {
    let place = Place::new();
    let elsewhere = FakeHub::serve(place.root.path().join("hub"));
    write(&place.blob(), &place.bytes);
    place.set(".elsewhere", &elsewhere.endpoint());
    place.assert_fetched();
    assert_eq!(elsewhere.requests().len(), 0);
}

#[test]
fn a_file_that_another_process_downloads_is_waited_for() {
    let place = Place::new();
    let path = place.cache().join(".locks/models--o--n").join(format!("{}.lock", sha256(&place.bytes)));
    write(&path, b"");
    let held = File::open(&path).unwrap();
    held.lock().unwrap();
    let text = place.refusal(WEIGHTS);
    assert!(text.contains("another process is downloading it"), "{text}");
    drop(held);
    place.assert_fetched();
}
