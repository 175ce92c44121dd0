//! A real GPU's lanes against the processor's code, byte for byte and sum for sum. Where there is no GPU, each test
//! says so and is done. `throughput` (ignored) prints how fast kernels and lanes are.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::OnceLock;

use super::Cards;
use super::block::{Block, Encoding, Importance, Lane, Measured, Source, Trouble};
use super::card::Card;
use super::kernels::Kernels;
use super::resident::Resident;
use super::simulated::make;
use crate::digest::{PIECE, PieceTree};
use crate::ggml::TensorType;
use crate::gpu::runtime::{Device, NoCard};
use crate::merge::{Factor, Float, Layout, LowRank, Merge, NormAxis, Overflow, Vector};
use crate::size::ByteSize;

mod merges;
mod throughput;

const FLOATS: [Float; 3] = [Float::Bf16, Float::F16, Float::F32];

/// The first GPU, opened once for all tests.
fn card() -> Option<&'static Card> {
    static CARDS: OnceLock<Cards> = OnceLock::new();
    match CARDS.get_or_init(|| Cards::open(Device::Cuda, None, None)).wait() {
        Ok(cards) => cards.first(),
        Err(reason) => {
            skip(&reason);
            None
        }
    }
}

#[test]
fn pieces_are_hashed_as_the_processor_hashes_them() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let bytes: Vec<u8> = (0..(2 << 20) + 70_003).map(|i: usize| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    for len in [PIECE + 1, 3 * PIECE, 3 * PIECE + 1023, 9 * PIECE + 1024, 2 << 20, bytes.len()] {
        let tree = PieceTree::new(len as u64);
        // In two calls, the second from a later piece on.
        let cut = (len / PIECE / 2).max(1) * PIECE;
        for (first, bytes) in [(0, &bytes[..cut]), (cut / PIECE, &bytes[cut..len])] {
            let mut values = vec![0x55; bytes.len().div_ceil(PIECE) * 32];
            lane.hash(bytes, first, &mut values).unwrap();
            tree.add_values(first, &values);
        }
        assert_eq!(tree.finish(), Some(blake3::hash(&bytes[..len]).into()), "{len} bytes");
    }
    assert!(matches!(lane.hash(&bytes[..9], 0, &mut [0; 31]), Err(Trouble::Unsupported)), "too short for a value");
}

/// Past the test harness, which keeps what tests print.
fn skip(reason: &NoCard) {
    std::io::stderr().write_all(format!("skipped: no NVIDIA GPU ({reason})\n").as_bytes()).unwrap();
}

/// Numbers that look random, and are the same every time.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From -1 to 1, more often near 0.
    fn value(&mut self) -> f32 {
        let half = |bits: u64| (bits >> 40) as f32 / (1u64 << 24) as f32;
        half(self.bits()) - half(self.bits())
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

fn narrowed(float: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * float.size()];
    float.narrow(values, &mut bytes);
    bytes
}

/// Kinds of values that encoders treat differently, by name.
fn families(count: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut made = |name, value: &mut dyn FnMut(usize, f32) -> f32| {
        (name, (0..count).map(|i| value(i, random.value())).collect::<Vec<f32>>())
    };
    vec![
        made("random", &mut |_, v| v * 0.05),
        made("heavy-tailed", &mut |_, v| v.powi(9) * 30.0),
        made("constant", &mut |_, _| 0.37),
        made("constant rows", &mut |i, _| ((i / 256) as f32 - 3.0) * 0.125),
        made("zero", &mut |_, _| 0.0),
        made("signed zeros", &mut |i, _| if i % 3 == 0 { -0.0 } else { 0.0 }),
        made("one outlier a block", &mut |i, v| if i % 32 == 17 { 4.0 } else { v * 1e-3 }),
        made("one value a super-block", &mut |i, v| if i % 256 == 200 { v } else { 0.0 }),
        made("positive", &mut |_, v| v.abs() + 0.5),
        made("negative", &mut |_, v| -v.abs() - 0.5),
        made("ramp", &mut |i, _| (i % 256) as f32 / 16.0 - 8.0),
        made("halves", &mut |_, v| (v * 16.0).round() / 2.0),
        made("tiny", &mut |_, v| v * 1e-7),
        made("below a search's threshold", &mut |_, v| v * 1e-16),
        made("denormal", &mut |_, v| v * 1e-40),
        made("smallest", &mut |i, _| f32::from_bits(1 | (i as u32 & 1) << 31)),
        made("mixed magnitudes", &mut |i, v| v * 10f32.powi(i32::from((i / 16 % 40) as u8) - 36)),
        made("large", &mut |_, v| v * 60_000.0),
        made("beyond scales", &mut |_, v| v * 1e9),
        made("extreme", &mut |i, v| if i % 2 == 0 { v * f32::MAX } else { -f32::MAX }),
    ]
}

