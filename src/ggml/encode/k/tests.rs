//! Tests that the vector code gives the bytes of the reference, at every width.

use proptest::prelude::*;

use super::reference;
use super::superblock::LEN;
use crate::ggml::TensorType;
use crate::ggml::encode::encode;
use crate::merge::Vector;

/// Sub-blocks of 16 values: all equal, or of one magnitude, from subnormal ones to those whose squares overflow.
fn sub_block() -> impl Strategy<Value = [f32; 16]> {
    let power = prop_oneof![4 => -12..2i32, 1 => -149..124i32];
    let shift = prop_oneof![3 => Just(0.0f32), 1 => -1.0..1.0f32];
    let values = prop_oneof![
        4 => prop::array::uniform16(-1.0..1.0f32),
        1 => prop::array::uniform16(prop::sample::select(vec![-1.0, -0.5, -0.0, 0.0, 0.5, 1.0f32])),
        1 => (-1.0..1.0f32).prop_map(|v| [v; 16]),
        1 => Just([0.0; 16]),
    ];
    (values, power, shift)
        .prop_map(|(values, power, shift)| values.map(|v| (f64::from(shift + v) * f64::from(power).exp2()) as f32))
}

/// Importance as files have it, and some that no file should have.
fn importance() -> impl Strategy<Value = f32> {
    prop_oneof![8 => 0.0..4.0f32, 2 => Just(0.0f32), 1 => (-60.0..60.0f32).prop_map(f32::exp), 1 => -1.0..0.0f32]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn vector_code_gives_the_bytes_of_the_reference(
        (rows, blocks) in (1..4usize, 1..12usize),
        sub_blocks in prop::collection::vec(sub_block(), 3 * 11 * 16),
        importance in prop::option::of(prop::collection::vec(importance(), 11 * LEN)),
    ) {
        let columns = blocks * LEN;
        let values = &sub_blocks.as_flattened()[..rows * columns];
        let importance = importance.as_ref().map(|all| &all[..columns]);
        for kind in [TensorType::Q2_K, TensorType::Q3_K, TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K] {
            let mut expected = vec![0xaa; rows * blocks * kind.block_bytes()];
            reference::encode(kind, values, columns, importance, &mut expected);
            for vector in Vector::available() {
                let mut found = vec![0x55; expected.len()];
                encode(kind, vector, values, columns, importance, &mut found);
                prop_assert_eq!(&found, &expected, "{} {:?}", kind, vector);
            }
        }
    }
}
