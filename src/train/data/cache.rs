//! A tokenized set on disk: one safetensors file, named by the digest of all that it was made from. A file that is not
//! exactly what was written is ignored.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, serialize};

use super::encode::Sample;
use super::fit::{Dropped, Encoded};
use crate::digest::{Hex, sha256};
use crate::error::{Error, Result};
use crate::files::open_regular;

/// Changes with the form of the file.
const FORMAT: &str = "qft tokens 2";
/// Extension of a file that is being written.
const TEMPORARY: &str = "tmp";

/// The key of a set made by the encoder with `fingerprint` from `inputs`: digests of the files of data, and whatever
/// else says which rows they give, in order.
pub fn key(fingerprint: &str, inputs: &[impl AsRef<str>]) -> Hex {
    let inputs: Vec<&str> = inputs.iter().map(AsRef::as_ref).collect();
    sha256(format!("{FORMAT} {fingerprint:?} {inputs:?}").as_bytes())
}

/// The file of `key` in `dir`.
pub fn path(dir: &Path, key: &str) -> PathBuf {
    let short: String = key.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    dir.join(format!("tokens-{short}.safetensors"))
}

/// The set of `key`, if `dir` has it whole.
pub fn load(dir: &Path, key: &str) -> Option<Encoded> {
    let (mut file, len) = open_regular(&path(dir, key)).ok()?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(len).ok()?).ok()?;
    file.read_to_end(&mut bytes).ok()?;
    parse(&bytes, key)
}

/// Keeps `set` under `key` in `dir`, which is made if need be. The file appears whole or not at all.
pub fn store(dir: &Path, key: &str, set: &Encoded) -> Result<PathBuf> {
    fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
    let bytes = written(key, set).ok_or_else(|| {
        Error::bug(
            "the tokenized set has a row number that the cache can't hold",
            "run without a cache: ⟦load_from_cache_file false⟧",
        )
    })?;
    let path = path(dir, key);
    sweep(dir);
    let (mut file, staged) = staging(&path)?;
    // Tells others that it is no left-over. A filesystem without locks is no reason to fail.
    let _ = file.try_lock();
    let done = file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", &staged));
    let done = done.and_then(|()| fs::rename(&staged, &path).map_err(Error::io("rename", &staged)));
    if done.is_err() {
        // The first failure is the one to tell.
        let _ = fs::remove_file(&staged);
    }
    done.map(|()| path)
}

/// Deletes what processes that were killed have left half written. Best effort: it is in nobody's way.
fn sweep(dir: &Path) {
    let paths = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let left = paths.filter(|path| path.extension().is_some_and(|extension| extension == TEMPORARY));
    for path in left.filter(|path| File::open(path).is_ok_and(|file| file.try_lock().is_ok())) {
        let _ = fs::remove_file(path);
    }
}

/// A new file beside `path`.
fn staging(path: &Path) -> Result<(File, PathBuf)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!("{}-{}.{TEMPORARY}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let staged = path.with_extension(name);
        match OpenOptions::new().write(true).create_new(true).open(&staged) {
            Ok(file) => return Ok((file, staged)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("make", &staged)(e)),
        }
    }
}

/// The bytes of the file.
fn written(key: &str, set: &Encoded) -> Option<Vec<u8>> {
    let samples = || set.samples.iter();
    let lengths: Option<Vec<u32>> = samples().map(|sample| u32::try_from(sample.ids.len()).ok()).collect();
    let rows: Option<Vec<u32>> = set.rows.iter().map(|row| u32::try_from(*row).ok()).collect();
    let parts = [
        ("ids", Dtype::U32, samples().flat_map(|sample| &sample.ids).flat_map(|id| id.to_le_bytes()).collect()),
        ("weights", Dtype::F32, samples().flat_map(|sample| &sample.weights).flat_map(|w| w.to_le_bytes()).collect()),
        ("lengths", Dtype::U32, lengths?.into_iter().flat_map(u32::to_le_bytes).collect()),
        ("rows", Dtype::U32, rows?.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>()),
    ];
    let dropped = serde_json::to_string(&set.dropped).ok()?;
    let as_given = set.as_given.to_string();
    let digest = digest(key, [&dropped, &as_given], parts.iter().map(|(_, _, bytes)| bytes.as_slice()));
    let about = [("format", FORMAT), ("key", key), ("dropped", &dropped), ("as_given", &as_given), ("sha256", &digest)];
    let about: HashMap<String, String> = about.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let views: Option<Vec<_>> = parts
        .iter()
        .map(|(name, dtype, bytes)| Some((*name, TensorView::new(*dtype, vec![bytes.len() / 4], bytes).ok()?)))
        .collect();
    serialize(views?, Some(about)).ok()
}

/// A digest of all that a file says.
fn digest<'b>(key: &str, said: [&str; 2], parts: impl Iterator<Item = &'b [u8]>) -> Hex {
    let parts: Vec<Hex> = parts.map(sha256).collect();
    sha256(format!("{key:?} {said:?} {parts:?}").as_bytes())
}

