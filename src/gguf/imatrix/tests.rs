use proptest::prelude::*;

use super::*;
use crate::ggml::TensorType;
use crate::gguf::{Metadata, Value};

fn length<T>(of: &[T]) -> [u8; 4] {
    i32::try_from(of.len()).unwrap().to_le_bytes()
}

fn legacy(entries: &[(&str, i32, &[f32])], trailer: &[u8]) -> Vec<u8> {
    let mut bytes = length(entries).to_vec();
    for (name, calls, values) in entries {
        bytes.extend(length(name.as_bytes()));
        bytes.extend(name.as_bytes());
        bytes.extend(calls.to_le_bytes());
        bytes.extend(length(values));
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    }
    bytes.extend(trailer);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Imatrix> {
    Imatrix::parse_legacy(Path::new("x.dat"), bytes)
}

#[test]
fn legacy_values_are_divided_by_their_calls() {
    let trailer = [&7i32.to_le_bytes()[..], &3i32.to_le_bytes(), b"a\0b"].concat();
    let read = parse(&legacy(&[("a", 4, &[2.0, 6.0]), ("b", 0, &[3.0])], &trailer)).unwrap();
    assert_eq!(read.weights_for("a", 2, 1).unwrap(), Some(&[0.5, 1.5][..]));
    assert_eq!(read.weights_for("b", 1, 1).unwrap(), Some(&[3.0][..]), "no calls: as they are");
    let info = ImatrixInfo { file: "x".to_owned(), dataset: Some("a".to_owned()), entries: 2, chunks: 7 };
    assert_eq!(read.info("x"), info);
    let read = parse(&legacy(&[("a", 1, &[2.0])], &[])).unwrap();
    assert_eq!((read.info("x").dataset, read.info("x").chunks), (None, 0), "the trailer is optional");
}

#[test]
fn sizes_must_fit_but_for_embeddings() {
    let read = parse(&legacy(&[("token_embd.weight", 1, &[1.0; 4]), ("blk.0.x", 1, &[1.0; 4])], &[])).unwrap();
    assert_eq!(read.weights_for("token_embd.weight", 8, 1).unwrap(), None);
    assert_eq!(read.weights_for("blk.1.x", 4, 1).unwrap(), None);
    assert!(read.weights_for("blk.0.x", 2, 2).unwrap().is_some());
    let error = read.weights_for("blk.0.x", 8, 1).unwrap_err().to_string();
    assert!(error.contains("4 weights for blk.0.x") && error.contains("this model"), "{error}");
    assert!(read.weights_for("blk.0.x", usize::MAX, 2).is_err(), "overflow");
}

#[test]
fn broken_files_are_refused() {
    let whole = legacy(&[("a", 1, &[1.0, 2.0])], &[7i32.to_le_bytes(), 0i32.to_le_bytes()].concat());
    assert!(parse(&whole).is_ok());
    for len in (0..whole.len()).filter(|len| ![25, 29].contains(len)) {
        assert!(parse(&whole[..len]).is_err(), "cut to {len} bytes");
    }
    let huge = [1i32.to_le_bytes(), i32::MAX.to_le_bytes()].concat();
    let negative = [1i32.to_le_bytes(), (-1i32).to_le_bytes()].concat();
    let twice = legacy(&[("a", 1, &[1.0]), ("a", 1, &[1.0])], &[]);
    for bad in [huge, negative, twice, legacy(&[("a", 1, &[f32::NAN])], &[]), legacy(&[("a", 1, &[])], &[])] {
        assert!(parse(&bad).is_err(), "{bad:?}");
    }
}

fn metadata() -> Metadata {
    let pairs = [
        ("imatrix.datasets", Value::strings(["one.txt", "two.txt"])),
        ("imatrix.chunk_count", Value::U32(9)),
        ("imatrix.chunk_size", Value::U32(64)),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn collect(metadata: &Metadata, tensors: &[(&str, &[f32])]) -> Result<Imatrix> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let tensors = tensors.iter().zip(&bytes).map(|((name, _), bytes)| (*name, TensorType::F32, bytes.as_slice()));
    gguf::collect(Path::new("x.gguf"), metadata, tensors)?.checked()
}

#[test]
fn sums_become_means_and_ones_where_nothing_was_counted() {
    let sums = [8.0, 4.0, 9.0, 9.0, 3.0, 6.0];
    let read = collect(&metadata(), &[("e.counts", &[4.0, 0.0, 2.6]), ("e.in_sum2", &sums), ("other", &[1.0])]);
    let read = read.unwrap();
    assert_eq!(read.weights_for("e", 2, 3).unwrap(), Some(&[2.0, 1.0, 1.0, 1.0, 1.0, 2.0][..]));
    assert_eq!(read.names().collect::<Vec<_>>(), ["e"]);
    let info = read.info("x");
    assert_eq!((info.dataset.as_deref(), info.entries, info.chunks), (Some("one.txt"), 1, 9));
}

#[test]
fn sums_and_counts_must_go_together() {
    let good: [(&str, &[f32]); 2] = [("e.in_sum2", &[1.0, 2.0]), ("e.counts", &[1.0])];
    assert!(collect(&metadata(), &good).is_ok());
    assert!(collect(&metadata(), &good[..1]).is_err() && collect(&metadata(), &good[1..]).is_err());
    assert!(collect(&metadata(), &[]).unwrap_err().to_string().contains("no tensor"));
    assert!(collect(&metadata(), &[("e.in_sum2", &[1.0, 2.0]), ("e.counts", &[])]).is_err());
    assert!(collect(&metadata(), &[("e.in_sum2", &[1.0, 2.0]), ("e.counts", &[1.0; 3])]).is_err());
    assert!(collect(&metadata(), &[("e.in_sum2", &[f32::INFINITY]), ("e.counts", &[1.0])]).is_err());
    let mut less = metadata();
    less.remove("imatrix.chunk_size");
    assert!(collect(&less, &good).unwrap_err().to_string().contains("chunk_size"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200)) {
        let _ = parse(&bytes);
    }
}

#[test]
fn files_of_both_formats_give_the_weights_they_stand_for() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mixtures/files");
    let golden: BTreeMap<String, BTreeMap<String, Vec<f32>>> =
        serde_json::from_slice(&std::fs::read(dir.join("imatrix.json")).unwrap()).unwrap();
    for (file, entries) in golden {
        let read = Imatrix::read(&dir.join(&file)).unwrap();
        for (name, weights) in entries {
            assert_eq!(read.weights_for(&name, weights.len(), 1).unwrap(), Some(&weights[..]), "{file} {name}");
        }
    }
}
