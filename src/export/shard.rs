//! Sharding: which tensor goes to which file, and the exact bytes of headers and of the index. Pure.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapter::TensorSource;
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE, compare_names};

/// One tensor with its place in a shard.
#[derive(Debug)]
pub struct PlacedTensor<S = TensorSource> {
    /// As the merged model calls it.
    pub name: String,
    /// Its type in the output.
    pub dtype: Dtype,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// What it is made of.
    pub source: S,
    /// Its first byte, counted from the start of the file.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// One file of the output.
#[derive(Debug)]
pub struct Shard<S = TensorSource> {
    /// `model-00001-of-00003.safetensors`, or `model.safetensors` if it is the only one.
    pub name: String,
    /// Length field and JSON, padded with spaces to a multiple of eight bytes.
    pub header: Vec<u8>,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<PlacedTensor<S>>,
}

impl<S> Shard<S> {
    /// Bytes of the whole file.
    pub fn len(&self) -> u64 {
        self.tensors.last().map_or(self.header.len() as u64, |t| t.offset + t.len)
    }

    /// Whether the shard has no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// A tensor of the output, before it has a place in a file.
#[derive(Debug, Clone)]
pub struct OutputTensor<S = TensorSource> {
    /// As the merged model calls it.
    pub name: String,
    /// Its type in the output.
    pub dtype: Dtype,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// What it is made of.
    pub source: S,
}

impl<S> OutputTensor<S> {
    /// Bytes in the output; `None` if they overflow.
    pub(crate) fn len(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |n, length| n.checked_mul(*length as u64));
        elements?.checked_mul(self.dtype.bitsize() as u64).map(|bits| bits / 8)
    }
}

/// Splits tensors into shards of at most `max` tensor bytes, as the Hub's tools do: greedily in the order of
/// [`compare_names`]; a tensor over `max` gets a shard of its own, and the shard being filled stays open.
/// Rule: `huggingface_hub/serialization/_base.py`.
pub(crate) fn split<S>(mut tensors: Vec<OutputTensor<S>>, max: u64) -> Vec<Shard<S>> {
    tensors.sort_by(|a, b| compare_names(&a.name, &b.name));
    let mut groups: Vec<Vec<OutputTensor<S>>> = Vec::new();
    let (mut open, mut filled) = (Vec::new(), 0u64);
    for tensor in tensors {
        let len = tensor.len().unwrap_or(u64::MAX);
        if len > max {
            groups.push(vec![tensor]);
            continue;
        }
        if !open.is_empty() && filled + len > max {
            groups.push(std::mem::take(&mut open));
            filled = 0;
        }
        filled += len;
        open.push(tensor);
    }
    if !open.is_empty() || groups.is_empty() {
        groups.push(open);
    }
    let count = groups.len();
    let name = |i: usize| match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    groups.into_iter().enumerate().map(|(i, group)| place(name(i), group)).collect()
}

/// Gives every tensor its offset. Types with larger elements go first, so that each is aligned without gaps; within a
/// type the order stays.
fn place<S>(name: String, mut group: Vec<OutputTensor<S>>) -> Shard<S> {
    group.sort_by_key(|t| std::cmp::Reverse(t.dtype.bitsize()));
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for tensor in &group {
        let end = at + tensor.len().unwrap_or(0);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]});
        entries.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    let mut offset = header.len() as u64;
    let placed = group.into_iter().map(|t| {
        let len = t.len().unwrap_or(0);
        let OutputTensor { name, dtype, shape, source } = t;
        let tensor = PlacedTensor { name, dtype, shape, source, offset, len };
        offset += len;
        tensor
    });
    let tensors = placed.collect();
    Shard { name, header, tensors }
}

/// The text of the index, as the Hub's tools write it; `None` where one file needs none.
pub(crate) fn index<S>(shards: &[Shard<S>]) -> Option<(&'static str, String)> {
    if shards.len() < 2 {
        return None;
    }
    let tensors = || shards.iter().flat_map(|shard| shard.tensors.iter().map(move |t| (shard, t)));
    let map: BTreeMap<&str, &str> = tensors().map(|(shard, t)| (t.name.as_str(), shard.name.as_str())).collect();
    let bytes: u64 = tensors().map(|(_, t)| t.len).sum();
    let parameters: usize = tensors().map(|(_, t)| t.shape.iter().product::<usize>()).sum();
    let index = json!({
        "metadata": {"total_parameters": parameters, "total_size": bytes},
        "weight_map": map,
    });
    Some((INDEX_FILE, format!("{index:#}\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::SafetensorsFile;
    use proptest::prelude::*;

    /// One-byte-element tensors of the given lengths, named in order.
    fn tensors(lengths: &[usize]) -> (tempfile::TempDir, Vec<OutputTensor>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let data = vec![0u8; lengths.iter().sum()];
        let view = |n: usize| safetensors::tensor::TensorView::new(Dtype::U8, vec![n], &data[..n]).unwrap();
        let views = lengths.iter().enumerate().map(|(i, n)| (format!("t.{i}"), view(*n)));
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        let unplaced = |t: crate::checkpoint::Tensor| OutputTensor {
            name: t.name().to_owned(),
            dtype: t.dtype(),
            shape: t.shape().to_vec(),
            source: TensorSource::untouched(&t),
        };
        let all = file.tensors().map(unplaced).collect();
        (dir, all)
    }

    fn layout(lengths: &[usize], max: u64) -> Vec<Vec<String>> {
        let (_dir, all) = tensors(lengths);
        split(all, max).iter().map(|s| s.tensors.iter().map(|t| t.name[2..].to_owned()).collect()).collect()
    }

    #[test]
    fn greedy_with_oversized_tensors_apart() {
        assert_eq!(layout(&[4, 4, 3, 9], 8), [vec!["0", "1"], vec!["3"], vec!["2"]]);
        assert_eq!(layout(&[5, 20, 3], 8), [vec!["1"], vec!["0", "2"]], "the open shard stays open");
        assert_eq!(layout(&[8], 8), [vec!["0"]]);
        assert_eq!(layout(&[], 8), [Vec::<String>::new()]);
    }

    #[test]
    fn one_file_is_called_model_and_has_no_index() {
        let (_dir, all) = tensors(&[3, 4]);
        let shards = split(all, 100);
        assert_eq!((shards[0].name.as_str(), index(&shards)), (SINGLE_FILE, None));
    }

    proptest! {
        #[test]
        fn headers_are_what_the_reference_reads(lengths in proptest::collection::vec(0usize..40, 0..12), max in 1u64..60) {
            let (_dir, all) = tensors(&lengths);
            let shards = split(all, max);
            let mut seen = 0;
            for shard in &shards {
                let mut file = shard.header.clone();
                file.resize(shard.len() as usize, 0);
                let read = safetensors::SafeTensors::deserialize(&file).unwrap();
                prop_assert_eq!(read.len(), shard.tensors.len());
                prop_assert_eq!(shard.header.len() % 8, 0);
                prop_assert!(shard.tensors.len() <= 1 || shard.tensors.iter().map(|t| t.len).sum::<u64>() <= max);
                seen += shard.tensors.len();
            }
            prop_assert_eq!(seen, lengths.len());
        }
    }
}