/// Makes `block` on the lane and holds it against the processor. `wanted` of the block is ignored: all is wanted, and
/// then a part.
fn check(lane: &mut dyn Lane, case: &str, block: &Block<'_>) -> Result<(), String> {
    let mut block = Block { wanted: 0..0, elements: block.elements.clone(), ..*block };
    let expected = make(&block);
    let len = expected.as_ref().map_or_else(|_| len_of(&block), |(bytes, _)| bytes.len());
    for wanted in [0..len, len / 3..len - len / 5] {
        block.wanted = wanted.clone();
        let mut out = vec![0xaa; wanted.len()];
        match (lane.run(&block, &mut out), &expected) {
            (Ok(sums), Ok((bytes, expected_sums))) => {
                let bytes = &bytes[wanted.clone()];
                if let Some(at) = out.iter().zip(bytes).position(|(a, b)| a != b) {
                    let end = (at + 16).min(out.len());
                    let differ = out.iter().zip(bytes).filter(|(a, b)| a != b).count();
                    return Err(format!(
                        "{case}: byte {} of {len} differs first ({differ} do): {:02x?}, should be {:02x?}",
                        wanted.start + at,
                        &out[at..end],
                        &bytes[at..end],
                    ));
                }
                // As text, so that NaNs are equal and signs of zeros count.
                let (found, should) = (format!("{sums:?}"), format!("{expected_sums:?}"));
                if found != should {
                    return Err(format!("{case}: sums are {found}, should be {should}"));
                }
            }
            (Err(Trouble::Value), Err(Trouble::Value)) => {}
            (found, expected) => {
                let expected = expected.as_ref().map(|_| "bytes");
                return Err(format!("{case}: {:?}, should be {expected:?}", found.map(|_| "bytes")));
            }
        }
    }
    Ok(())
}

fn len_of(block: &Block<'_>) -> usize {
    match (&block.encoding, block.source) {
        (Some(e), _) => block.elements.len() / e.kind.block_len() * e.kind.block_bytes(),
        (None, Source::Merged { merge, .. }) => block.elements.len() * merge.output().size(),
        (None, Source::Stored { float, .. }) => block.elements.len() * float.size(),
    }
}

/// Fails with the first twenty of all that is wrong, so that one run tells of every kind.
fn settle(wrong: &[String], cases: usize) {
    let shown = wrong.iter().take(20).map(|line| format!("\n  {line}")).collect::<String>();
    assert!(wrong.is_empty(), "{} of {cases} cases are wrong:{shown}", wrong.len());
}

fn plain(kind: TensorType, columns: usize) -> Encoding<'static> {
    Encoding { kind, columns, importance: None, measured: None }
}

fn stored<'b>(bytes: &'b [u8], float: Float, encoding: Encoding<'b>) -> Block<'b> {
    let elements = 0..bytes.len() / float.size();
    Block { source: Source::Stored { bytes, float }, elements, encoding: Some(encoding), wanted: 0..0 }
}

#[test]
fn encoders_give_the_processors_bytes() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for kind in Kernels::kinds() {
        let unit = kind.block_len().max(32);
        for (name, values) in families(9 * 4096) {
            for count in [unit, 7 * unit, 4096, 4096 + 3 * unit, values.len()] {
                let bytes = narrowed(Float::F32, &values[..count]);
                let block = stored(&bytes, Float::F32, plain(kind, count));
                let case = format!("{kind}, {name}, {count} values");
                wrong.extend(check(&mut *lane, &case, &block).err());
                cases += 1;
            }
        }
        for float in [Float::Bf16, Float::F16] {
            let bytes = narrowed(float, &Random(5).values(8 * 4096));
            let case = format!("{kind}, random {}", float.name());
            wrong.extend(check(&mut *lane, &case, &stored(&bytes, float, plain(kind, 4096))).err());
        }
        let mut random = Random(kind as u64 + 1);
        let values: Vec<f32> = (0..1 << 18).map(|i| random.value().powi(3) * 2f32.powi(i / 4096 % 24 - 20)).collect();
        let bytes = narrowed(Float::F32, &values);
        wrong.extend(check(&mut *lane, &format!("{kind}, many"), &stored(&bytes, Float::F32, plain(kind, 4096))).err());
        cases += 3;
    }
    settle(&wrong, cases);
}

