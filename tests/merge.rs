//! Properties of the merge arithmetic: the bytes don't depend on blocks, threads or vector width, and they are those of
//! the specification in docs/numerics.md, written here a second time, value by value.

use proptest::prelude::*;
use qft::merge::{Factor, Float, Layout, LowRank, Merge, NormAxis, Overflow, Vector};

use crate::workbench::Noise;

const FLOATS: [Float; 3] = [Float::Bf16, Float::F16, Float::F32];

/// A merge in the making: sizes, types and values.
#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    columns: usize,
    rank: usize,
    scale: f32,
    base: Float,
    out: Float,
    adapter: Float,
    norm: Option<NormAxis>,
    seed: u64,
}

struct Bytes {
    base: Vec<u8>,
    left: Vec<u8>,
    right: Vec<u8>,
    magnitude: Vec<u8>,
}

fn cases() -> impl Strategy<Value = Case> {
    let norm = prop_oneof![Just(None), Just(Some(NormAxis::Row)), Just(Some(NormAxis::Column))];
    let floats = (0..3usize, 0..3usize, 0..3usize).prop_map(|(a, b, c)| (FLOATS[a], FLOATS[b], FLOATS[c]));
    (1..20usize, 1..1100usize, 1..20usize, -4.0f32..4.0, floats, norm, any::<u64>()).prop_map(
        |(rows, columns, rank, scale, (base, out, adapter), norm, seed)| Case {
            rows,
            columns,
            rank,
            scale,
            base,
            out,
            adapter,
            norm,
            seed,
        },
    )
}

fn noise(float: Float, n: usize, seed: u64) -> Vec<u8> {
    let mut noise = Noise(seed);
    let values: Vec<f32> = (0..n).map(|_| noise.value(0.05)).collect();
    let mut bytes = vec![0; n * float.size()];
    float.narrow(&values, &mut bytes);
    bytes
}

fn bytes(case: &Case) -> Bytes {
    let norms = if case.norm == Some(NormAxis::Row) { case.rows } else { case.columns };
    Bytes {
        base: noise(case.base, case.rows * case.columns, case.seed),
        left: noise(case.adapter, case.rows * case.rank, case.seed ^ 1),
        right: noise(case.adapter, case.rank * case.columns, case.seed ^ 2),
        magnitude: noise(case.adapter, norms, case.seed ^ 3),
    }
}

fn row_major(bytes: &[u8], float: Float, rows: usize, columns: usize) -> Factor<'_> {
    let layout = Layout { offset: 0, row_stride: columns, column_stride: 1 };
    Factor::new(bytes, float, layout, rows, columns).unwrap()
}

fn merge<'a>(case: &Case, bytes: &'a Bytes, vector: Vector) -> Merge<'a> {
    let Case { rows, columns, rank, adapter, .. } = *case;
    let left = row_major(&bytes.left, adapter, rows, rank);
    let right = row_major(&bytes.right, adapter, rank, columns);
    let term = LowRank { rows: 0..rows, left, right, rank, scale: case.scale };
    let merge = Merge::cast(&bytes.base, case.base, case.out, columns, Overflow::Clamp, vector).add_terms(vec![term]);
    match case.norm {
        None => merge,
        Some(axis) => {
            let n = bytes.magnitude.len() / adapter.size();
            merge.scale_to(&row_major(&bytes.magnitude, adapter, 1, n), axis)
        }
    }
}

fn run(merge: &Merge<'_>, case: &Case, elements: std::ops::Range<usize>) -> Vec<u8> {
    let mut out = vec![0xaa; elements.len() * case.out.size()];
    merge.run(elements, &mut out).unwrap();
    out
}

fn widen(float: Float, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / float.size()];
    float.widen(bytes, &mut values);
    values
}

