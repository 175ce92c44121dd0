//! Importance matrices in GGUF: for each tensor its columns' sums of squares, and how many rows were summed. Read as
//! `common_imatrix_load` in imatrix-loader.cpp does; sums become means as in llama-quantize.

use std::path::Path;

use super::{BTreeMap, Error, Imatrix, REMEDY, Result, escaped};
use crate::ggml::TensorType;
use crate::gguf::{GgufFile, Metadata, Value};

/// Keys that say what a matrix was computed from. A file has all of them.
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// Ends of tensors' names.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Sums and counts of a tensor: the bytes of little-endian floats.
type Halves<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// Reads the GGUF file at `path`.
pub(super) fn read(path: &Path) -> Result<Imatrix> {
    let file = GgufFile::open(path)?;
    collect(path, file.metadata(), file.tensors().iter().map(|info| (info.name.as_str(), info.kind, file.bytes(info))))
}

/// Makes an importance matrix of the keys and the tensors (name, type, bytes) of the GGUF file at `path`.
pub(super) fn collect<'a>(
    path: &Path,
    metadata: &Metadata,
    tensors: impl Iterator<Item = (&'a str, TensorType, &'a [u8])>,
) -> Result<Imatrix> {
    let broken = |problem: String| Error::malformed(path, problem, REMEDY);
    if let Some(key) = [DATASETS, CHUNK_COUNT, CHUNK_SIZE].iter().find(|key| metadata.get(key).is_none()) {
        return Err(broken(format!("is not an importance matrix: it has no {key}")));
    }
    let mut halves: BTreeMap<&str, Halves> = BTreeMap::new();
    for (name, kind, bytes) in tensors {
        let half = match (name.strip_suffix(SUMS), name.strip_suffix(COUNTS)) {
            (Some(of), _) => &mut halves.entry(of).or_default().0,
            (None, Some(of)) => &mut halves.entry(of).or_default().1,
            (None, None) => continue,
        };
        if kind != TensorType::F32 {
            return Err(broken(format!("tensor {} is {kind} instead of F32", escaped(name))));
        }
        *half = Some(bytes);
    }
    let weights = halves.into_iter().map(|(name, halves)| {
        let (Some(sums), Some(counts)) = halves else {
            return Err(broken(format!("{} has no sums, or no counts", escaped(name))));
        };
        let weights = means(floats(sums), floats(counts)).ok_or_else(|| {
            broken(format!("{}: {} bytes of sums don't match {} of counts", escaped(name), sums.len(), counts.len()))
        })?;
        Ok((name.to_owned(), weights))
    });
    Ok(Imatrix {
        path: path.to_owned(),
        weights: weights.collect::<Result<_>>()?,
        datasets: metadata.get(DATASETS).and_then(Value::as_strings).unwrap_or_default().to_vec(),
        // llama-quantize takes the number for an i32.
        chunks: metadata.get(CHUNK_COUNT).and_then(Value::as_u64).map_or(0, |n| u32::try_from(n as i32).unwrap_or(0)),
    })
}

fn floats(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// Sums divided by the count of their matrix; ones where nothing was counted (an expert that no token chose). `None`
/// if there aren't as many sums for each count.
fn means(sums: impl ExactSizeIterator<Item = f32>, counts: impl ExactSizeIterator<Item = f32>) -> Option<Vec<f32>> {
    let columns = sums.len().checked_div(counts.len()).filter(|columns| columns * counts.len() == sums.len())?;
    let counts = counts.flat_map(|count| std::iter::repeat_n(count.round(), columns));
    Some(sums.zip(counts).map(|(sum, count)| if count > 0.0 { sum / count } else { 1.0 }).collect())
}