/// The set of a file; `None` if anything of it is odd.
fn parse(bytes: &[u8], key: &str) -> Option<Encoded> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let about = header.metadata().as_ref()?;
    let (format, its_key, dropped) = (about.get("format")?, about.get("key")?, about.get("dropped")?);
    let as_given = about.get("as_given")?;
    if format != FORMAT || its_key != key {
        return None;
    }
    let file = SafeTensors::deserialize(bytes).ok()?;
    let names = [("ids", Dtype::U32), ("weights", Dtype::F32), ("lengths", Dtype::U32), ("rows", Dtype::U32)];
    let mut parts = Vec::with_capacity(names.len());
    for (name, dtype) in names {
        let view = file.tensor(name).ok().filter(|view| view.dtype() == dtype)?;
        parts.push(view.data());
    }
    if *about.get("sha256")? != digest(key, [dropped, as_given], parts.iter().copied()) {
        return None;
    }
    let (ids, weights, lengths, rows) = (words(parts[0]), words(parts[1]), words(parts[2]), words(parts[3]));
    let mut tokens = ids.zip(weights.map(f32::from_bits));
    let mut samples = Vec::with_capacity(lengths.len());
    for len in lengths {
        // A sum of lengths beyond the tokens ends here, before anything of that size is made.
        let len = usize::try_from(len).ok().filter(|len| *len <= tokens.len())?;
        let (ids, weights) = tokens.by_ref().take(len).unzip();
        samples.push(Sample { ids, weights });
    }
    let set = Encoded {
        samples,
        rows: rows.map(|row| row as usize).collect(),
        dropped: serde_json::from_str::<Vec<Dropped>>(dropped).ok()?,
        as_given: as_given.parse().ok()?,
    };
    let sound = |sample: &Sample| {
        sample.weights.first().is_some_and(|weight| *weight == 0.0)
            && sample.weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0)
    };
    let whole = tokens.next().is_none() && set.rows.len() == set.samples.len() && set.rows.is_sorted();
    (whole && set.samples.iter().all(sound)).then_some(set)
}

/// Little-endian words.
fn words(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::super::fit::Reason;
    use super::*;

    fn set() -> Encoded {
        let sample =
            |len: u32| Sample { ids: (0..len).collect(), weights: (0..len).map(|at| (at % 2) as f32).collect() };
        Encoded {
            samples: vec![sample(3), sample(1), sample(6)],
            rows: vec![0, 2, 3],
            dropped: vec![
                Dropped { row: 1, reason: Reason::Refused { problem: "层".to_owned(), remedy: String::new() } },
                Dropped { row: 4, reason: Reason::TooLong(7) },
            ],
            as_given: 3,
        }
    }

    #[test]
    fn what_is_stored_comes_back_under_its_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new/cache");
        let (one, other) = (key("e", &["a", "b"]), key("e", &["ab"]));
        assert_eq!(load(&dir, &one), None);
        let path = store(&dir, &one, &set()).unwrap();
        store(&dir, &one, &set()).unwrap();
        assert_eq!(load(&dir, &one), Some(set()));
        assert_eq!(load(&dir, &other), None);
        fs::rename(path, super::path(&dir, &other)).unwrap();
        assert_eq!(load(&dir, &other), None, "a file of another key");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left behind");
        let empty = Encoded::default();
        store(&dir, &one, &empty).unwrap();
        assert_eq!(load(&dir, &one), Some(empty));
    }

    #[test]
    fn what_a_killed_process_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["tokens-1.1-0.tmp", "tokens-2.2-0.tmp", "notes.txt"].map(|name| dir.path().join(name));
        names.iter().for_each(|path| fs::write(path, "half").unwrap());
        let busy = File::open(&names[1]).unwrap();
        busy.lock().unwrap();
        store(dir.path(), &key("e", &["a"]), &set()).unwrap();
        assert_eq!(names.map(|path| path.exists()), [false, true, true]);
        drop(busy);
        store(dir.path(), &key("e", &["b"]), &set()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "two sets and the notes");
    }

    #[test]
    fn a_damaged_file_is_none() {
        let bytes = written("k", &set()).unwrap();
        assert_eq!(parse(&bytes, "k"), Some(set()));
        for at in 0..bytes.len() {
            for change in [1, 0x80] {
                let mut bytes = bytes.clone();
                bytes[at] ^= change;
                if let Some(found) = parse(&bytes, "k") {
                    assert_eq!(found, set(), "byte {at}");
                }
            }
            assert_eq!(parse(&bytes[..at], "k"), None, "cut at {at}");
        }
    }

    /// Files that are sound as far as the digest goes, and still lie.
    #[test]
    fn lies_under_a_right_digest_are_not_believed() {
        let with = |change: &dyn Fn(&mut Encoded)| {
            let mut set = set();
            change(&mut set);
            parse(&written("k", &set).unwrap(), "k")
        };
        assert!(with(&|_| ()).is_some());
        assert_eq!(with(&|set| set.samples[0].weights[0] = 1.0), None);
        assert_eq!(with(&|set| set.samples[0].weights[1] = f32::NAN), None);
        assert_eq!(with(&|set| set.samples[0].weights[1] = -1.0), None);
        assert_eq!(with(&|set| set.samples[2].weights.truncate(5)), None);
        assert_eq!(with(&|set| set.rows.truncate(2)), None);
        assert_eq!(with(&|set| set.rows.swap(0, 1)), None);
        assert_eq!(with(&|set| set.samples[1].ids.clear()), None);
    }
}
