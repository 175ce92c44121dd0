//! How fast kernels and lanes are, printed. Run with `--ignored --nocapture` on a machine with a GPU.
#![expect(clippy::print_stdout, reason = "that is what it is for")]

use std::time::Instant;

use super::*;
use crate::gpu::lanes::block::EncoderKind;
use crate::gpu::lanes::card::CudaCard;
use crate::gpu::lanes::kernels::{MERGE, ROW_GAINS};
use crate::gpu::lanes::upload::{Factors, Weights};
use crate::gpu::runtime::{DeviceMemory, Gpu, HostMemory, Kernel};

/// Weights of each measurement, as rows.
const COLUMNS: usize = 4096;
const ROWS: usize = 16384;
const COUNT: usize = ROWS * COLUMNS;
const ROUNDS: usize = 8;

/// Seconds of one of `ROUNDS` runs of a kernel, after one that warms up.
fn seconds(card: &CudaCard, kernel: Kernel, work: usize, arguments: &[u64]) -> f64 {
    let stream = &card.uploads;
    let (start, end) = (card.gpu.event().unwrap(), card.gpu.event().unwrap());
    let launch = || {
        // SAFETY: the tests below allocate what they pass, for `COUNT` weights.
        unsafe { card.gpu.functions().launch(stream, &kernel, work as u64, arguments) }.unwrap();
    };
    launch();
    start.record(stream).unwrap();
    (0..ROUNDS).for_each(|_| launch());
    end.record(stream).unwrap();
    start.seconds_until(&end).unwrap() / ROUNDS as f64
}

fn show(name: &str, seconds: f64) {
    println!("{name:<24} {:>8.1} billion weights/s", COUNT as f64 / seconds / 1e9);
}

fn filled<T: Copy>(card: &CudaCard, pattern: &[T], bytes: usize) -> DeviceMemory {
    let memory = card.gpu.allocate(bytes).unwrap();
    let whole = size_of_val(pattern);
    for at in (0..bytes).step_by(whole) {
        // SAFETY: `bytes` is a multiple of the pattern's length, and the pattern lives until the stream is waited for.
        unsafe { card.uploads.upload(memory.address() + at as u64, pattern) }.unwrap();
    }
    card.uploads.wait().unwrap();
    memory
}

#[test]
#[ignore = "prints figures; needs a GPU"]
fn throughput() {
    let Some(Card::Cuda(card)) = card() else { return };
    card.gpu.bind().unwrap();
    println!("{COUNT} weights of {COLUMNS} columns");
    let fresh = Gpu::open(card.gpu.number()).unwrap();
    for kind in Kernels::kinds() {
        let kernels = Kernels::of(kind).unwrap();
        for kernel in [Some(kernels.encode), kernels.measure].into_iter().flatten() {
            let start = Instant::now();
            fresh.functions().load(&kernel).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            if seconds > 1e-4 {
                println!("module of {kind} ({kernel:?}): {seconds:.3} s to load");
            }
        }
    }
    let values = filled(card, &Random(1).values(1 << 20), 4 * COUNT);
    let (out, small) = (card.gpu.allocate(4 * COUNT).unwrap(), filled(card, &[0u8; 4096], 64 << 20));
    let weights: Vec<f32> = Random(2).values(COLUMNS).iter().map(|v| v * v).collect();
    let resident = Resident::default();
    let importance = Importance { weights: &weights, rows_per_matrix: ROWS, resident: &resident };
    let weights = Weights::of(&importance, card).unwrap();
    let (values, out, fault) = (values.address(), out.address(), small.address());
    for kind in Kernels::kinds() {
        let kernels = Kernels::of(kind).unwrap();
        let mut arguments = vec![values, COUNT as u64, out, fault];
        show(&format!("encode {kind}"), seconds(card, kernels.encode, COUNT, &arguments));
        if let Some(weighted) = kernels.weighted {
            arguments.push(weights.address());
            arguments.extend([COLUMNS, ROWS, COLUMNS, 0].map(|n| n as u64));
            show(&format!("encode {kind}, weighted"), seconds(card, weighted, COUNT, &arguments));
        }
        if let Some(measure) = kernels.measure {
            // Blocks as they were encoded last.
            let arguments = [values, COUNT as u64, out, 32768, 32768, fault + 256];
            show(&format!("measure {kind}"), seconds(card, measure, COUNT / 256, &arguments));
        }
    }
    merges(card, values, out, fault);
}