#[test]
fn encoders_with_importance_give_the_processors_bytes() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for columns in [256, 1280, 4864] {
        let mut random = Random(columns as u64);
        let mut weights: Vec<f32> = random.values(3 * columns).iter().map(|v| v * v * 8.0).collect();
        // Columns that were never active: a block of them, and single ones.
        weights[..32].fill(0.0);
        weights.iter_mut().step_by(97).for_each(|w| *w = 0.0);
        for kind in Kernels::kinds() {
            for (name, values) in families(7 * columns) {
                // One matrix; a stack with one row of weights each; a stack that shares rows.
                for (matrices, rows_per_matrix, first_row) in [(1, 7, 0), (3, 3, 0), (3, 2, 5), (2, 1, 3)] {
                    let resident = Resident::default();
                    let weights = &weights[..matrices * columns];
                    let importance = Some(Importance { weights, rows_per_matrix, resident: &resident });
                    let bytes = narrowed(Float::F32, &values);
                    let mut block = stored(&bytes, Float::F32, Encoding { importance, ..plain(kind, columns) });
                    block.elements = first_row * columns..(first_row + 7) * columns;
                    let case =
                        format!("{kind}, {name}, {columns} columns, {matrices} x {rows_per_matrix}, row {first_row}");
                    wrong.extend(check(&mut *lane, &case, &block).err());
                    cases += 1;
                }
            }
        }
    }
    settle(&wrong, cases);
}

#[test]
fn measured_sums_are_the_processors() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for kind in Kernels::kinds().filter(|kind| *kind != TensorType::F32) {
        let unit = kind.block_len();
        for (name, values) in families(5 * 8192) {
            let bytes = narrowed(Float::F32, &values);
            for (skipped, first, chunk) in [
                (0, 8192, 8192),
                (unit, 0, 8192),
                (3 * unit, 4096 - 3 * unit, 4096),
                (0, 1 << 20, 4096),
                (0, 100 * unit, 32768),
            ] {
                let measured = Some(Measured { skipped, first, chunk });
                let block = stored(&bytes, Float::F32, Encoding { measured, ..plain(kind, 8192) });
                let case = format!("{kind}, {name}, {skipped} skipped, {first} first, chunks of {chunk}");
                wrong.extend(check(&mut *lane, &case, &block).err());
                cases += 1;
            }
        }
    }
    settle(&wrong, cases);
}

/// What a GPU can't judge is left to the processor, and the lane goes on.
#[test]
fn faults_are_told_and_leave_the_lane_in_order() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let good = Random(3).values(8192);
    for kind in Kernels::kinds() {
        for (at, value) in [(0, f32::NAN), (5000, f32::INFINITY), (8191, f32::NEG_INFINITY), (100, f32::MAX)] {
            let mut values = good.clone();
            values[at] = value;
            let bytes = narrowed(Float::F32, &values);
            let block = stored(&bytes, Float::F32, plain(kind, 8192));
            // F32 holds the largest value, and bf16 does not.
            check(&mut *lane, &format!("{kind} with {value} at {at}"), &block).unwrap();
        }
        let bytes = narrowed(Float::F32, &good);
        check(&mut *lane, &format!("{kind} after faults"), &stored(&bytes, Float::F32, plain(kind, 8192))).unwrap();
    }
    let base = narrowed(Float::F32, &[70_000.0, 1.0, f32::NAN, 2.0]);
    for (float, elements) in [(Float::F16, 0..2), (Float::Bf16, 1..3), (Float::F32, 2..4)] {
        let merge = Merge::cast(&base, Float::F32, float, 4, Overflow::Clamp, Vector::detect());
        let factors = Resident::default();
        let source = Source::Merged { merge: &merge, factors: &factors, heads: None };
        let wanted = 0..2 * float.size();
        let block = Block { source, elements, encoding: None, wanted: wanted.clone() };
        let found = lane.run(&block, &mut vec![0; wanted.len()]);
        assert!(matches!(found, Err(Trouble::Value)), "{}: {found:?}", float.name());
    }
}

