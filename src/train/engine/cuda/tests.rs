//! The card against the references that all engines are held to. Where there is no card, tests say so and pass.

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{CudaEngine, CudaMatrix, frozen};
use crate::checkpoint::SafetensorsFile;
use crate::gpu::Device;
use crate::train::engine::{Engine, Heads, checks, checks::Probe};

/// Of the largest value: a few roundings to bf16.
const TOLERANCE: f64 = 2e-2;

impl Probe for CudaEngine {
    fn matrix(&self, rows: usize, cols: usize, room: usize, values: &[f32]) -> CudaMatrix {
        let matrix = self.matrix(rows, cols, room).unwrap();
        // Spare columns hold what no operation may read.
        let mut spaced = vec![bf16::NAN.to_bits(); rows * matrix.stride];
        for (out, values) in spaced.chunks_mut(matrix.stride).zip(values.chunks(cols)) {
            out.iter_mut().zip(values).for_each(|(out, value)| *out = bf16::from_f32(*value).to_bits());
        }
        self.card.write(matrix.memory(), &spaced).unwrap();
        matrix
    }

    fn values(&self, matrix: &CudaMatrix) -> Vec<f32> {
        let bits: Vec<u16> = self.card.read(matrix.memory(), matrix.rows * matrix.stride).unwrap();
        let rows = bits.chunks(matrix.stride).flat_map(|row| &row[..matrix.cols]);
        rows.map(|bits| bf16::from_bits(*bits).to_f32()).collect()
    }
}

/// A card, or none, which is said.
fn engine() -> Option<CudaEngine> {
    match CudaEngine::open(Device::Cuda) {
        Ok(engine) => Some(engine),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

#[test]
fn rows_and_values() {
    let Some(engine) = engine() else { return };
    checks::check_embedding(&engine);
    checks::check_normalization(&engine, TOLERANCE);
    checks::check_gate(&engine, TOLERANCE);
}

#[test]
fn attention() {
    let Some(engine) = engine() else { return };
    for (query, key, size) in [(4, 2, 64), (3, 1, 128), (2, 2, 64)] {
        let heads = Heads { query, key, size };
        checks::check_rotation(&engine, heads, TOLERANCE);
        checks::check_attention(&engine, heads, TOLERANCE);
    }
}

#[test]
fn projections() {
    let Some(engine) = engine() else { return };
    checks::check_projection(&engine, false, TOLERANCE);
}

/// More than a piece of pinned memory, to rows with room and without.
#[test]
fn large_uploads() {
    let Some(engine) = engine() else { return };
    let values: Vec<f32> = (0..3_000_001).map(|i| i as f32).collect();
    assert!(engine.read(&engine.vector(&values).unwrap()).unwrap() == values);
    let (rows, cols) = (2305, 2056);
    let bits = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u16;
    let bytes: Vec<u8> = (0..rows * cols).flat_map(|i| bits(i).to_le_bytes()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.safetensors");
    let view = TensorView::new(Dtype::BF16, vec![rows, cols], &bytes).unwrap();
    safetensors::serialize_to_file([("large", view)], None, &path).unwrap();
    let tensor = SafetensorsFile::open(&path).unwrap().tensors().next().unwrap();
    for room in [0, 24] {
        let matrix = CudaMatrix::new(&engine.card, rows + 3, cols, room).unwrap();
        assert_eq!(frozen::copy(&engine.card, &tensor, &matrix, 3).unwrap(), rows);
        let found: Vec<u16> = engine.card.read(matrix.memory(), (rows + 3) * matrix.stride).unwrap();
        let found = found.chunks(matrix.stride).skip(3).flat_map(|row| &row[..cols]);
        assert!(found.enumerate().all(|(i, found)| *found == bits(i)), "room {room}");
        assert!(frozen::copy(&engine.card, &tensor, &matrix, 4).is_err(), "beyond the last row");
    }
}

#[test]
fn loss_and_optimizer() {
    let Some(engine) = engine() else { return };
    checks::check_cross_entropy(&engine, TOLERANCE);
    checks::check_vectors(&engine);
    checks::check_adamw(&engine);
}
