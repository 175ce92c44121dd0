//! A file of torch.save (`adapter_model.bin`): a zip of raw storages, whose values are mapped where they lie, and a pickle
//! that says where, which `pickle` reads without running it.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::SafetensorsFile;
use super::header::{Header, MAX_TENSORS, TensorInfo};
use super::pickle::{self, StoredTensor};
use crate::error::{Error, Result, escaped};
use crate::files::Mapping;

/// Most bytes of a pickle: a tensor's entry takes some hundred.
const MAX_PICKLE: u64 = 256 << 20;
const REMEDY: &str = "load it with PEFT, and save it again: save_pretrained writes safetensors";

impl SafetensorsFile {
    /// Maps the file of torch.save at `path`, and reads which tensors it holds.
    pub fn open_torch(path: &Path) -> Result<Arc<Self>> {
        let mapping = Mapping::open(path)?;
        let tensors = tensors(mapping.bytes()).map_err(|problem| Error::malformed(path, escaped(&problem), REMEDY))?;
        let header = Header { tensors, metadata: BTreeMap::new(), len: 0, lint: Vec::new() };
        Ok(Arc::new(Self { mapping, header }))
    }
}

/// The tensors of a whole file, in the order of their bytes.
fn tensors(file: &[u8]) -> Result<Vec<TensorInfo>, String> {
    let mut zip = ZipArchive::new(Cursor::new(file))
        .map_err(|_| "is not a zip archive: it is damaged, or was saved by a torch older than 1.6".to_owned())?;
    let names: Vec<String> = zip.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    let mut pickles = names.iter().filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(prefix), None) = (pickles.next(), pickles.next()) else {
        return Err("holds no data.pkl, or several: it was not written by torch.save".to_owned());
    };
    if read(&mut zip, &format!("{prefix}byteorder"), 16).is_ok_and(|order| order.trim_ascii() == b"big") {
        return Err("was saved on a big-endian machine".to_owned());
    }
    let stored = pickle::read(&read(&mut zip, &format!("{prefix}data.pkl"), MAX_PICKLE)?)?;
    if stored.len() > MAX_TENSORS {
        return Err(format!("names {} tensors; qft reads at most {MAX_TENSORS}", stored.len()));
    }
    let mut found = Vec::with_capacity(stored.len());
    for (name, tensor) in stored {
        let storage = storage(&mut zip, &format!("{prefix}data/{}", tensor.storage));
        let (start, end) = storage
            .filter(|(_, end)| *end <= file.len())
            .and_then(|storage| place(&tensor, storage))
            .ok_or_else(|| format!("tensor {name} lies beyond its storage, is not contiguous, or is compressed"))?;
        found.push(TensorInfo { name, dtype: tensor.dtype, shape: tensor.shape, start, end });
    }
    found.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
    if let Some(pair) = found.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(format!("names tensor {} twice", pair[0].name));
    }
    Ok(found)
}

type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

fn read(zip: &mut Zip<'_>, name: &str, most: u64) -> Result<Vec<u8>, String> {
    let entry = zip.by_name(name).map_err(|e| format!("{name}: {e}"))?;
    let mut bytes = Vec::new();
    entry.take(most + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    if bytes.len() as u64 > most { Err(format!("{name} has more than {most} bytes")) } else { Ok(bytes) }
}

/// Where the bytes of a storage lie in the file.
fn storage(zip: &mut Zip<'_>, name: &str) -> Option<(usize, usize)> {
    let entry = zip.by_name(name).ok().filter(|entry| entry.compression() == CompressionMethod::Stored)?;
    let start = usize::try_from(entry.data_start()?).ok()?;
    Some((start, start.checked_add(usize::try_from(entry.size()).ok()?)?))
}

/// Where the bytes of a contiguous tensor lie, given where its storage does.
fn place(tensor: &StoredTensor, (start, end): (usize, usize)) -> Option<(usize, usize)> {
    let mut expected = 1usize;
    for (length, stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
        if *length > 1 && *stride != expected {
            return None;
        }
        expected = expected.checked_mul(*length)?;
    }
    let size = tensor.dtype.bitsize() / 8;
    let first = start.checked_add(tensor.offset.checked_mul(size)?)?;
    let last = first.checked_add(expected.checked_mul(size)?)?;
    (tensor.shape.len() == tensor.strides.len() && last <= end).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    fn stored(shape: &[usize], strides: &[usize], offset: usize) -> StoredTensor {
        StoredTensor { dtype: Dtype::F32, shape: shape.into(), strides: strides.into(), storage: "0".into(), offset }
    }

    #[test]
    fn only_what_is_contiguous_and_whole_has_a_place() {
        assert_eq!(place(&stored(&[3, 4], &[4, 1], 2), (100, 200)), Some((108, 156)));
        assert_eq!(place(&stored(&[1, 4], &[9, 1], 0), (0, 16)), Some((0, 16)), "the stride of one row is nobody's");
        assert_eq!(place(&stored(&[], &[], 1), (0, 8)), Some((4, 8)));
        for bad in [
            stored(&[3, 4], &[1, 3], 0),
            stored(&[3, 4], &[4, 1], 14),
            stored(&[3, 4], &[1], 0),
            stored(&[usize::MAX, 2], &[2, 1], 0),
            stored(&[1], &[1], usize::MAX),
        ] {
            assert_eq!(place(&bad, (100, 200)), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_zip_says_so() {
        assert!(tensors(b"\x80\x02}q\x00.").unwrap_err().contains("older than 1.6"));
        assert!(tensors(b"").is_err());
    }
}