/// The specification, one value after the other.
fn specified(case: &Case, bytes: &Bytes) -> Vec<u8> {
    let Case { rows, columns, rank, .. } = *case;
    let base = widen(case.base, &bytes.base);
    let (b, a) = (widen(case.adapter, &bytes.left), widen(case.adapter, &bytes.right));
    let magnitude = widen(case.adapter, &bytes.magnitude);
    let mut values = base;
    for i in 0..rows {
        for j in 0..columns {
            let acc = (0..rank).fold(0.0f32, |acc, k| b[i * rank + k].mul_add(a[k * columns + j], acc));
            values[i * columns + j] = case.scale.mul_add(acc, values[i * columns + j]);
        }
    }
    let square = |v: f32| f64::from(v) * f64::from(v);
    match case.norm {
        None => {}
        Some(NormAxis::Row) => {
            for (row, m) in values.chunks_mut(columns).zip(&magnitude) {
                let mut sums = [0.0f64; 16];
                row.iter().enumerate().for_each(|(j, v)| sums[j % 16] += square(*v));
                for half in [8, 4, 2, 1] {
                    (0..half).for_each(|l| sums[l] += sums[l + half]);
                }
                let gain = m / sums[0].sqrt() as f32;
                row.iter_mut().for_each(|v| *v *= gain);
            }
        }
        Some(NormAxis::Column) => {
            for j in 0..columns {
                let sum = (0..rows).fold(0.0f64, |sum, i| sum + square(values[i * columns + j]));
                let gain = magnitude[j] / sum.sqrt() as f32;
                (0..rows).for_each(|i| values[i * columns + j] *= gain);
            }
        }
    }
    let mut out = vec![0; values.len() * case.out.size()];
    let clamp = |v: f32| if case.out.overflows(v) { case.out.max().copysign(v) } else { v };
    let values: Vec<f32> = values.into_iter().map(clamp).collect();
    case.out.narrow(&values, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_vector_width_and_block_gives_the_specified_bytes(case in cases(), cuts in proptest::collection::vec(any::<u64>(), 0..4)) {
        let bytes = bytes(&case);
        let expected = specified(&case, &bytes);
        let all = case.rows * case.columns;
        for vector in Vector::available() {
            let merge = merge(&case, &bytes, vector);
            let whole = run(&merge, &case, 0..all);
            prop_assert!(whole == expected, "{vector:?} in one block");
            let mut ends: Vec<usize> = cuts.iter().map(|c| *c as usize % (all + 1)).chain([0, all]).collect();
            ends.sort_unstable();
            let pieces: Vec<u8> = ends.windows(2).flat_map(|w| run(&merge, &case, w[0]..w[1])).collect();
            prop_assert!(pieces == expected, "{vector:?} in blocks at {ends:?}");
        }
    }

    /// A term of some rows leaves the others alone, whatever rows are worked on together.
    #[test]
    fn a_term_changes_its_own_rows_only(first in 0..6usize, count in 1..5usize, rank in 1..9usize, seed: u64) {
        let (rows, columns) = (12, 37);
        let (base, left, right) =
            (noise(Float::Bf16, rows * columns, seed), noise(Float::F32, count * rank, seed ^ 1), noise(Float::F32, rank * columns, seed ^ 2));
        for vector in Vector::available() {
            let whole = Merge::cast(&base, Float::Bf16, Float::F32, columns, Overflow::Refuse, vector);
            let mut plain = vec![0; rows * columns * 4];
            whole.run(0..rows * columns, &mut plain).unwrap();
            let term = LowRank { rows: first..first + count, left: row_major(&left, Float::F32, count, rank), right: row_major(&right, Float::F32, rank, columns), rank, scale: 100.0 };
            let merge = Merge::cast(&base, Float::Bf16, Float::F32, columns, Overflow::Refuse, vector).add_terms(vec![term]);
            let mut out = vec![0; rows * columns * 4];
            merge.run(0..rows * columns, &mut out).unwrap();
            for row in 0..rows {
                let at = row * columns * 4..(row + 1) * columns * 4;
                prop_assert_eq!(out[at.clone()] == plain[at], !(first..first + count).contains(&row), "row {}", row);
            }
        }
    }
}

#[test]
fn what_can_not_be_written_is_named() {
    let values = [1.0f32, 70000.0, f32::NAN, -70000.0];
    let base: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    for vector in Vector::available() {
        let cast = |overflow| Merge::cast(&base, Float::F32, Float::F16, 2, overflow, vector);
        let mut out = [0; 8];
        let fault = cast(Overflow::Refuse).run(0..4, &mut out).unwrap_err();
        assert_eq!((fault.row, fault.column, fault.value), (0, 1, 70000.0));
        cast(Overflow::Clamp).run(0..4, &mut out).unwrap();
        let written = widen(Float::F16, &out);
        assert_eq!((written[0], written[1], written[3]), (1.0, 65504.0, -65504.0));
        assert!(written[2].is_nan(), "a NaN that was there before stays one");
        let fault = cast(Overflow::Clamp).finite().run(0..4, &mut out).unwrap_err();
        assert!((fault.row, fault.column) == (1, 0) && fault.value.is_nan());
    }
}