#[test]
fn blocks_are_as_large_as_promised_and_no_larger() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let capacity = lane.capacity();
    let values = Random(9).values(capacity);
    let bytes = narrowed(Float::F32, &values);
    let measured = Some(Measured { skipped: 0, first: 0, chunk: 32768 });
    let block = stored(&bytes, Float::F32, Encoding { measured, ..plain(TensorType::Q8_0, capacity) });
    check(&mut *lane, "a whole block of Q8_0", &block).unwrap();
    check(&mut *lane, "a whole block of F32", &stored(&bytes, Float::F32, plain(TensorType::F32, capacity))).unwrap();
    let mut block = stored(&bytes, Float::F32, plain(TensorType::F32, capacity));
    block.wanted = 0..4 * capacity + 1;
    assert!(matches!(lane.run(&block, &mut vec![0; 4 * capacity + 1]), Err(Trouble::Unsupported)), "beyond the bytes");
    block.wanted = 0..4;
    assert!(matches!(lane.run(&block, &mut [0; 8]), Err(Trouble::Unsupported)), "out is longer");
    block.elements.end += 1;
    assert!(matches!(lane.run(&block, &mut [0; 4]), Err(Trouble::Unsupported)), "beyond the capacity");
    let unsupported = stored(&bytes[..1024], Float::F32, plain(TensorType::TQ1_0, 256));
    assert!(matches!(lane.run(&unsupported, &mut []), Err(Trouble::Unsupported)), "no kernels of the type");
    let empty = stored(&[], Float::F32, plain(TensorType::Q4_K, 256));
    assert_eq!(lane.run(&empty, &mut []).unwrap(), []);
}

#[test]
fn memory_is_bounded_by_what_was_asked_for() {
    if card().is_none() {
        return;
    }
    let little = Cards::open(Device::Cuda, Some(ByteSize(1 << 20)), None).wait().err();
    assert!(matches!(little, Some(NoCard::LittleMemory { .. })), "{little:?}");
    let cards = Cards::open(Device::Cuda, Some(ByteSize(48 << 20)), None);
    let card = &cards.wait().unwrap()[0];
    let mut lane = card.lane().unwrap();
    assert!(lane.capacity() < 4 << 20 && card.lanes() >= 1);
    let bytes = narrowed(Float::F32, &Random(2).values(lane.capacity()));
    check(&mut *lane, "a smaller block", &stored(&bytes, Float::F32, plain(TensorType::Q4_K, 256))).unwrap();
    // Factors of 64 MiB do not fit.
    let (rank, columns) = (1024, 16384);
    let (base, right) = (vec![0; 2 * columns], vec![0; 2 * rank * columns]);
    let layout = |columns| Layout { offset: 0, row_stride: columns, column_stride: 1 };
    let left = Factor::new(&right, Float::Bf16, layout(rank), 1, rank).unwrap();
    let right = Factor::new(&right, Float::Bf16, layout(columns), rank, columns).unwrap();
    let terms = vec![LowRank { rows: 0..1, left, right, rank, scale: 1.0 }];
    let merge =
        Merge::cast(&base, Float::Bf16, Float::Bf16, columns, Overflow::Refuse, Vector::detect()).add_terms(terms);
    let factors = Resident::default();
    let source = Source::Merged { merge: &merge, factors: &factors, heads: None };
    let block = Block { source, elements: 0..64, encoding: None, wanted: 0..128 };
    assert!(matches!(lane.run(&block, &mut [0; 128]), Err(Trouble::Unsupported)));
}

#[test]
fn faults_on_demand_reach_lanes_of_a_card() {
    if card().is_none() {
        return;
    }
    let bytes = narrowed(Float::F32, &Random(2).values(256));
    let mut block = stored(&bytes, Float::F32, plain(TensorType::Q8_0, 256));
    block.wanted = 0..272;
    for (fault, pattern) in [("value@2", ".v.."), ("oom@1", "d..."), ("lost@3", "..dd")] {
        let cards = Cards::open(Device::Cuda, Some(ByteSize(64 << 20)), Some(fault.parse().unwrap()));
        let mut lane = cards.wait().unwrap()[0].lane().unwrap();
        let found: String = (0..4)
            .map(|_| match lane.run(&block, &mut [0; 272]) {
                Ok(_) => '.',
                Err(Trouble::Value) => 'v',
                Err(Trouble::Device(_)) => 'd',
                Err(Trouble::Unsupported) => 'u',
            })
            .collect();
        assert_eq!(found, pattern, "{fault}");
    }
}
