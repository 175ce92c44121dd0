//! Every block encoder against the golden blocks of `fixtures/make_blocks.py`, at every vector width, byte for byte.

use std::fs;
use std::path::{Path, PathBuf};

use qft::ggml::TensorType;
use qft::ggml::encode::{can_encode, encode};
use qft::merge::Vector;

const COLUMNS: usize = 512;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/blocks")
}

fn floats(name: &str) -> Vec<f32> {
    let bytes = fs::read(directory().join(name)).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn encoders_give_the_bytes_of_llama_cpp() {
    let (rows, importance) = (floats("rows.f32"), floats("importance.f32"));
    let forms = || std::iter::once(None).chain(importance.chunks(COLUMNS).map(Some));
    let mut types = 0;
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "bin") {
            continue;
        }
        types += 1;
        let kind: TensorType = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        assert!(can_encode(kind), "{kind}");
        let row = kind.row_bytes(COLUMNS).unwrap();
        let expected = fs::read(&path).unwrap();
        let forms_of_expected = expected.chunks(rows.len() / COLUMNS * row);
        assert_eq!(forms().count(), forms_of_expected.len(), "{kind}");
        for (form, (importance, expected)) in forms().zip(forms_of_expected).enumerate() {
            for vector in Vector::available() {
                let mut found = vec![0xaa; expected.len()];
                encode(kind, vector, &rows, COLUMNS, importance, &mut found);
                let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
                let place = wrong.map(|at| format!("row {}, byte {} of it", at / row, at % row));
                assert_eq!(place, None, "{kind}, form {form}, {vector:?}");
            }
        }
    }
    assert_eq!(types, 12);
}