/// `values` and `out` have memory for f32, and `fault` is followed by 64 MiB.
fn merges(card: &CudaCard, values: u64, out: u64, fault: u64) {
    let base = filled(card, &narrowed(Float::Bf16, &Random(3).values(1 << 20)), 2 * COUNT);
    let row = vec![0u8; 2 * COUNT];
    for rank in [8, 16, 64] {
        let (left, right) = (Random(4).values(ROWS * rank), Random(5).values(COLUMNS * rank));
        let (left, right) = (narrowed(Float::F32, &left), narrowed(Float::F32, &right));
        let layout = |columns| Layout { offset: 0, row_stride: columns, column_stride: 1 };
        let left = Factor::new(&left, Float::F32, layout(rank), ROWS, rank).unwrap();
        let right = Factor::new(&right, Float::F32, layout(COLUMNS), rank, COLUMNS).unwrap();
        let terms = vec![LowRank { rows: 0..ROWS, left, right, rank, scale: 0.5 }];
        let cast = Merge::cast(&row, Float::Bf16, Float::Bf16, COLUMNS, Overflow::Refuse, Vector::detect());
        let merge = cast.add_terms(terms);
        let resident = Resident::default();
        let factors = Factors::of(&merge, &resident, card).unwrap();
        let (rows, columns, count) = (ROWS as u64, COLUMNS as u64, COUNT as u64);
        let shared = [base.address(), 0, 0];
        let source = [columns, factors.terms, factors.term_count as u64, rows, 0, 3];
        let merge = |values, bytes| {
            let sink = [0, 0, 0, 0, values, bytes, fault];
            [&shared[..], &[0, count], &source, &sink].concat()
        };
        show(&format!("merge, rank {rank}"), seconds(card, MERGE, COUNT, &merge(0, out)));
        show(&format!("merge to f32, rank {rank}"), seconds(card, MERGE, COUNT, &merge(values, 0)));
        let magnitude = fault + 4096;
        let arguments = [&shared[..], &[0, rows], &source, &[magnitude, magnitude + (1 << 20)]].concat();
        show(&format!("norms of rows, rank {rank}"), seconds(card, ROW_GAINS, ROWS, &arguments));
    }
}

/// Whole blocks through lanes side by side, from memory to memory.
#[test]
#[ignore = "prints figures; needs a GPU"]
fn throughput_of_lanes() {
    let Some(card) = card() else { return };
    card.prepare(&[TensorType::Q4_K, TensorType::Q6_K].map(|kind| EncoderKind { kind, weighted: false }));
    let (rows, rank) = (card.capacity() / COLUMNS * 8, 16);
    let base = narrowed(Float::Bf16, &Random(3).values(rows * COLUMNS));
    let (left, right) = (Random(4).values(rows * rank), Random(5).values(COLUMNS * rank));
    let (left, right) = (narrowed(Float::F32, &left), narrowed(Float::F32, &right));
    let layout = |columns| Layout { offset: 0, row_stride: columns, column_stride: 1 };
    let left = Factor::new(&left, Float::F32, layout(rank), rows, rank).unwrap();
    let right = Factor::new(&right, Float::F32, layout(COLUMNS), rank, COLUMNS).unwrap();
    let terms = vec![LowRank { rows: 0..rows, left, right, rank, scale: 0.5 }];
    let merge =
        Merge::cast(&base, Float::Bf16, Float::Bf16, COLUMNS, Overflow::Refuse, Vector::detect()).add_terms(terms);
    for encoding in [None, Some(plain(TensorType::Q4_K, COLUMNS)), Some(plain(TensorType::Q6_K, COLUMNS))] {
        for lanes in 1..=card.lanes() {
            let factors = Resident::default();
            let barrier = std::sync::Barrier::new(lanes + 1);
            let (stages, seconds) = std::thread::scope(|scope| {
                let work = |number: usize| {
                    let mut lane = card.lane().unwrap();
                    let mut memory = HostMemory::new(4 * lane.capacity());
                    card.pin(&mut memory);
                    let source = Source::Merged { merge: &merge, factors: &factors, heads: None };
                    barrier.wait();
                    for i in 0..16 {
                        let start = (number + i) % 8 * lane.capacity();
                        let elements = start..start + lane.capacity();
                        let mut block = Block { source, elements, encoding, wanted: 0..0 };
                        block.wanted = 0..len_of(&block);
                        lane.run(&block, &mut memory.bytes_mut()[..block.wanted.len()]).unwrap();
                    }
                    barrier.wait();
                    lane.stages()
                };
                let threads: Vec<_> = (0..lanes).map(|number| scope.spawn(move || work(number))).collect();
                barrier.wait();
                let start = Instant::now();
                barrier.wait();
                let seconds = start.elapsed().as_secs_f64();
                (threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>(), seconds)
            });
            let name = encoding.map_or("bf16", |encoding| encoding.kind.name());
            let weights = (16 * lanes * card.capacity()) as f64 / seconds / 1e9;
            println!("{name}, {lanes} lanes: {weights:.2} billion weights/s; the first: {:?}", stages[0]);
        }
    }
}
