//! Safetensors files of f32 values: written from slices in pieces, read back into one vector, with nothing missing and
//! nothing extra.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::checkpoint::{SafetensorsFile, Tensor};
use crate::digest::{Hasher, Hex};
use crate::error::{Error, Result, escaped};

/// A tensor, and where its values lie in a vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name in the file.
    pub(super) name: String,
    /// Lengths of the axes.
    pub(super) shape: Vec<usize>,
    /// Its values.
    pub(super) at: Range<usize>,
}

/// Values that are turned into bytes at once.
const PIECE: usize = 1 << 16;

/// Writes `entries` of `values` to a new file at `path`, and syncs it. Gives its SHA-256.
pub(super) fn write(path: &Path, entries: &[Entry], values: &[f32], metadata: &[(&str, &str)]) -> Result<Hex> {
    write_parts(path, &entries.iter().map(|entry| (entry, &values[entry.at.clone()])).collect::<Vec<_>>(), metadata)
}

/// Writes tensors, each with its values, to a new file at `path`, and syncs it. They are sorted by name, as every
/// writer of the format does within a type. Gives the file's SHA-256, of what was meant to be written.
pub(super) fn write_parts(path: &Path, tensors: &[(&Entry, &[f32])], metadata: &[(&str, &str)]) -> Result<Hex> {
    let mut sorted = tensors.to_vec();
    sorted.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let mut header = Map::new();
    let metadata: Map<String, Value> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    header.insert("__metadata__".to_owned(), metadata.into());
    let mut at = 0;
    for (Entry { name, shape, .. }, values) in &sorted {
        let end = at + values.len() * 4;
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let save = || -> io::Result<Hex> {
        let mut file = io::BufWriter::with_capacity(1 << 20, File::create_new(path)?);
        let mut hasher = Hasher::sha256();
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            file.write_all(bytes)
        };
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        let mut bytes = Vec::with_capacity(PIECE * 4);
        for piece in sorted.iter().flat_map(|(_, values)| values.chunks(PIECE)) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
            put(&bytes)?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(hasher.finish())
    };
    save().map_err(Error::io("write", path))
}

/// A file of tensors that must be `entries`, all of them and no other.
pub(super) struct Source {
    tensors: BTreeMap<String, Tensor>,
    /// The file's metadata.
    pub(super) metadata: BTreeMap<String, String>,
}

impl Source {
    /// Maps the file and holds its header against `entries`; `remedy` is what to do about the tensor of that name.
    pub(super) fn open(path: &Path, entries: &[Entry], remedy: &dyn Fn(&str) -> String) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let bad = |name: &str, problem: String| Err(Error::malformed(path, problem, remedy(name)));
        let tensors: BTreeMap<String, Tensor> = file.tensors().map(|t| (t.name().to_owned(), t)).collect();
        for Entry { name, shape, .. } in entries {
            let Some(tensor) = tensors.get(name) else {
                let missing = entries.iter().filter(|entry| !tensors.contains_key(&entry.name)).count();
                return bad(name, format!("lacks tensor {} ({missing} in all)", escaped(name)));
            };
            if tensor.shape() != shape {
                return bad(name, format!("tensor {} has shape {:?}, not {shape:?}", escaped(name), tensor.shape()));
            }
            if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let problem = format!("tensor {} is of type {:?}, not f32, f16 or bf16", escaped(name), tensor.dtype());
                return bad(name, problem);
            }
        }
        if tensors.len() > entries.len() {
            let expected: std::collections::BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            let extra: Vec<&String> = tensors.keys().filter(|name| !expected.contains(name.as_str())).collect();
            let first = extra.first().map_or("", |name| name);
            let problem = format!("has {}, which this run lacks ({} such tensors)", escaped(first), extra.len());
            return bad(first, problem);
        }
        Ok(Self { tensors, metadata: file.header().metadata.clone() })
    }

    /// Copies the values of `entries` to their places. Refuses NaN and infinities.
    pub(super) fn read(&self, path: &Path, entries: &[Entry], values: &mut [f32]) -> Result<()> {
        for Entry { name, at, .. } in entries {
            // `open` saw that it is there, with as many values.
            let Some(tensor) = self.tensors.get(name) else { continue };
            let to = &mut values[at.clone()];
            let bytes = tensor.bytes();
            match tensor.dtype() {
                Dtype::F32 => fill(to, bytes, f32::from_le_bytes),
                Dtype::F16 => fill(to, bytes, |b| f16::from_le_bytes(b).to_f32()),
                _ => fill(to, bytes, |b| bf16::from_le_bytes(b).to_f32()),
            }
            if let Some(value) = to.iter().find(|value| !value.is_finite()) {
                let problem = format!("tensor {} holds {value}", escaped(name));
                return Err(Error::malformed(path, problem, "choose an earlier checkpoint: this one is broken"));
            }
        }
        Ok(())
    }
}

fn fill<const N: usize>(to: &mut [f32], bytes: &[u8], value: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    to.iter_mut().zip(chunks).for_each(|(to, chunk)| *to = value(*chunk));
}
