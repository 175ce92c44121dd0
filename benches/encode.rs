//! The block encoders, each type without and with importance, at every vector width but the slowest. One element is one
//! weight, and a lone thread encodes.

#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qft::ggml::TensorType;
use qft::ggml::encode::{can_encode, encode};
use qft::merge::Vector;

const COLUMNS: usize = 4096;
const ROWS: usize = 16;

/// Sums of four uniform numbers: near enough to the bells of real weights.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (next() + next() + next() + next()) * 0.02).collect()
}

fn encoders(c: &mut Criterion) {
    let values = noise(ROWS * COLUMNS);
    let importance: Vec<f32> = noise(COLUMNS).iter().map(|v| v * v).collect();
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(values.len() as u64));
    for kind in TensorType::all().filter(|kind| can_encode(*kind) && kind.is_quantized()) {
        let mut out = vec![0; values.len() / kind.block_len() * kind.block_bytes()];
        for (form, importance) in [("plain", None), ("imatrix", Some(&importance[..]))] {
            for vector in Vector::available().filter(|v| *v != Vector::Scalar) {
                group.bench_function(BenchmarkId::new(format!("{kind} {form}"), format!("{vector:?}")), |b| {
                    b.iter(|| encode(kind, vector, &values, COLUMNS, importance, &mut out));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, encoders);
criterion_main!(benches);
