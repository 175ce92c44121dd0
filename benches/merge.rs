//! The merge kernel against a plain copy of the same bytes, at the ranks that users train. Bytes are those of the base.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qft::merge::{Factor, Float, Layout, LowRank, Merge, Overflow, Vector};

/// Columns of Qwen2.5-7B's `q_proj`, and as many rows as a block of 2 MiB has.
const COLUMNS: usize = 3584;
const ROWS: usize = 292;

/// Bytes that are no pattern, so that nothing can be predicted: floats around one.
fn noise(float: Float, n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..n).map(|_| next()).collect();
    let mut bytes = vec![0; n * float.size()];
    float.narrow(&values, &mut bytes);
    bytes
}

fn factor(bytes: &[u8], rows: usize, columns: usize) -> Factor<'_> {
    let layout = Layout { offset: 0, row_stride: columns, column_stride: 1 };
    Factor::new(bytes, Float::F32, layout, rows, columns).expect("the bytes of rows x columns")
}

fn merge(c: &mut Criterion) {
    let base = noise(Float::Bf16, ROWS * COLUMNS);
    let mut out = vec![0u8; base.len()];
    let mut group = c.benchmark_group("merge");
    group.throughput(Throughput::Bytes(base.len() as u64));
    group.bench_function("copy", |b| b.iter(|| out.copy_from_slice(std::hint::black_box(&base))));
    for vector in Vector::available().filter(|v| *v != Vector::Scalar) {
        for rank in [8, 16, 64] {
            let (left, right) = (noise(Float::F32, ROWS * rank), noise(Float::F32, rank * COLUMNS));
            let term = LowRank {
                rows: 0..ROWS,
                left: factor(&left, ROWS, rank),
                right: factor(&right, rank, COLUMNS),
                rank,
                scale: 4.0,
            };
            let merge = Merge::cast(&base, Float::Bf16, Float::Bf16, COLUMNS, Overflow::Refuse, vector)
                .finite()
                .add_terms(vec![term]);
            group.bench_function(BenchmarkId::new(format!("{vector:?}"), format!("rank {rank}")), |b| {
                b.iter(|| merge.run(0..ROWS * COLUMNS, &mut out).expect("finite values"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, merge);
criterion_main!(benches);
